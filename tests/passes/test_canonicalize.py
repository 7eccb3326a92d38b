"""One orientation and a weight of its own for every linear of the chosen sites; the function stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from catonnx.graph.sites import Selection, find_sites
from catonnx.passes.canonicalize import Canonicalize
from tests.graph.builder import Net, relative_error, run

HEAD = Selection(head=True)
X = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}


def net_of(build: Callable[[Net, str], str]) -> Net:
    net = Net(seed=2)
    x = net.input("x", [3, 4])
    net.output(build(net, x))
    return net


SPELLINGS: dict[str, Callable[[Net, str], str]] = {
    "transposed": lambda n, x: n.op("MatMul", x, n.op("Transpose", n.normal(5, 4), perm=[1, 0])),
    "transposed without perm": lambda n, x: n.op("MatMul", x, n.op("Transpose", n.normal(5, 4))),
    "twice transposed": lambda n, x: n.op("MatMul", x, n.op("Transpose", n.op("Transpose", n.normal(4, 5)))),
    "identity": lambda n, x: n.op("MatMul", x, n.op("Identity", n.normal(4, 5))),
    "a constant node": lambda n, x: n.op("MatMul", x, n.constant_node(np.ones((4, 5)))),
    "half precision": lambda n, x: n.op(
        "MatMul", x, n.op("Cast", n.constant(np.full((4, 5), 0.1, np.float16)), to=TensorProto.FLOAT)
    ),
    "Gemm": lambda n, x: n.op("Gemm", x, n.normal(4, 5)),
    "Gemm transB": lambda n, x: n.op("Gemm", x, n.normal(5, 4), transB=1),
    "Gemm transB of a transpose": lambda n, x: n.op("Gemm", x, n.op("Transpose", n.normal(4, 5)), transB=1),
    "Gemm alpha": lambda n, x: n.op("Gemm", x, n.normal(4, 5), alpha=0.25),
    "Gemm beta": lambda n, x: n.op("Gemm", x, n.normal(4, 5), n.vector(5), beta=3.0),
    "Gemm all": lambda n, x: n.op(
        "Gemm", n.op("Transpose", x), n.normal(5, 3), n.vector(4, 1), transB=1, alpha=0.5, beta=2.0
    ),
    "Gemm transA": lambda n, x: n.op("Gemm", x, n.normal(3, 5), n.vector(1, 5), transA=1, beta=0.5),
    "one matrix in three axes": lambda n, x: n.op("MatMul", x, n.normal(1, 4, 5)),
    "one matrix in four axes": lambda n, x: n.op(
        "MatMul", x, n.op("Transpose", n.normal(1, 4, 1, 5), perm=[0, 2, 1, 3])
    ),
    "one matrix times one row": lambda n, x: n.op(
        "MatMul", n.op("ReduceMax", x, n.constant([0]), keepdims=0), n.normal(1, 1, 4, 5)
    ),
    "one matrix times more axes": lambda n, x: n.op(
        "MatMul", n.op("Unsqueeze", x, n.constant([0, 1])), n.normal(1, 4, 5)
    ),
    "on the left": lambda n, x: n.op("MatMul", n.normal(5, 3), x),
    "on the left of more axes": lambda n, x: n.op("MatMul", n.normal(5, 3), n.op("Unsqueeze", x, n.constant([0, 1]))),
    "on the left of one column": lambda n, x: n.op(
        "MatMul", n.normal(5, 3), n.op("ReduceMax", x, n.constant([1]), keepdims=0)
    ),
    "on the left, transposed": lambda n, x: n.op("MatMul", n.op("Transpose", n.normal(3, 5)), x),
    "on the left in three axes": lambda n, x: n.op("MatMul", n.normal(1, 5, 3), x),
    "on the left in four axes of one column": lambda n, x: n.op(
        "MatMul", n.normal(1, 1, 5, 3), n.op("ReduceMax", x, n.constant([1]), keepdims=0)
    ),
    "Gemm with a column": lambda n, x: n.op("Gemm", x, n.normal(4, 5), n.vector(3, 1), beta=2.0),
    "Gemm with a row": lambda n, x: n.op("Gemm", x, n.normal(4, 5), n.vector(1, 5)),
    "Gemm on the left with a column": lambda n, x: n.op("Gemm", n.normal(5, 3), x, n.vector(5, 1), alpha=0.5, beta=2.0),
    "Gemm on the left": lambda n, x: n.op("Gemm", n.normal(5, 3), x),
    "Gemm with an activation as bias": lambda n, x: n.op("Gemm", x, n.normal(4, 4), x, alpha=2.0, beta=0.5),
}


@pytest.mark.parametrize("build", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_becomes_one_and_computes_the_same(build: Callable[[Net, str], str]) -> None:
    net = net_of(build)
    model = net.model()
    assert Canonicalize(HEAD)(model).modified == (build not in (SPELLINGS["Gemm"],))
    (linear,) = (linear for site in find_sites(model.graph, HEAD).sites for linear in site.linears)
    weight = linear.node.inputs[1]
    assert weight is not None
    assert weight.is_initializer()
    assert len(weight.uses()) == 1
    assert tuple(weight.shape or ()) == (linear.inputs, linear.outputs)
    assert not {"transA", "transB", "alpha"} & {
        name for name, a in linear.node.attributes.items() if a.value not in (0, 1.0)
    }
    assert not Canonicalize(HEAD)(model).modified, "a second run found something"
    name = net.outputs[0]
    # Measured 1e-7: alpha and beta are multiplied in float64 and rounded once.
    assert relative_error(run(net.proto(), X)[name], run(model, X)[name]) < 1e-6


def test_a_bias_that_counts_for_nothing_is_not_read() -> None:
    net = net_of(lambda n, x: n.op("Gemm", x, n.normal(4, 5), n.constant(np.full(5, np.nan)), beta=0.0))
    model = net.model()
    Canonicalize(HEAD)(model)
    assert [len(node.inputs) for node in model.graph] == [2]
    assert np.isfinite(run(model, X)[net.outputs[0]]).all()


def test_a_head_on_the_left_is_left_as_it_is() -> None:
    net = Net(seed=4)
    x = net.input("x", [3, 4])
    hidden = net.op("Relu", net.op("MatMul", x, net.normal(4, 4)))
    net.output(net.op("MatMul", net.normal(6, 3), hidden))
    model = net.model()
    Canonicalize()(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Relu", "MatMul"]
    _, head = (site.linears[0] for site in find_sites(model.graph).sites)
    assert "output head" in head.reason


def test_nodes_that_only_spelled_a_weight_are_dropped() -> None:
    model = net_of(SPELLINGS["twice transposed"]).model()
    Canonicalize(HEAD)(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert len(model.graph.initializers) == 1


def test_a_site_read_transposed_becomes_the_site_behind_the_transpose() -> None:
    model = net_of(SPELLINGS["Gemm transA"]).model()
    Canonicalize(HEAD)(model)
    (site,) = find_sites(model.graph, HEAD).sites
    turn = site.value.producer()
    assert turn is not None
    assert (turn.op_type, site.width, list(site.value.shape or ())) == ("Transpose", 3, [4, 3])


def test_a_shared_weight_becomes_one_for_each_reader_and_others_keep_the_old() -> None:
    net = Net(seed=4)
    x, shared = net.input("x", [3, 4]), net.normal(4, 4)
    net.output(net.op("MatMul", net.op("MatMul", x, shared), shared, result="y"))
    net.output(net.op("Gather", shared, net.constant([1, 2]), result="rows"))
    model = net.model()
    assert Canonicalize(HEAD)(model).modified
    weights = [node.inputs[1] for node in model.graph if node.op_type == "MatMul"]
    assert len({id(weight) for weight in weights}) == 2
    before, after = run(net.proto(), X), run(model, X)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_sites_without_a_chosen_linear_are_left_as_they_are() -> None:
    net = Net(seed=4)
    x = net.input("x", [3, 4])
    hidden = net.op("Relu", net.op("Gemm", x, net.normal(5, 4), transB=1))
    chosen = net.nodes[0].name
    net.output(net.op("Gemm", hidden, net.normal(6, 5), transB=1, alpha=2.0))
    model = net.model()
    Canonicalize(Selection(include=(chosen,), head=True))(model)
    assert [node.attributes.get_int("transB", 0) for node in model.graph if node.op_type == "Gemm"] == [0, 1]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.FLOAT])
def test_the_type_of_a_weight_stays(dtype: ir.DataType) -> None:
    net = Net(seed=4)
    x = net.input("x", [3, 4], dtype.value)
    net.initializers["w"] = np.ones((5, 4), dtype.numpy())
    net.outputs.append(net.op("Gemm", x, "w", transB=1, alpha=0.5))
    model = net.model()
    Canonicalize(HEAD)(model)
    weight = model.graph[0].inputs[1]
    assert weight is not None
    assert weight.dtype == dtype
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), np.full((4, 5), 0.5, dtype.numpy()))


def test_branches_that_share_a_weight_go_on_to_share_it() -> None:
    def branch(name: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Gemm", ["x", "w_1"], [f"{name}_h"], f"{name}_turned", transB=1, alpha=0.5),
            helper.make_node("MatMul", [f"{name}_h", "w_1"], [f"{name}_y"], f"{name}_plain"),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)])

    net = Net(seed=4)
    net.input("x", [3, 4])
    assert net.normal(4, 4) == "w_1"
    condition = net.constant(np.array(True))
    net.output(net.op("If", condition, then_branch=branch("one"), else_branch=branch("two"), result="y"))
    model = net.model()
    assert Canonicalize(HEAD)(model).modified
    nodes = [node for part in model.graph.subgraphs() for node in part]
    weights = {str(node.name): node.inputs[1] for node in nodes}
    assert weights["one_turned"] is weights["two_turned"]
    assert weights["one_plain"] is weights["two_plain"]
    assert weights["one_plain"] is not weights["one_turned"]
    assert len([value for value in model.graph.initializers.values() if value.shape == (4, 4)]) == 2
    assert not Canonicalize(HEAD)(model).modified, "a second run found something"
    assert relative_error(run(net.proto(), X)["y"], run(model, X)["y"]) < 1e-6
