"""Row by row: what the node before a site takes up, with which ties, and that the function stays the same.

The nets are small on purpose: a site of 6 or 8 channels, what stands before it, and one linear behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from catonnx.graph.absorb import Absorption
from catonnx.graph.writers import fold
from tests.graph.builder import Net, absorbable
from tests.graph.equivalence import assert_equivalent

D = 6
X = {"x": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)}

Build = Callable[[Net, str], str]


def net_of(build: Build, *, after_linear: bool = True) -> Net:
    """Take x [batch, seq, 4], a linear to 6 channels, what `build` makes of it, and a linear behind."""
    net = Net(seed=5)
    x = net.input("x", ["batch", "seq", 4])
    value = build(net, net.op("MatMul", x, net.normal(4, D)) if after_linear else x)
    shape = {"part": D // 2}.get(value, D)
    net.output(net.op("MatMul", value, net.normal(shape, 5), result="y"))
    return net


def described(absorption: Absorption) -> tuple[int, tuple[str, ...], list[tuple[str, int, bool]]]:
    writers = [(writer.node.op_type, writer.index, writer.power < 0) for writer in absorption.writers]
    return absorption.width, absorption.path, writers


def bias(net: Net, value: str) -> str:
    return net.op("Add", value, net.vector(D))


def reshape(net: Net, value: str, *shape: int) -> str:
    return net.op("Reshape", value, net.constant(list(shape)))


def gemm(bias_shape: tuple[int, ...] | None, **attributes: Any) -> Build:
    def build(net: Net, value: str) -> str:
        weight = net.normal(D, D)
        more = [] if bias_shape is None else [net.vector(*bias_shape)]
        result = net.op("Gemm", reshape(net, value, -1, D), weight, *more, **attributes)
        return net.op("Reshape", result, net.constant([2, -1, D]))

    return build


WHOLE = [("MatMul", 1, False)]
TAKES: dict[str, tuple[Build, int, list[tuple[str, int, bool]]]] = {
    "a linear takes anything": (lambda _, v: v, D, WHOLE),
    "its bias, added behind": (bias, D, [*WHOLE, ("Add", 1, False)]),
    "its bias, added from the left": (lambda n, v: n.op("Add", n.vector(1, 1, D), v), D, [*WHOLE, ("Add", 0, False)]),
    "a constant is taken from it": (lambda n, v: n.op("Sub", v, n.vector(1, D)), D, [*WHOLE, ("Sub", 1, False)]),
    "it is taken from a constant": (lambda n, v: n.op("Sub", n.vector(D), v), D, [*WHOLE, ("Sub", 0, False)]),
    "Gemm without a bias": (gemm(None), D, [("Gemm", 1, False)]),
    "Gemm turned, scaled, with a bias": (
        gemm((D,), transB=1, alpha=0.5, beta=3.0),
        D,
        [("Gemm", 1, False), ("Gemm", 2, False)],
    ),
    "Gemm with a row as bias": (gemm((1, D)), D, [("Gemm", 1, False), ("Gemm", 2, False)]),
    "Gemm with a matrix as bias": (gemm((6, D), beta=2.0), D, [("Gemm", 1, False), ("Gemm", 2, False)]),
    "one factor for all channels lets everything pass": (lambda n, v: n.op("Mul", v, n.constant(0.3)), D, WHOLE),
    "so does a division by one": (lambda n, v: n.op("Div", v, n.vector(1, 1)), D, WHOLE),
    "a vector takes a scaling": (lambda n, v: n.op("Mul", n.vector(D), v), 1, [("Mul", 0, False)]),
    "a divisor takes the inverse": (lambda n, v: n.op("Div", v, n.vector(D)), 1, [("Div", 1, True)]),
    "Relu lets a scaling pass": (lambda n, v: n.op("Relu", bias(n, v)), 1, [*WHOLE, ("Add", 1, False)]),
    "LeakyRelu too": (lambda n, v: n.op("LeakyRelu", v, alpha=0.2), 1, WHOLE),
    "a value times itself takes a root": (lambda n, v: n.op("Mul", v, v), 1, WHOLE),
    "so does the square of Relu": (
        lambda n, v: n.op("Pow", n.op("Relu", bias(n, v)), n.constant(2.0)),
        1,
        [*WHOLE, ("Add", 1, False)],
    ),
    "a square of squares, and what is squared a constant divides": (
        lambda n, v: n.op(
            "Pow", n.op("Pow", n.op("Div", v, n.vector(D)), n.constant([2])), n.constant(np.array([[1.5]]))
        ),
        1,
        [("Div", 1, True)],
    ),
    "a square beside what is none": (
        lambda n, v: n.op("Add", n.op("Mul", v, v), n.op("MatMul", n.op("Tanh", "x"), n.normal(4, D))),
        1,
        [*WHOLE, *WHOLE],
    ),
    "Identity, Dropout and Cast let everything pass": (
        lambda n, v: n.op(
            "Cast",
            n.op("Cast", n.op("Identity", n.op("Dropout", v)), to=TensorProto.DOUBLE),
            to=TensorProto.FLOAT,
        ),
        D,
        WHOLE,
    ),
    "a gate lets a scaling pass to one branch": (
        lambda n, v: n.op("Mul", n.op("Sigmoid", v), n.op("MatMul", n.op("Tanh", v), n.normal(D, D))),
        1,
        WHOLE,
    ),
    "the branch may be the left one": (
        lambda n, v: n.op("Mul", n.op("MatMul", n.op("Tanh", v), n.normal(D, D)), n.op("Sigmoid", v)),
        1,
        WHOLE,
    ),
    "only the numerator of a quotient": (
        lambda n, v: n.op("Div", n.op("MatMul", n.op("Tanh", v), n.normal(D, D)), n.op("Exp", n.op("Tanh", v))),
        1,
        WHOLE,
    ),
    "both summands": (
        lambda n, v: n.op("Add", v, bias(n, n.op("MatMul", n.op("Tanh", "x"), n.normal(4, D)))),
        D,
        [*WHOLE, *WHOLE, ("Add", 1, False)],
    ),
    "one summand a scaling, so both": (
        lambda n, v: n.op("Add", n.op("Relu", v), n.op("MatMul", n.op("Tanh", "x"), n.normal(4, D))),
        1,
        [*WHOLE, *WHOLE],
    ),
    "LayerNormalization takes a scaling": (
        lambda n, v: n.op("LayerNormalization", v, n.vector(D), n.vector(D)),
        1,
        [("LayerNormalization", 1, False), ("LayerNormalization", 2, False)],
    ),
    "SimplifiedLayerNormalization": (
        lambda n, v: n.op("SimplifiedLayerNormalization", v, n.vector(D), axis=-1),
        1,
        [("SimplifiedLayerNormalization", 1, False)],
    ),
    "SkipLayerNormalization": (
        lambda n, v: n.op(
            "SkipLayerNormalization", v, n.op("Tanh", v), n.vector(D), n.vector(D), domain="com.microsoft"
        ),
        1,
        [("SkipLayerNormalization", 2, False), ("SkipLayerNormalization", 3, False)],
    ),
    "SkipSimplifiedLayerNormalization": (
        lambda n, v: n.op("SkipSimplifiedLayerNormalization", v, n.op("Tanh", v), n.vector(D), domain="com.microsoft"),
        1,
        [("SkipSimplifiedLayerNormalization", 2, False)],
    ),
    "axes come and go": (
        lambda n, v: reshape(
            n, n.op("Squeeze", n.op("Unsqueeze", reshape(n, v, 0, 0, 2, 3), n.constant([2])), n.constant([2])), 0, 0, D
        ),
        D,
        WHOLE,
    ),
    "channels change places": (
        lambda n, v: reshape(n, n.op("Transpose", reshape(n, v, 0, 0, 2, 3), perm=[0, 1, 3, 2]), 0, 0, D),
        D,
        WHOLE,
    ),
    "one factor per head lets a scaling pass": (
        lambda n, v: reshape(n, n.op("Mul", reshape(n, v, 0, 0, 2, 3), n.vector(2, 1)), 0, 0, D),
        1,
        [("Mul", 1, False)],
    ),
    "a constant adds an axis": (
        lambda n, v: reshape(n, n.op("Mul", reshape(n, v, -1, D), n.vector(1, 1, 1)), 2, -1, D),
        D,
        WHOLE,
    ),
    "rows and batch joined and split": (
        lambda n, v: reshape(n, n.op("Flatten", v, axis=2), 2, -1, D),
        D,
        WHOLE,
    ),
    "rows joined to rows": (
        lambda n, v: n.op("Concat", v, n.op("MatMul", n.op("Tanh", "x"), n.normal(4, D)), axis=1),
        D,
        [*WHOLE, *WHOLE],
    ),
}


@pytest.mark.parametrize(("build", "width", "writers"), TAKES.values(), ids=TAKES)
def test_what_each_kind_of_producer_takes(build: Build, width: int, writers: list[tuple[str, int, bool]]) -> None:
    net = net_of(build)
    absorption = absorbable(net)
    assert absorption.reason == ("" if width == D else "only a scaling passes there")
    assert (absorption.width, described(absorption)[2]) == (width, writers)
    assert len(np.unique(absorption.ties)) == D
    assert_equivalent(net, X)


def read_again(net: Net, value: str) -> str:
    net.output(net.op("Exp", net.op("Tanh", value)))
    return value


REFUSES: dict[str, tuple[Build, str]] = {
    "an output of the graph": (Net.output, "also an output"),
    "another reader of the site": (read_again, "also read by Tanh"),
    "another reader further up": (lambda n, v: n.op("Relu", read_again(n, v)), "also read by Tanh"),
    "an output further up": (lambda n, v: n.op("Relu", n.output(v)), "also an output"),
    "a residual stream": (lambda n, v: n.op("Add", v, n.op("Tanh", v)), "also read by"),
    "the value twice": (lambda n, v: n.op("Add", v, v), "reads the value twice"),
    "a power for each channel": (lambda n, v: n.op("Pow", v, n.vector(D)), "not one constant number"),
    "a power that is computed": (lambda n, v: n.op("Pow", v, n.op("ReduceSum", "x")), "not one constant number"),
    "a power of zero": (lambda n, v: n.op("Pow", v, n.constant(0.0)), "not one constant number"),
    "a curve": (lambda n, v: n.op("Gelu", v), "Gelu takes up nothing"),
    "SiLU": (lambda n, v: n.op("Mul", v, n.op("Sigmoid", v)), "no branch"),
    "one number added to all": (lambda n, v: n.op("Add", v, n.constant(0.5)), "adds one number"),
    "a number per row added": (lambda n, v: n.op("Add", v, n.vector(3, 1)), "adds one number"),
    "one number as bias of a Gemm": (gemm((1,)), "broadcast along the channels"),
    "a column as bias of a Gemm": (gemm((6, 1)), "broadcast along the channels"),
    "one channel broadcast to all": (
        lambda n, v: n.op("Add", v, n.op("MatMul", n.op("Tanh", "x"), n.normal(4, 1))),
        "broadcasts along the channels",
    ),
    "a gate of one channel on nothing": (
        lambda n, v: n.op("Mul", n.op("MatMul", "x", n.normal(4, 1)), n.op("Sigmoid", v)),
        "broadcasts along the channels",
    ),
    "the denominator": (
        lambda n, v: n.op("Div", n.op("Exp", n.op("MatMul", "x", n.normal(4, D))), v),
        "Exp takes up nothing",
    ),
    "a constant over the value": (lambda n, v: n.op("Div", n.vector(D), v), "divides by the activation"),
    "a norm over other axes": (
        lambda n, v: n.op("LayerNormalization", v, n.vector(3, D), axis=1),
        "normalizes over more than the last axis",
    ),
    "channels joined to channels": (
        lambda n, v: n.op("Concat", *n.ops("Split", v, n.constant([2, 4]), results=["a", "b"], axis=-1), axis=-1),
        "joins channels",
    ),
    "rows made channels": (
        lambda n, v: n.op("Transpose", reshape(n, v, 2, D, 3), perm=[0, 2, 1]),
        "cannot be followed",
    ),
    "a whole number": (
        lambda n, v: n.op(
            "Cast", n.op("Cast", n.op("Mul", v, n.constant(9.0)), to=TensorProto.INT32), to=TensorProto.FLOAT
        ),
        "casts to a type",
    ),
    "a whole constant": (
        lambda n, v: n.op(
            "Cast",
            n.op("Mul", n.op("Cast", n.op("Tanh", v), to=TensorProto.INT64), n.constant(np.arange(6))),
            to=TensorProto.FLOAT,
        ),
        "is of type INT64",
    ),
    "a value that ends in two places of one node": (
        lambda n, v: n.op("Where", n.op("Greater", v, n.constant(0.0)), v, n.op("Neg", v)),
        "Where takes up nothing",
    ),
    "an operator of another domain with a known name": (
        lambda n, v: n.op("Relu", v, domain="example.com"),
        "Relu takes up nothing",
    ),
    "a graph input": (lambda n, _: n.input("z", ["batch", "seq", D]), "straight from a graph input"),
}


@pytest.mark.parametrize(("build", "reason"), REFUSES.values(), ids=REFUSES)
def test_what_stops_the_walk_and_why(build: Build, reason: str) -> None:
    def six_wide(net: Net, value: str) -> str:
        return build(net, value)

    net = net_of(six_wide)
    absorption = absorbable(net)
    assert (absorption.width, absorption.writers, absorption.caches) == (0, (), ())
    assert reason in absorption.reason


def test_a_reader_of_the_shape_alone_sees_nothing_of_the_numbers() -> None:
    net = net_of(lambda n, v: (n.output(n.op("Cast", n.op("Shape", v), to=TensorProto.FLOAT)), v)[1])
    assert absorbable(net).width == D
    strange = net_of(lambda n, v: (n.output(n.op("Shape", v, domain="example.com")), v)[1])
    assert absorbable(strange).width == 0


def test_a_linear_that_reads_the_site_as_its_bias_too_forbids_a_change() -> None:
    net = Net(seed=1)
    x = net.input("x", [3, 4])
    hidden = net.op("MatMul", x, net.normal(4, 4))
    net.output(net.op("Gemm", hidden, net.normal(4, 4), hidden))
    absorption = absorbable(net)
    assert (absorption.width, absorption.reason.split()[-3:]) == (0, ["the", "value", "twice"])
    assert_equivalent(net, {"x": X["x"][0]})


def test_a_part_of_a_fused_projection_is_written_into_its_slice() -> None:
    net = Net(seed=2)
    x = net.input("x", ["batch", "seq", 4])
    whole = net.op("Add", net.op("MatMul", x, net.normal(4, 9)), net.vector(9))
    parts = net.ops("Split", whole, net.constant([2, 3, 4]), results=["a", "b", "c"], axis=-1)
    for part, width in zip(parts, (2, 3, 4), strict=True):
        net.output(net.op("MatMul", part, net.normal(width, 2)))
    for index, (width, first) in enumerate(((2, 0), (3, 2), (4, 5))):
        absorption = absorbable(net, index + 1)
        assert (absorption.width, absorption.path) == (width, ("Split", "Add", "MatMul"))
        for writer in absorption.writers:
            assert writer.sizes == (9,)
            np.testing.assert_array_equal(writer.position, np.arange(first, first + width))
    assert_equivalent(net, X)


def test_a_split_of_rows_or_into_unknown_lengths_stops_the_walk() -> None:
    def halves(axis: int) -> Build:
        return lambda n, v: n.ops("Split", v, results=["a", "b"], axis=axis, num_outputs=2)[0]

    for axis, reason in ((1, "does not split channels"), (0, "are not the outputs of MatMul")):
        net = net_of(halves(axis))
        net.inputs = []
        net.input("x", [2, 6, 4])  # of known length, so that only the axis speaks against it
        assert reason in absorbable(net).reason
    net = Net()
    whole = net.op("MatMul", net.input("x", ["rows", 4]), net.normal(4, 8))
    net.input("lengths", [2], TensorProto.INT64)
    part = net.ops("Split", whole, "lengths", results=["a", "b"], axis=-1)[0]
    net.output(net.op("MatMul", part, net.normal(4, 2)))
    assert "known number" in absorbable(net).reason


@pytest.mark.parametrize(("order", "width"), [("behind", 3), ("on the spot", 1)])
def test_repeated_channels_are_tied_and_mixed_only_as_the_ties_allow(order: str, width: int) -> None:
    def build(net: Net, value: str) -> str:
        half = net.op("MatMul", value, net.normal(D, 3))
        axis, shape = (2, [1, 1, 2, 3]) if order == "behind" else (3, [1, 1, 3, 2])
        return reshape(
            net, net.op("Expand", net.op("Unsqueeze", half, net.constant([axis])), net.constant(shape)), 0, 0, D
        )

    net = net_of(build)
    absorption = absorbable(net)
    assert absorption.width == width
    np.testing.assert_array_equal(absorption.ties, np.tile(range(3), 2) if width == 3 else np.repeat(range(3), 2))
    assert_equivalent(net, X)


@pytest.mark.parametrize("swapped", [False, True])
def test_branches_with_different_ties_take_nothing(swapped: bool) -> None:
    def build(net: Net, value: str) -> str:
        half = net.op("MatMul", net.op("Tanh", "x"), net.normal(4, 3))
        wide = net.op("Expand", net.op("Unsqueeze", half, net.constant([2])), net.constant([1, 1, 2, 3]))
        branches = [value, reshape(net, wide, 0, 0, D)]
        return net.op("Add", *(branches[::-1] if swapped else branches))

    net = net_of(build)
    assert "ask for different ties" in absorbable(net).reason
    assert_equivalent(net, X)


def test_a_part_of_repeated_channels_would_change_the_other_parts() -> None:
    def build(net: Net, value: str) -> str:
        wide = net.op("Expand", net.op("Unsqueeze", value, net.constant([2])), net.constant([1, 1, 4, D]))
        parts = net.ops("Split", wide, results=["left", "right"], axis=2, num_outputs=2)
        net.output(net.op("Exp", parts[1]))
        return net.op("MatMul", reshape(net, parts[0], 0, 0, 2 * D), net.normal(2 * D, D))

    net = net_of(build)
    assert absorbable(net, 1).width == 0
    assert "cannot be followed" in absorbable(net, 1).reason
    assert_equivalent(net, X)


def test_a_failed_branch_leaves_no_trace() -> None:
    """The left branch goes through attention and fails; the right one ends in an output joined with a graph input."""

    def build(net: Net, value: str) -> str:
        square = net.op("MatMul", net.op("Softmax", value), net.op("Gelu", net.op("Transpose", value, perm=[0, 2, 1])))
        past = net.input("past", ["batch", "past", 3])
        joined = net.op(
            "Concat", past, net.op("MatMul", net.op("Tanh", "x"), net.normal(4, 3)), axis=1, result="present"
        )
        net.output(joined)
        return net.op("MatMul", net.op("Mul", joined, square), net.normal(3, D))

    absorption = absorbable(net_of(build), 2)
    assert (absorption.width, absorption.caches) == (0, ())
    assert "also an output of the graph" in absorption.reason


def test_a_site_of_unknown_rank_is_left_alone() -> None:
    net = Net()
    x = net.input("x", None)
    net.output(net.op("MatMul", net.op("Add", net.op("MatMul", x, net.normal(4, D)), net.vector(D)), net.normal(D, 2)))
    assert "not known" in absorbable(net).reason


def test_the_way_back_ends_before_pythons_stack_does() -> None:
    net = Net()
    value = net.op("MatMul", net.input("x", ["rows", 4]), net.normal(4, D))
    for _ in range(3000):
        value = net.op("Identity", value)
    net.output(net.op("MatMul", net.op("Add", net.vector(D), value), net.normal(D, 2)))
    assert "longer than" in absorbable(net).reason


def test_a_body_that_reads_the_site_from_outside_forbids_a_change() -> None:
    net = net_of(bias)
    body = helper.make_graph(
        [helper.make_node("Exp", [net.nodes[1].output[0]], ["inner"])],
        "body",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    net.output(net.op("If", net.constant(np.array(True)), then_branch=body, else_branch=body))
    assert "also read by Exp" in absorbable(net).reason
    assert_equivalent(net, X)


def test_nan_in_a_weight_is_not_taken_for_a_broken_tie() -> None:
    (writer,) = absorbable(net_of(lambda _, v: v)).writers
    weight = np.full((4, D), np.nan)
    assert np.isnan(fold(writer, weight, lambda rows: rows * 2)).all()


def test_values_without_names_do_no_harm() -> None:
    model = net_of(bias).model()
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = None
    assert absorbable(model).width == D


def test_a_factor_that_treats_tied_channels_differently_is_refused() -> None:
    def build(net: Net, value: str) -> str:
        half = net.op("MatMul", value, net.normal(D, 3))
        wide = net.op("Expand", net.op("Unsqueeze", half, net.constant([2])), net.constant([1, 1, 2, 3]))
        return reshape(net, wide, 0, 0, D)

    (writer,) = absorbable(net_of(build)).writers
    weight = np.random.default_rng(0).normal(size=(D, 3))
    alike = np.array([1, 2, 3, 1, 2, 3.0])
    np.testing.assert_allclose(fold(writer, weight, lambda rows: rows * alike), weight * [1, 2, 3])
    with pytest.raises(ValueError, match="treats tied channels differently at MatMul"):
        fold(writer, weight, lambda rows: rows * np.arange(1, 7))
