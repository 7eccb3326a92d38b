"""Sites that read rows of one value share what is absorbed before it; who else reads it forbids that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from catonnx.graph.absorb import Absorption
from catonnx.graph.shapes import Shapes
from catonnx.graph.sharing import trace_sites
from catonnx.graph.sites import Selection, find_sites
from catonnx.math.factors import Scale
from catonnx.passes.absorb import Absorb, AbsorbedTransform
from catonnx.passes.canonicalize import Canonicalize
from tests.graph.builder import Net, relative_error, run
from tests.graph.equivalence import assert_equivalent

D, BATCH, SEQ = 6, 2, 6
X = {"x": np.random.default_rng(0).normal(size=(BATCH, SEQ, D)).astype(np.float32)}

Build = Callable[[Net, str], str]

ROWS: dict[str, Build] = {
    "in another order": lambda n, v: n.op("Gather", v, n.constant([1, 0, 1]), axis=0),
    "found by pairs of indices": lambda n, v: n.op("GatherND", v, n.constant(np.array([[1, 2], [0, 0]]))),
    "found within a batch": lambda n, v: n.op("GatherND", v, n.constant(np.array([[2], [0]])), batch_dims=1),
    "found number by number": lambda n, v: n.op("GatherElements", v, n.constant(np.ones((1, SEQ, D), int)), axis=0),
    "some of them": lambda n, v: n.op("Slice", v, n.constant([1]), n.constant([3]), n.constant([1])),
    "as a matrix": lambda n, v: n.op("Reshape", v, n.constant([-1, D])),
    "flattened": lambda n, v: n.op("Flatten", v, axis=2),
    "with one more axis": lambda n, v: n.op("Unsqueeze", v, n.constant([1])),
    "with one axis less": lambda n, v: n.op("Squeeze", n.op("Unsqueeze", v, n.constant([0])), n.constant([0])),
    "turned": lambda n, v: n.op("Transpose", v, perm=[1, 0, 2]),
    "repeated": lambda n, v: n.op("Expand", v, n.constant([4, 1, 1, 1])),
    "repeated behind each other": lambda n, v: n.op("Tile", v, n.constant([2, 1, 1])),
    "as they are": lambda n, v: n.op("Dropout", n.op("Identity", v)),
    "in another type": lambda n, v: n.op("Cast", n.op("Cast", v, to=TensorProto.DOUBLE), to=TensorProto.FLOAT),
}

OTHERS: dict[str, Build] = {
    "another function": lambda n, v: n.op("Tanh", v),
    "a function of its rows": lambda n, v: n.op("Tanh", n.op("Reshape", v, n.constant([-1, D]))),
    "channels found one by one": lambda n, v: n.op("Gather", v, n.constant([0, 1, 2, 3, 5, 4]), axis=2),
    "channels found by numbers": lambda n, v: n.op("GatherElements", v, n.constant(np.zeros((1, 1, D), int)), axis=2),
    "single numbers": lambda n, v: n.op("GatherND", v, n.constant(np.zeros((1, D, 3), int))),
    "some channels": lambda n, v: n.op("Slice", v, n.constant([0]), n.constant([D]), n.constant([2])),
    "channels and rows turned": lambda n, v: n.op("Transpose", v, perm=[0, 2, 1]),
    "channels in two axes": lambda n, v: n.op("Reshape", v, n.constant([0, 0, 2, 3])),
    "integers": lambda n, v: n.op("Cast", n.op("Cast", v, to=TensorProto.INT32), to=TensorProto.FLOAT),
    "an operator of somebody else's": lambda n, v: n.op("Identity", v, domain="com.microsoft"),
}


def net_of(build: Build) -> Net:
    """A norm, one linear on its output, another on what `build` makes of it, and one that stands alone."""
    net = Net(seed=3)
    value = net.op("LayerNormalization", net.input("x", ["batch", SEQ, D]), net.vector(D), net.vector(D))
    first = net.op("MatMul", value, net.normal(D, 4), result="y")
    net.op("MatMul", build(net, value), net.normal(D, 5), result="z")
    net.op("MatMul", net.op("Tanh", first), net.normal(4, 5), result="alone")
    for name in ("y", "z", "alone"):
        net.output(name)
    return net


def traced(model: ir.Model, selection: Selection | None = None) -> dict[str, Absorption]:
    sites = find_sites(model.graph, selection or Selection(head=True)).sites
    return trace_sites(sites, Shapes(model.graph))


@pytest.mark.parametrize("rows", ROWS)
def test_who_reads_rows_of_one_value_shares_what_is_absorbed_before_it(rows: str) -> None:
    net = net_of(ROWS[rows])
    first, second, alone = traced(net.model()).values()
    assert first is second
    assert len(first.shared) == 2
    assert [writer.node.op_type for writer in first.writers] == ["LayerNormalization"] * 2
    assert alone.shared == ()
    assert_equivalent(net, X)


@pytest.mark.parametrize("other", OTHERS)
def test_whoever_else_reads_it_forbids_that(other: str) -> None:
    def build(net: Net, value: str) -> str:
        strange, width = OTHERS[other](net, value), 3 if "two axes" in other or "some" in other else D
        net.output(net.op("MatMul", strange, net.normal(width, 4)))
        return net.op("Reshape", value, net.constant([-1, D]))

    first, *_, second, _ = traced(net_of(build).model()).values()
    assert (first.width, second.width) == (0, 0)
    assert (first.shared, second.shared) == ((), ())
    assert "also read by" in first.reason


def test_so_does_an_output_of_the_graph() -> None:
    def build(net: Net, value: str) -> str:
        return net.output(net.op("Reshape", value, net.constant([-1, D])))

    first, second, _ = traced(net_of(build).model()).values()
    assert (first.width, second.width) == (0, 0)
    assert "also an output of the graph" in second.reason


def test_so_does_a_linear_that_reads_its_rows_transposed_and_is_left_as_it_is() -> None:
    net = net_of(lambda n, v: n.op("Identity", v))
    value = net.nodes[0].output[0]
    square = net.op("Reshape", net.op("Slice", value, *map(net.constant, ([0], [D], [0]))), net.constant([-1, D]))
    net.output(net.op("Gemm", square, net.normal(D, 4), transA=1))
    gemm = net.nodes[-1].name
    first, *_ = traced(net.model(), Selection(head=True, exclude=(gemm,))).values()
    assert first.width == 0


def test_a_mixture_of_experts_is_one_group_its_router_in_float_among_it() -> None:
    """What exporters make of a router and two experts that see some rows each; the router's weight is transposed."""
    net = Net(seed=4)
    value = net.op("SimplifiedLayerNormalization", net.input("x", ["batch", SEQ, D]), net.vector(D), axis=-1)
    rows = net.op("Reshape", value, net.constant([-1, D]))
    logits = net.op("Gemm", rows, net.normal(2, D), transB=1, alpha=0.5)
    best, index = net.ops("TopK", net.op("Softmax", logits), net.constant([1]), results=["best", "index"])
    net.output(best)
    chosen = net.op("Squeeze", index, net.constant([1]))
    for number in range(2):
        mine = net.op("Equal", chosen, net.constant(np.array(number)))
        places = net.op("Squeeze", net.op("NonZero", mine), net.constant([0]))
        expert = net.op("Gather", net.op("Unsqueeze", rows, net.constant([0])), places, axis=1)
        expert = net.op("Reshape", expert, net.constant([-1, D]))
        gate, up = (net.op("MatMul", expert, net.normal(D, 8)) for _ in range(2))
        down = net.op("MatMul", net.op("Mul", net.op("Sigmoid", gate), up), net.normal(8, D))
        net.output(net.op("Softplus", down, result=f"y{number}"))
    model = net.model()
    Canonicalize()(model)
    found = find_sites(model.graph)
    router = found.sites[0].linears[0]
    assert router.node.op_type == "Gemm"
    assert "router" in router.reason
    first, _, second, _ = trace_sites(found.sites, Shapes(model.graph)).values()
    assert first is second
    assert [len(site.linears) for site in first.shared] == [1, 2, 2]
    assert [site.name for site in first.peers] == [first.shared[1].name, first.shared[2].name]
    reference = run(net.proto(), X)
    scale = Scale(np.array([0.25, 0.5, 1, 2, 4, 8.0]))
    Absorb((AbsorbedTransform(first.peers[0], first.writers, (scale,), None, (first.shared[0], first.shared[2])),))(
        model
    )
    actual = run(model, X)
    assert reference.keys() == actual.keys() == {"best", "y0", "y1"}
    for name, expected in reference.items():
        assert relative_error(expected, actual[name]) <= 1e-5, name  # measured: 3e-7
