"""What the shape arithmetic of a graph computes: the elements of small integer tensors, as lengths.

Exporters compute the target of a Reshape by Shape, Gather, Concat and the like; each function here follows one of them.
An element that is not known is None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir

from catonnx.graph import dims
from catonnx.graph.dims import Dim

if TYPE_CHECKING:
    from catonnx.graph.shapes import Shapes

Contents = tuple[Dim | None, ...]
"""Elements of an integer tensor of rank 0 or 1."""

LONGEST = 64
"""Longer tensors are no shapes."""


def known(dim: Dim | None) -> int | None:
    """Return a length that is a known integer, else None."""
    return None if dim is None else dim.value


def at(contents: Contents | None, index: int) -> int | None:
    """Return one element if it is a known integer, else None."""
    return None if contents is None or index >= len(contents) else known(contents[index])


def read_shape(shapes: Shapes, node: ir.Node) -> Contents | None:
    """Return what a Shape node gives."""
    source = None if node.inputs[0] is None else shapes[node.inputs[0]]
    if source is None:
        return None
    end = node.attributes.get("end")
    return source[node.attributes.get_int("start", 0) : None if end is None else end.as_int()]


def _read_gather(shapes: Shapes, node: ir.Node) -> Contents | None:
    data, indices = shapes.contents(node.inputs[0]), shapes.contents(node.inputs[1])
    if data is None or indices is None or any(known(index) is None for index in indices):
        return None
    positions = [index.coefficient for index in indices if index is not None]
    return (
        tuple(data[position] for position in positions) if all(-len(data) <= p < len(data) for p in positions) else None
    )


def _read_concat(shapes: Shapes, node: ir.Node) -> Contents | None:
    parts = [shapes.contents(value) for value in node.inputs]
    return (
        None
        if any(part is None for part in parts)
        else tuple(dim for part in parts if part is not None for dim in part)
    )


def _read_slice(shapes: Shapes, node: ir.Node) -> Contents | None:
    data = shapes.contents(node.inputs[0])
    start, end = (at(shapes.contents(value), 0) for value in node.inputs[1:3])
    step = 1 if len(node.inputs) <= 4 else at(shapes.contents(node.inputs[4]), 0)
    return None if data is None or start is None or end is None or not step else data[start:end:step]


def _read_same(shapes: Shapes, node: ir.Node) -> Contents | None:
    return shapes.contents(node.inputs[0])


def _read_cast(shapes: Shapes, node: ir.Node) -> Contents | None:
    """Return integers cast to integers; fractions and truth values follow other rules than lengths."""
    to_integer = ir.DataType(node.attributes["to"].as_int()) in (ir.DataType.INT64, ir.DataType.INT32)
    return shapes.contents(node.inputs[0]) if to_integer else None


def _read_fill(shapes: Shapes, node: ir.Node) -> Contents | None:
    length = at(shapes.contents(node.inputs[0]), 0)
    attribute = node.attributes.get("value")
    fill = 0 if attribute is None else attribute.as_tensor().numpy().reshape(-1)[0]
    return None if length is None or length > LONGEST or int(fill) != fill else (Dim(int(fill)),) * length


def _elementwise(combine: Callable[[Dim, Dim], Dim | None]) -> Callable[[Shapes, ir.Node], Contents | None]:
    def read(shapes: Shapes, node: ir.Node) -> Contents | None:
        left, right = shapes.contents(node.inputs[0]), shapes.contents(node.inputs[1])
        if left is None or right is None or (len(left) != len(right) and 1 not in (len(left), len(right))):
            return None
        length = len(right) if len(left) == 1 else len(left)
        pairs = zip(*(part * length if len(part) == 1 else part for part in (left, right)), strict=True)
        return tuple(None if a is None or b is None else combine(a, b) for a, b in pairs)

    return read


def _equal(left: Dim, right: Dim) -> Dim | None:
    if left == right:
        return Dim(1)
    if left.value is not None and right.value is not None:
        return Dim(0)
    # A length is never negative, so no symbol equals -1.
    return Dim(0) if -1 in (left.value, right.value) else None


def _quotient(left: Dim, right: Dim) -> Dim | None:
    if left.value is not None and right.value:
        # ONNX rounds towards zero, Python down.
        return Dim(left.value // right.value) if left.value >= 0 and right.value > 0 else None
    return dims.divide(left, right)


def _read_where(shapes: Shapes, node: ir.Node) -> Contents | None:
    condition, yes, no = (shapes.contents(value) for value in node.inputs)
    if condition is None or yes is None or no is None:
        return None
    length = max(len(condition), len(yes), len(no))
    if any(len(part) not in (1, length) for part in (condition, yes, no)):
        return None
    rows = (part * length if len(part) == 1 else part for part in (condition, yes, no))
    return tuple(None if known(c) is None else (y if known(c) else n) for c, y, n in zip(*rows, strict=True))


CONTENTS: dict[str, Callable[[Shapes, ir.Node], Contents | None]] = {
    "Shape": read_shape,
    "Gather": _read_gather,
    "Concat": _read_concat,
    "Slice": _read_slice,
    "Unsqueeze": _read_same,
    "Squeeze": _read_same,
    "Reshape": _read_same,
    "Identity": _read_same,
    "Cast": _read_cast,
    "ConstantOfShape": _read_fill,
    "Where": _read_where,
    "Equal": _elementwise(_equal),
    "Add": _elementwise(dims.add),
    "Sub": _elementwise(lambda left, right: dims.add(left, right, -1)),
    "Mul": _elementwise(dims.multiply),
    "Div": _elementwise(_quotient),
}
