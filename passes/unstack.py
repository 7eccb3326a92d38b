"""Take a product with a stack of matrices apart, as experts that all rows pass through are exported.

    MatMul(x [E, rows, K], W [E, K, N])  ->  Concat over e of Unsqueeze(MatMul(Gather(x, e), W[e]))

ONNX Runtime has 4-bit kernels for matrices only. The linears are called after the node, with the number of the matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from catonnx.graph.constants import constant_shape, constant_source, constant_type
from catonnx.graph.edits import Names, add_constant, set_folded
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import Selection


@dataclasses.dataclass(frozen=True)
class Unstack(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        selection: Which linears will be rounded; others are left alone.
    """

    selection: Selection = dataclasses.field(default_factory=Selection)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every MatMul of a value and a constant that hold as many matrices."""
        stacks = [node for node in model.graph if len(_weight_shape(node)) == 3]
        stacks = [node for node in stacks if not self.selection.reason_against(node.name or "")]
        if not stacks:
            return ir.passes.PassResult(model, modified=False)
        shapes, names = Shapes(model.graph), Names(model.graph)
        stacks = [node for node in stacks if _holds_as_many(shapes, node)]
        for node in stacks:
            _unstack(model.graph, names, node)
        if stacks:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(stacks))


def _weight_shape(node: ir.Node) -> tuple[int, ...]:
    return (constant_shape(node.inputs[1]) or ()) if node.op_type == "MatMul" and not node.domain else ()


def _holds_as_many(shapes: Shapes, node: ir.Node) -> bool:
    """Whether the left operand has a matrix for each of the right one, and is not constant itself."""
    value, count = node.inputs[0], _weight_shape(node)[0]
    shape = None if value is None or constant_shape(value) is not None else shapes[value]
    dtype = constant_type(node.inputs[1])
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    return count > 1 and dtype in floats and shape is not None and len(shape) == 3 and shape[0].value == count


def _unstack(graph: ir.Graph, names: Names, node: ir.Node) -> None:
    value, weight, (count, *shape) = node.inputs[0], node.inputs[1], _weight_shape(node)
    source = constant_source(weight)
    assert value is not None
    assert weight is not None
    assert source is not None
    first = add_constant(graph, names, f"{node.name}/axis", ir.tensor([0], dtype=ir.DataType.INT64))
    new: list[ir.Node] = []

    def add(operator: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Value:
        made = ir.node(operator, inputs, attributes=attributes, name=names.new(name))
        made.outputs[0].name = names.new(f"{made.name}_output")
        made.outputs[0].type = value.type
        new.append(made)
        return made.outputs[0]

    parts = []
    for number in range(count):
        place = add_constant(graph, names, f"{node.name}/{number}/place", ir.tensor(number, dtype=ir.DataType.INT64))
        rows = add("Gather", [value, place], f"{node.name}/{number}/rows", axis=0)
        product = add("MatMul", [rows, weight], f"{node.name}/{number}")
        dtype, wanted = constant_type(weight), f"{weight.name}_{number}"
        set_folded(graph, names, new[-1], 1, _matrix(source, number), shape, dtype, wanted)
        parts.append(add("Unsqueeze", [product, first], f"{node.name}/{number}/unsqueeze"))
    joined = add("Concat", parts, f"{node.name}/concat", axis=0)
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, [joined])


def _matrix(source: Callable[[], np.ndarray], number: int) -> Callable[[], np.ndarray]:
    return lambda: source()[number].astype(np.float64)
