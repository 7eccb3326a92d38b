"""Nodes that move rows of channels about and do nothing to the channels: where the channel axis goes.

Reshape and its like, Transpose, Cast, Concat, Expand, Gather and Slice of rows, and sums over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import onnx_ir as ir

from catonnx.graph import dims
from catonnx.graph.constants import FLOATS
from catonnx.graph.shapes import Shapes

Move: TypeAlias = Callable[[Shapes, ir.Node, int], "int | None"]

SUMS = frozenset({"ReduceMean", "ReduceSum"})
"""Reductions that are linear."""


def moved_forward(shapes: Shapes, node: ir.Node, axis: int) -> int | None:
    """Return the channel axis of a node's first output, given that of its data; None if it moves more than rows."""
    rule = None if node.domain else _FORWARD.get(node.op_type)
    return None if rule is None else rule(shapes, node, axis)


def moved_back(shapes: Shapes, node: ir.Node, axis: int) -> int | None:
    """Return the channel axis of a node's data, given that of its first output; None if it moves more than rows."""
    data = node.inputs[0] if node.inputs else None
    shape = None if data is None else shapes[data]
    # An axis goes to one place only, so the way back is the one axis that comes here.
    axes = range(0 if shape is None else len(shape))
    return next((before for before in axes if moved_forward(shapes, node, before) == axis), None)


def _rank(shapes: Shapes, value: ir.Value | None) -> int | None:
    shape = None if value is None else shapes[value]
    return None if shape is None else len(shape)


def _same(_: Shapes, __: ir.Node, axis: int) -> int | None:
    return axis


def _cast(_: Shapes, node: ir.Node, axis: int) -> int | None:
    return axis if ir.DataType(node.attributes["to"].as_int()) in FLOATS else None


def _transpose(shapes: Shapes, node: ir.Node, axis: int) -> int | None:
    attribute, rank = node.attributes.get("perm"), _rank(shapes, node.inputs[0])
    if rank is None:
        return None
    order = list(reversed(range(rank))) if attribute is None else list(attribute.as_ints())
    return order.index(axis)


def _reshape(shapes: Shapes, node: ir.Node, axis: int) -> int | None:
    before, after = (None if value is None else shapes[value] for value in (node.inputs[0], node.outputs[0]))
    if before is None or after is None:
        return None
    if before[: axis + 1] == after[: axis + 1]:
        return axis
    for left, right in dims.groups(before, after):
        if axis in left:
            there = [index for index in right if after[index] == before[axis]]
            alone = all(before[index].value == 1 for index in left if index != axis)
            if len(there) == 1 and alone and all(after[index].value == 1 for index in right if index not in there):
                return there[0]
    return None


def _concat(shapes: Shapes, node: ir.Node, axis: int) -> int | None:
    rank = _rank(shapes, node.outputs[0])
    return None if rank is None or node.attributes["axis"].as_int() % rank == axis else axis


def _expand(shapes: Shapes, node: ir.Node, axis: int) -> int | None:
    before, after = _rank(shapes, node.inputs[0]), _rank(shapes, node.outputs[0])
    return None if before is None or after is None else axis + after - before


def _gather(shapes: Shapes, node: ir.Node, axis: int) -> int | None:
    rank, indices = _rank(shapes, node.inputs[0]), _rank(shapes, node.inputs[1])
    if rank is None or indices is None:
        return None
    along = node.attributes.get_int("axis", 0) % rank
    if along == axis:
        return None
    return axis if axis < along else axis - 1 + indices


def _slice(shapes: Shapes, node: ir.Node, axis: int) -> int | None:
    rank = _rank(shapes, node.inputs[0])
    named = shapes.contents(node.inputs[3]) if len(node.inputs) > 3 else None
    if rank is None or named is None or any(dim is None or dim.value is None for dim in named):
        return None
    return None if axis in {dim.coefficient % rank for dim in named if dim is not None} else axis


def _sum(shapes: Shapes, node: ir.Node, axis: int) -> int | None:
    axes = reduced_axes(shapes, node)
    if axes is None or axis in axes:
        return None
    return axis if node.attributes.get_int("keepdims", 1) else axis - sum(other < axis for other in axes)


def reduced_axes(shapes: Shapes, node: ir.Node) -> list[int] | None:
    """Return the axes that a reduction takes away, None if they are not known."""
    rank = _rank(shapes, node.inputs[0])
    axes = None if rank is None else shapes.axes(node, rank)
    if axes or axes is None or rank is None or node.attributes.get_int("noop_with_empty_axes"):
        return axes
    return list(range(rank))


_FORWARD: Mapping[str, Move] = {
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "Slice": _slice,
    **dict.fromkeys(SUMS, _sum),
}
