"""Graphs inside of nodes: found, named apart, and rid of what nothing reads."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from catonnx.graph.bodies import bodies, holders, make_names_unique, remove_unused_initializers
from tests.graph.builder import Net, run

X = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


def body(inner: onnx.GraphProto | None = None) -> onnx.GraphProto:
    """Return a branch that multiplies x by 2, or by what another branch inside of it gives."""
    tensor = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    unused = helper.make_tensor("unused", TensorProto.FLOAT, [1], [3.0])
    nodes, factor = [], "two"
    if inner is not None:
        factor = "inner"
        nodes.append(helper.make_node("If", ["flag_1"], [factor], "if", then_branch=inner, else_branch=inner))
    nodes.append(helper.make_node("Mul", ["x", factor], ["product"], "mul"))
    output = helper.make_tensor_value_info("product", TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "body", [], [output], [tensor, unused])


def nested() -> ir.Model:
    """Return an If whose branches hold another, all of them with the same names."""
    net = Net()
    net.input("x", [2, 4])
    flag = net.constant(np.array(True), "flag")
    assert flag == "flag_1"
    net.nodes.append(helper.make_node("Relu", ["x"], ["relu"], "mul"))
    net.nodes.append(helper.make_node("If", [flag], ["y"], "if", then_branch=body(body()), else_branch=body(body())))
    net.output("y")
    return net.model()


def test_every_body_and_the_node_that_holds_it() -> None:
    graph = nested().graph
    outer = graph[-1]
    found = holders(graph)
    assert len(found) == 6
    assert [holder for part, holder in found.items() if part in set(bodies(outer))] == [outer, outer]
    assert all(part in set(bodies(holder)) for part, holder in found.items())


def test_names_in_bodies_become_unique_and_those_of_the_main_graph_stay() -> None:
    model = nested()
    before = run(model, X)["y"]
    main = [node.name for node in model.graph], [value.name for node in model.graph for value in node.outputs]
    make_names_unique(model.graph)
    assert main == ([node.name for node in model.graph], [value.name for node in model.graph for value in node.outputs])
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    assert len({node.name for node in nodes}) == len(nodes)
    parts = (model.graph, *model.graph.subgraphs())
    values = [value.name for part in parts for value in part.initializers.values()]
    values += [value.name for node in nodes for value in node.outputs]
    assert len(set(values)) == len(values)
    assert all(name == value.name for part in parts for name, value in part.initializers.items())
    np.testing.assert_array_equal(run(model, X)["y"], before)


def test_initializers_of_bodies_that_nothing_reads_go() -> None:
    model = nested()
    before = run(model, X)["y"]
    remove_unused_initializers(model.graph)
    left = [list(part.initializers) for part in model.graph.subgraphs()]
    assert sorted(left) == [[], [], ["two"], ["two"], ["two"], ["two"]]
    np.testing.assert_array_equal(run(model, X)["y"], before)
