"""Constants change lazily and only for the node that asked; names stay unique."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from catonnx.graph.edits import Names, Step, add_constant, float64_of, insert_before, insert_behind, set_folded
from tests.graph.builder import Net, run

X = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


def shared_weight() -> ir.Model:
    """Two products with one weight."""
    net = Net()
    x, w = net.input("x", ["rows", 4]), net.normal(4, 4)
    for name in ("a", "b"):
        net.output(net.op("MatMul", x, w, result=name))
    return net.model()


def test_a_fold_changes_the_constant_of_one_reader_only() -> None:
    model = shared_weight()
    before = run(model, X)
    first = model.graph[0]
    weight = first.inputs[1]
    assert weight is not None
    original = float64_of(weight)
    set_folded(model.graph, Names(model.graph), first, 1, lambda: original() * 2, (4, 4), ir.DataType.FLOAT, "twice")
    after = run(model, X)
    np.testing.assert_array_equal(after["a"], 2 * before["a"])
    np.testing.assert_array_equal(after["b"], before["b"])


def test_folds_of_one_constant_compose_in_float64_and_are_rounded_once() -> None:
    model = shared_weight()
    node, names = model.graph[0], Names(model.graph)
    tiny = 2.0**-30  # lost beside 1 in float32
    first = node.inputs[1]
    assert first is not None
    set_folded(model.graph, names, node, 1, lambda: np.full((4, 4), 1 + tiny), (4, 4), ir.DataType.FLOAT, "fold")
    second = node.inputs[1]
    assert second is not None
    original = float64_of(second)
    set_folded(model.graph, names, node, 1, lambda: original() - 1, (4, 4), ir.DataType.FLOAT, "fold")
    last = node.inputs[1]
    assert last is not None
    assert last.const_value is not None
    np.testing.assert_array_equal(last.const_value.numpy(), np.full((4, 4), tiny, np.float32))


def test_new_names_avoid_those_of_values_nodes_and_bodies() -> None:
    net = Net()
    net.input("x", ["rows", 4])
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "inner_constant"], ["inner_value"], name="inner_node")],
        "body",
        [],
        [helper.make_tensor_value_info("inner_value", TensorProto.FLOAT, None)],
        [helper.make_tensor("inner_constant", TensorProto.FLOAT, [1], [1.0])],
    )
    net.output(net.op("If", net.constant(np.array(True), "flag"), then_branch=body, else_branch=body))
    graph = net.model().graph
    names = Names(graph)
    taken = ["x", "inner_node", "inner_value", "inner_constant", str(graph[0].name), str(graph.outputs[0].name)]
    assert [names.new(name) for name in taken] == [f"{name}_2" for name in taken]
    assert (names.new("free"), names.new("free"), names.new("x")) == ("free", "free_2", "x_3")


def test_a_constant_never_displaces_another_of_the_same_name() -> None:
    model = shared_weight()
    names = Names(model.graph)
    first, second = (add_constant(model.graph, names, "c", np.full(2, n, np.float32)) for n in (1, 2))
    assert (first.name, second.name) == ("c", "c_2")
    assert model.graph.initializers["c"] is first


def test_a_chain_stands_between_a_value_and_the_first_input_of_its_readers_only() -> None:
    net = Net()
    x, w = net.input("x", [4, 4]), net.constant(np.eye(4))
    net.output(net.op("Gemm", x, w, x, result="y"))
    net.output(net.op("Relu", x, result="z"))
    model = net.model()
    names = Names(model.graph)
    two = add_constant(model.graph, names, "two", np.array(2, np.float32))
    steps = [Step("double", "Mul", (None, two), {}), Step("double", "Mul", (two, None), {})]
    insert_before(model.graph, names, [model.graph[0]], model.graph.inputs[0], steps)
    array = np.arange(16, dtype=np.float32).reshape(4, 4)
    outputs = run(model, {"x": array})
    np.testing.assert_array_equal(outputs["y"], 4 * array + array)
    np.testing.assert_array_equal(outputs["z"], array)
    assert [node.op_type for node in model.graph] == ["Mul", "Mul", "Gemm", "Relu"]
    assert len({node.name for node in model.graph}) == 4


def test_a_chain_behind_a_node_takes_over_its_readers_its_name_and_its_place_as_an_output() -> None:
    net = Net()
    x = net.input("x", [4, 4])
    net.output(net.op("Identity", x, result="y"))
    net.output(net.op("Relu", "y", result="z"))
    model = net.model()
    names = Names(model.graph)
    two = add_constant(model.graph, names, "two", np.array(2, np.float32))
    steps = [Step("double", "Mul", (None, two), {}), Step("subtract", "Sub", (two, None), {})]
    insert_behind(names, model.graph[0], steps)
    array = np.arange(16, dtype=np.float32).reshape(4, 4)
    outputs = run(model, {"x": array})
    np.testing.assert_array_equal(outputs["y"], 2 - 2 * array)
    np.testing.assert_array_equal(outputs["z"], np.maximum(2 - 2 * array, 0))
    assert [node.op_type for node in model.graph] == ["Identity", "Mul", "Sub", "Relu"]
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
