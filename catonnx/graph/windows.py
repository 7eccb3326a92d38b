"""Which part of a value a node takes: Slice, Split, and Gather of one index.

A window names, for some axes of the value, the indices that are taken; of the other axes all are.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import TypeAlias

import onnx_ir as ir

from catonnx.graph.constants import constant_array
from catonnx.graph.dims import Dim
from catonnx.graph.shape_values import at, known
from catonnx.graph.shapes import Shapes

Window: TypeAlias = "Mapping[int, range]"


def windows(shapes: Shapes, node: ir.Node) -> list[tuple[ir.Value, Window]] | None:
    """Return for every output of a node the window of the first input that it holds; None if the node takes no part."""
    if node.domain or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type == "Split":
        return split_windows(shapes, node)
    if node.op_type == "Slice":
        taken = slice_ranges(shapes, node) or {}
        return [(node.outputs[0], {axis: window for axis, window in taken.items() if window is not None})]
    window = gather_window(shapes, node) if node.op_type == "Gather" else None
    return None if window is None else [(node.outputs[0], window)]


def split_windows(shapes: Shapes, node: ir.Node) -> list[tuple[ir.Value, Window]] | None:
    """Return the windows of a Split's outputs, None if one of their lengths is not known."""
    parts = [shapes[value] for value in node.outputs]
    if parts[0] is None:
        return None
    axis = node.attributes.get_int("axis", 0) % len(parts[0])
    lengths = [None if part is None else part[axis].value for part in parts]
    ends = list(accumulate(length or 0 for length in lengths))
    if None in lengths:
        return None
    starts = [0, *ends[:-1]]
    return [(value, {axis: range(*ends)}) for value, *ends in zip(node.outputs, starts, ends, strict=True)]


def slice_ranges(shapes: Shapes, node: ir.Node) -> dict[int, range | None] | None:
    """Return for every axis that a Slice cuts what it takes, None where that is not known; None if the axes are not."""
    source = None if node.inputs[0] is None else shapes[node.inputs[0]]
    inputs = [*node.inputs[1:], None, None, None, None][:4]
    starts, ends, named, steps = (shapes.contents(value) for value in inputs)
    if inputs[2] is None:
        named = None if starts is None else tuple(Dim(axis) for axis in range(len(starts)))
    axes = [known(dim) for dim in named or (None,)]
    if source is None or None in axes:
        return None
    result: dict[int, range | None] = {}
    for index, counted in enumerate(axes):
        axis = (counted or 0) % len(source)
        length, start, end = source[axis].value, at(starts, index), at(ends, index)
        step = 1 if inputs[3] is None else at(steps, index)
        if length is None or start is None or end is None or step is None or step < 1:
            result[axis] = None  # backwards, ONNX Runtime reads a bound beyond the end in its own way
        else:
            result[axis] = range(*slice(start, end, step).indices(length))
    return result


def gather_window(shapes: Shapes, node: ir.Node) -> Window | None:
    """Return what a Gather of one constant index takes from an axis of known length; None for any other Gather."""
    source = None if node.inputs[0] is None else shapes[node.inputs[0]]
    index = constant_array(node.inputs[1])
    if source is None or index is None or index.size != 1:
        return None
    axis, place = node.attributes.get_int("axis", 0) % len(source), int(index.reshape(()))
    length = source[axis].value
    if length is None or not -length <= place < length:
        return None
    return {axis: range(place % length, place % length + 1)}
