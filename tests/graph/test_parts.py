"""A model in parts: few constants in each, little handed over, nothing cut that cannot be."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from catonnx.graph.parts import in_parts
from catonnx.graph.stages import Stage
from tests.graph.builder import Net


def _constants(graph: ir.Graph) -> set[str]:
    return {str(value.name) for value in graph.initializers.values()}


def _float(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _held(part: Stage) -> set[str]:
    """Return the names of the constants in a part as a model of its own."""
    return _constants(part.model({str(value.name): np.zeros((1, 16), np.float32) for value in part.inputs}).graph)


def _layers(count: int = 6, width: int = 16) -> Net:
    """Return layers that each hand over one value, and read three inside."""
    net = Net()
    x = net.input("x", ["n", width])
    for _ in range(count):
        left, right = (net.op("MatMul", x, net.normal(width, width)) for _ in range(2))
        x = net.op("Add", x, net.op("Mul", net.op("Sigmoid", left), right))
    net.outputs.append(x)
    return net


def test_each_part_holds_no_more_than_the_limit_and_ends_between_two_layers() -> None:
    net = _layers()
    model = net.model()
    for per_part in (1, 2, 3):
        parts = in_parts(model, limit=2 * per_part * 16 * 16 * 4)
        assert len(parts) == 6 // per_part
        assert [len(part.outputs) for part in parts] == [1] * len(parts)
        assert [part.number for part in parts] == list(range(len(parts)))
        held = [
            _constants(part.model({str(v.name): np.zeros((1, 16), np.float32) for v in part.inputs}).graph)
            for part in parts
        ]
        assert [len(names) for names in held] == [2 * per_part] * len(parts)
        assert set().union(*held) == _constants(model.graph)


def test_a_small_model_stays_whole() -> None:
    model = _layers().model()
    assert in_parts(model) == ()
    assert in_parts(model, limit=12 * 16 * 16 * 4) == ()
    assert len(in_parts(model, limit=12 * 16 * 16 * 4 - 1)) == 2


def test_a_constant_that_several_layers_read_is_in_each_part() -> None:
    net = Net()
    x, shared = net.input("x", ["n", 8]), net.op("Transpose", net.normal(8, 8))
    for _ in range(4):
        x = net.op("MatMul", net.op("MatMul", x, net.normal(8, 8)), shared)
    net.outputs.append(x)
    parts = in_parts(net.model(), limit=2 * 8 * 8 * 4)
    assert len(parts) == 4
    assert all(sum(node.op_type == "Transpose" for node in part.nodes) == 1 for part in parts)
    assert all(len(part.inputs) == 1 for part in parts)


def test_one_node_with_more_than_the_limit_is_alone() -> None:
    net = Net()
    x = net.input("x", ["n", 8])
    for _ in range(3):
        x = net.op("MatMul", x, net.normal(8, 8))
    net.outputs.append(x)
    assert [len(part.nodes) for part in in_parts(net.model(), limit=1)] == [1, 1, 1]


def test_what_a_body_reads_counts_for_its_node_and_is_handed_over() -> None:
    net = _layers(2)
    condition, weight = net.input("flag", [], TensorProto.BOOL), net.normal(16, 16)
    x = net.outputs.pop()
    then = helper.make_graph([helper.make_node("MatMul", [x, weight], ["then"])], "then", [], [_float("then")])
    other = helper.make_graph([helper.make_node("Neg", [x], ["other"])], "other", [], [_float("other")])
    net.outputs.append(net.op("If", condition, then_branch=then, else_branch=other))
    parts = in_parts(net.model(), limit=2 * 16 * 16 * 4)
    assert [part.nodes[-1].op_type for part in parts] == ["Add", "Add", "If"]
    assert {value.name for value in parts[-1].inputs} == {"flag", x}
    assert {value.name for value in parts[-1].outputs} == set(net.outputs)


@pytest.mark.parametrize("kind", ["a sequence", "a constant output"])
def test_what_cannot_be_cut_stays_whole(kind: str) -> None:
    net = _layers()
    if kind == "a sequence":
        net.outputs.append(net.op("ConcatFromSequence", net.op("SequenceConstruct", net.outputs.pop()), axis=0))
    else:
        net.outputs.append(net.op("Transpose", net.normal(4, 4)))
    assert in_parts(net.model(), limit=1) == ()
