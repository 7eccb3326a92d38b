"""What stays in float32: by structure, by what was measured, and no more than that."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from catonnx.graph.precision import BEYOND, NO_KERNEL, POSITION, SUM, Precision
from models.net import Net

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def kept(net: Net, ranges: Mapping[str, float] | None = None) -> dict[str, list[str]]:
    """Return reason -> operators that stay in float32, sorted."""
    reasons: dict[str, list[str]] = {}
    for node, reason in Precision(net.model().graph, ranges).kept.items():
        reasons.setdefault(reason, []).append(node.op_type)
    return {reason: sorted(operators) for reason, operators in reasons.items()}


def linear(net: Net, value: str, result: str | None = None) -> str:
    return net.op("MatMul", value, net.normal(8, 8), result=result)


def with_input() -> tuple[Net, str]:
    net = Net()
    return net, linear(net, net.input("x", ["n", 8]))


def rms_norm(net: Net, x: str) -> str:
    squares = net.op("Pow", x, net.constant(2.0))
    mean = net.op("ReduceMean", squares, net.constant([-1]))
    root = net.op("Sqrt", net.op("Add", mean, net.constant(1e-6)))
    return net.op("Mul", net.op("Mul", x, net.op("Reciprocal", root)), net.vector(8))


def layer_norm(net: Net, x: str) -> str:
    centred = net.op("Sub", x, net.op("ReduceMean", x, net.constant([-1])))
    variance = net.op("ReduceMean", net.op("Mul", centred, centred), net.constant([-1]))
    root = net.op("Sqrt", net.op("Add", variance, net.constant(1e-5)))
    return net.op("Add", net.op("Mul", net.op("Div", centred, root), net.vector(8)), net.vector(8))


def softmax(net: Net, x: str) -> str:
    raised = net.op("Exp", net.op("Sub", x, net.op("ReduceMax", x, net.constant([-1]))))
    return net.op("Div", raised, net.op("ReduceSum", raised, net.constant([-1])))


def normalized(net: Net, x: str) -> str:
    length = net.op("ReduceL2", x, net.constant([-1]))
    return net.op("Div", x, net.op("Max", length, net.constant(1e-12)))


def gelu(net: Net, x: str) -> str:
    cube = net.op("Mul", net.op("Pow", x, net.constant(3.0)), net.constant(0.044715))
    inner = net.op("Tanh", net.op("Mul", net.op("Add", x, cube), net.constant(0.79788)))
    return net.op("Mul", net.op("Mul", x, net.constant(0.5)), net.op("Add", inner, net.constant(1.0)))


BY_STRUCTURE: dict[str, tuple[Callable[[Net, str], str], list[str]]] = {
    # The product with the norm's own scale is none of it.
    "RMSNorm": (rms_norm, ["Add", "Mul", "Pow", "Reciprocal", "ReduceMean", "Sqrt"]),
    "LayerNorm": (layer_norm, ["Add", "Div", "Mul", "ReduceMean", "ReduceMean", "Sqrt", "Sub"]),
    "softmax": (softmax, ["Div", "Exp", "ReduceSum"]),
    "a vector of length 1": (normalized, ["Div", "Max", "ReduceL2"]),
    "GELU": (gelu, []),
    "activations": (lambda net, x: net.op("Mul", x, net.op("Sigmoid", x)), []),
    "a residual": (lambda net, x: net.op("Add", x, linear(net, net.op("Relu", x))), []),
}


@pytest.mark.parametrize(("build", "expected"), BY_STRUCTURE.values(), ids=BY_STRUCTURE)
def test_by_structure(build: Callable[[Net, str], str], expected: list[str]) -> None:
    net, x = with_input()
    net.output(linear(net, build(net, x), "y"))
    assert kept(net) == ({SUM: expected} if expected else {})


def test_angles_are_float32_from_the_positions_on() -> None:
    net, x = with_input()
    positions = net.op("Cast", net.input("positions", ["n", 1], TensorProto.INT64), to=TensorProto.FLOAT)
    angles = net.op("MatMul", positions, net.normal(1, 8))
    turned = net.op("Mul", x, net.op("Cos", angles))
    net.output(linear(net, turned, "y"))
    assert kept(net) == {POSITION: ["Cast", "Cos", "MatMul"]}


def test_angles_from_a_table_are_numbers_like_others() -> None:
    net, x = with_input()
    table = net.op("Gather", net.normal(64, 8), net.input("positions", ["n"], TensorProto.INT64))
    net.output(linear(net, net.op("Mul", x, table), "y"))
    assert kept(net) == {}


def test_masks_become_float16_and_what_they_are_computed_from_does_not_matter() -> None:
    net, x = with_input()
    mask = net.op("Cast", net.input("mask", ["n", 8], TensorProto.INT64), to=TensorProto.FLOAT)
    hidden = net.op("Mul", net.op("Sub", net.constant(1.0), mask), net.constant(-3.4e38))
    net.output(linear(net, net.op("Softmax", net.op("Add", x, hidden)), "y"))
    assert kept(net) == {}


def test_a_mask_that_is_counted_too_is_cast_for_the_scores() -> None:
    net, x = with_input()
    mask = net.op("Cast", net.input("mask", ["n", 8], TensorProto.INT64), to=TensorProto.FLOAT)
    pooled = net.op("Div", net.op("ReduceSum", net.op("Mul", x, mask)), net.op("ReduceSum", mask))
    net.output(net.op("Identity", pooled, result="y"))
    assert kept(net) == {SUM: ["Div", "Identity", "ReduceSum", "ReduceSum"], POSITION: ["Cast"]}


def test_an_index_that_is_computed_in_float_stays_exact() -> None:
    net, x = with_input()
    size = net.op("Cast", net.op("Shape", x), to=TensorProto.FLOAT)
    half = net.op("Cast", net.op("Floor", net.op("Mul", size, net.constant(0.5))), to=TensorProto.INT64)
    net.output(net.op("Reshape", linear(net, x), net.op("Mul", half, net.constant([2, 2])), result="y"))
    assert kept(net) == {POSITION: ["Cast", "Cast", "Floor", "Mul"]}


def test_what_was_measured_near_the_largest_number_stays_with_all_that_reads_it() -> None:
    net, x = with_input()
    stream = net.op("Add", x, linear(net, x), result="stream")
    net.output(linear(net, net.op("Relu", stream, result="relu"), "y"))
    assert kept(net, {"stream": 32000.0}) == {}
    assert kept(net, {"stream": 33000.0}) == {BEYOND: ["Add", "Relu"]}
    assert kept(net, {"stream": 33000.0, "relu": 33000.0}) == {BEYOND: ["Add", "MatMul", "Relu"]}


def test_a_square_that_was_measured_counts_as_part_of_its_norm() -> None:
    net, x = with_input()
    net.output(linear(net, rms_norm(net, x), "y"))
    square = next(node.output[0] for node in net.nodes if node.op_type == "Pow")
    assert kept(net, {square: 1e6}) == {SUM: BY_STRUCTURE["RMSNorm"][1]}


@pytest.mark.parametrize(
    ("operator", "number", "expected"),
    [
        ("Mul", 1e5, {BEYOND: ["Mul"]}),
        ("Add", 1e5, {BEYOND: ["Add"]}),
        ("Add", -1e9, {}),  # stands for infinity, see BoundMasks
        ("Add", 1e-12, {BEYOND: ["Add"]}),
        ("Add", 1e-4, {}),
        ("Mul", 0.0, {}),
        ("Mul", np.inf, {}),
    ],
)
def test_constants_that_float16_does_not_hold(operator: str, number: float, expected: dict[str, list[str]]) -> None:
    net, x = with_input()
    net.output(linear(net, net.op(operator, x, net.constant(number)), "y"))
    assert kept(net) == expected


@pytest.mark.parametrize(("reader", "before"), [("Div", ["Add", "Div", "Softmax"]), ("Log", ["Add", "Log", "Softmax"])])
def test_what_an_epsilon_guards_stays_with_it(reader: str, before: list[str]) -> None:
    net, x = with_input()
    guarded = net.op("Add", net.op("Softmax", x), net.constant(1e-9))
    net.output(linear(net, net.op(reader, *([x] if reader == "Div" else []), guarded), "y"))
    assert sorted(operator for operators in kept(net).values() for operator in operators) == before


def test_a_logarithm_reads_no_zero_that_float16_made() -> None:
    net, x = with_input()
    net.output(linear(net, net.op("Log", net.op("Sigmoid", x)), "y"))
    assert kept(net) == {SUM: ["Log", "Sigmoid"]}


@pytest.mark.parametrize(("scale", "expected"), [(1e-6, {BEYOND: ["DequantizeLinear"]}), (1e-3, {})])
def test_scales_that_float16_would_round_stay(scale: float, expected: dict[str, list[str]]) -> None:
    net, x = with_input()
    codes, scales = net.constant(np.ones((8, 8), np.int8)), net.constant(np.array([1e-3] * 7 + [scale]))
    weight = net.op("DequantizeLinear", codes, scales, axis=1)
    net.output(net.op("MatMul", net.op("Mul", x, weight), net.normal(8, 8), result="y"))
    assert kept(net) == expected


def test_a_distance_between_positions_is_exact() -> None:
    net, x = with_input()
    positions = net.op("Cast", net.input("positions", ["n", 1], TensorProto.INT64), to=TensorProto.FLOAT)
    last = net.op("ReduceMax", positions, net.constant([0]))
    net.output(linear(net, net.op("Softmax", net.op("Add", x, net.op("Sub", positions, last))), "y"))
    assert kept(net) == {POSITION: ["Cast", "ReduceMax", "Sub"]}


def coded(net: Net, x: str) -> str:
    codes, scale, zero = net.ops("DynamicQuantizeLinear", x, results=["q", "s", "z"])
    weight = net.constant(np.ones((8, 8), np.int8))
    product = net.op("MatMulInteger", codes, weight, zero)
    return net.op("Mul", net.op("Cast", product, to=TensorProto.FLOAT), scale)


def doubled(net: Net, x: str) -> str:
    return net.op("Cast", net.op("Exp", net.op("Cast", x, to=TensorProto.DOUBLE)), to=TensorProto.FLOAT)


@pytest.mark.parametrize("build", [coded, doubled])
def test_what_comes_back_from_another_type_is_no_number(build: Callable[[Net, str], str]) -> None:
    """It grows with the activations, and its Cast is measured as they are."""
    net, x = with_input()
    net.output(linear(net, build(net, x), "y"))
    graph = net.model().graph
    last = [node for node in graph if node.op_type == "Cast"][-1].outputs[0]
    assert not Precision(graph).is_number(last)
    assert "Cast" in kept(net, {str(last.name): 40000.0})[BEYOND]


def test_a_number_beyond_float16_stays() -> None:
    net, x = with_input()
    time = net.op("Cast", net.input("time", ["n", 1], TensorProto.INT64), to=TensorProto.FLOAT)
    net.output(linear(net, net.op("Mul", x, time), "y"))
    assert kept(net, {time: 60000.0}) == {}
    assert kept(net, {time: 70000.0}) == {BEYOND: ["Mul"], POSITION: ["Cast"]}


def test_branches_compute_what_was_measured_behind_their_if() -> None:
    net, x = with_input()
    flag, branches = net.input("flag", [], TensorProto.BOOL), [net.body(), net.body()]
    for branch in branches:
        branch.output(branch.op("Relu", linear(branch, x)))
    chosen = net.op("If", flag, then_branch=branches[0].graph(), else_branch=branches[1].graph())
    net.output(linear(net, net.op("Relu", chosen), "y"))
    assert kept(net, {chosen: 32000.0}) == {}
    assert kept(net, {chosen: 33000.0}) == {BEYOND: ["If", "Relu", "Relu", "Relu"]}


def test_a_function_that_is_given_out_is_an_activation() -> None:
    net, x = with_input()
    net.output(net.op("ReduceSum", net.output(net.op("Exp", x))))
    assert kept(net) == {SUM: ["ReduceSum"]}


def test_what_a_table_holds_is_no_number_like_a_mask() -> None:
    net, x = with_input()
    row = net.op("Gather", net.normal(64, 8), net.input("positions", ["n"], TensorProto.INT64))
    net.output(net.op("Mul", x, row, result="y"))
    graph = net.model().graph
    assert not Precision(graph).is_number(next(node.outputs[0] for node in graph if node.op_type == "Gather"))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_model_with_either_half_type_is_mixed(kind: int) -> None:
    net, x = with_input()
    net.output(linear(net, x, "y"))
    assert not Precision(net.model().graph).mixed
    net.output(net.op("Cast", net.op("Cast", x, to=kind), to=TensorProto.FLOAT))
    assert Precision(net.model().graph).mixed


def test_operators_without_float16_stay() -> None:
    net, x = with_input()
    own = net.op("Invented", x, domain="some.where")
    codes, scale, zero = net.ops("DynamicQuantizeLinear", own, results=["q", "s", "z"])
    net.output(linear(net, net.op("DequantizeLinear", codes, scale, zero), "y"))
    assert kept(net) == {NO_KERNEL: ["DynamicQuantizeLinear", "Invented"]}


def test_a_sequence_holds_what_it_was_made_for() -> None:
    net, x = with_input()
    sequence = net.op("SequenceConstruct", x)
    net.output(linear(net, net.op("SequenceAt", sequence, net.constant(np.array(0))), "y"))
    assert kept(net) == {NO_KERNEL: ["SequenceAt", "SequenceConstruct"]}


def test_types_behind_if_follow_from_its_branches() -> None:
    net, x = with_input()
    flag = net.input("flag", [], TensorProto.BOOL)
    branches = []
    for steps in (1, 2):
        body = net.body()
        value = x
        for _ in range(steps):
            value = linear(body, value)
        body.output(value)
        branches.append(body.graph())
    chosen = net.op("If", flag, then_branch=branches[0], else_branch=branches[1])
    net.output(linear(net, chosen, "y"))
    graph = net.model().graph
    precision = Precision(graph)
    assert precision.kept == {}
    values = {value.name: value for node in graph for value in node.outputs}
    assert precision.made(values[chosen]) == HALF


def test_frequencies_that_a_branch_computes_stay_exact() -> None:
    net, x = with_input()
    flag = net.input("flag", [], TensorProto.BOOL)
    bodies = [net.body(), net.body()]
    for body in bodies:
        body.output(body.op("Reciprocal", body.normal(1, 8)))
    frequencies = net.op("If", flag, then_branch=bodies[0].graph(), else_branch=bodies[1].graph())
    positions = net.op("Cast", net.input("positions", ["n", 1], TensorProto.INT64), to=TensorProto.FLOAT)
    net.output(linear(net, net.op("Mul", x, net.op("Cos", net.op("MatMul", positions, frequencies))), "y"))
    graph = net.model().graph
    precision = Precision(graph)
    assert sorted(node.op_type for node in precision.kept) == [*"Cast Cos If MatMul Reciprocal Reciprocal".split()]
    values = {value.name: value for node in graph for value in node.outputs}
    assert precision.made(values[frequencies]) == FLOAT


def test_a_loop_is_fed_and_gives_float32_but_computes_in_float16() -> None:
    net, x = with_input()
    body = net.body()
    turn = body.input(body.name("turn"), [], TensorProto.INT64)
    again = body.input(body.name("again"), [], TensorProto.BOOL)
    state = body.input(body.name("state"), ["n", 8])
    body.outputs += [body.op("Identity", again), linear(body, body.op("Relu", state))]
    graph = body.graph()
    graph.output[0].CopyFrom(helper.make_tensor_value_info(graph.output[0].name, TensorProto.BOOL, []))
    assert turn
    looped = net.op("Loop", net.input("n", [], TensorProto.INT64), "", x, body=graph)
    net.output(linear(net, looped, "y"))
    model = net.model()
    precision = Precision(model.graph)
    assert precision.kept == {}
    made = {value.name: precision.made(value) for node in model.graph for value in node.outputs}
    assert made[looped] == FLOAT
    inner = {node.op_type: precision.made(node.outputs[0]) for node in ir.traversal.RecursiveGraphIterator(model.graph)}
    assert inner["Relu"] == HALF
    large = Precision(model.graph, {looped: 33000.0})
    assert {node.op_type for node in large.kept} == {"Loop", "MatMul"}, "what a body returns was measured behind it"


def test_what_a_loop_gives_out_large_is_large_inside() -> None:
    net, x = with_input()
    body = net.body()
    body.input(body.name("turn"), [], TensorProto.INT64)
    again = body.input(body.name("again"), [], TensorProto.BOOL)
    state = body.input(body.name("state"), ["n", 8])
    body.outputs += [body.op("Identity", again), body.op("Mul", body.op("Relu", state), body.constant(2.0))]
    graph = body.graph()
    graph.output[0].CopyFrom(helper.make_tensor_value_info(graph.output[0].name, TensorProto.BOOL, []))
    net.output(net.op("Loop", net.constant(np.array(9)), "", x, body=graph, result="y"))
    assert kept(net) == {}
    assert kept(net, {"y": 60000.0})[BEYOND] == ["Loop", "Mul"]
