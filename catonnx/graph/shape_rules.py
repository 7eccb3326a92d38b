"""What shape each operator gives out, from the shapes of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from catonnx.graph import dims
from catonnx.graph.dims import Dim
from catonnx.graph.shape_values import at, known, read_shape

if TYPE_CHECKING:
    from catonnx.graph.shapes import Shapes

Shape = tuple[Dim, ...]


def broadcast_all(shapes: list[Shape | None]) -> Shape | None:
    """Return the shape that all of some shapes are broadcast to; None if one is not known."""
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max(len(shape) for shape in known)
    result: Shape = (Dim(1),) * rank
    for shape in known:
        padded = (Dim(1),) * (rank - len(shape)) + shape
        result = tuple(dims.broadcast(left, right) for left, right in zip(result, padded, strict=True))
    return result


def _matmul(_: Shapes, __: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    left, right = inputs[0], inputs[1]
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    batch = broadcast_all([left[:-2], right[:-2]])
    return None if batch is None else (*batch, left[-2], right[-1])


def _gemm(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    left, right = inputs[0], inputs[1]
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return None
    return (left[node.attributes.get_int("transA", 0)], right[1 - node.attributes.get_int("transB", 0)])


def _transpose(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0] or ()
    attribute = node.attributes.get("perm")
    order = reversed(range(len(shape))) if attribute is None else attribute.as_ints()
    return tuple(shape[axis] for axis in order)


def _reshape(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    source, target = inputs[0] or (), shapes.contents(node.inputs[1])
    if target is None:
        return None
    copy_zero = not node.attributes.get_int("allowzero", 0)
    result: list[Dim | None] = []
    for axis, dim in enumerate(target):
        copied = dim is not None and dim.value == 0 and copy_zero and axis < len(source)
        result.append(source[axis] if copied else dim)
    open_axes = [axis for axis, dim in enumerate(result) if dim is None or dim.value == -1]
    if len(open_axes) == 1:
        rest = dims.product(dim for axis, dim in enumerate(result) if axis != open_axes[0] and dim is not None)
        result[open_axes[0]] = dims.divide(dims.product(source), rest)
    return tuple(dims.unknown() if dim is None or dim.value == -1 else dim for dim in result)


def _unsqueeze(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = list(inputs[0] or ())
    known = node.attributes.get("axes")
    count = len(known.as_ints()) if known is not None else len(shapes.contents(node.inputs[1]) or ())
    axes = shapes.axes(node, len(shape) + count)
    for axis in sorted(axes or ()):
        shape.insert(axis, Dim(1))
    return tuple(shape) if axes else None


def _squeeze(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0] or ()
    axes = shapes.axes(node, len(shape)) if shape else []
    return tuple(dim for axis, dim in enumerate(shape) if axis not in axes) if axes else None


def _concat(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    known = [shape for shape in inputs if shape is not None]
    if len(known) != len(inputs) or len({len(shape) for shape in known}) != 1:
        return None
    axis = node.attributes.get_int("axis", 0) % len(known[0])
    total = known[0][axis]
    for shape in known[1:]:
        total = dims.add(total, shape[axis])
    return (*known[0][:axis], total, *known[0][axis + 1 :])


def _slice(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = list(inputs[0] or ())
    axes = [known(dim) for dim in shapes.contents(node.inputs[3]) or (None,)] if len(node.inputs) > 3 else None
    if axes is None or any(axis is None for axis in axes):
        return tuple(dims.unknown() for _ in shape)
    starts, ends = shapes.contents(node.inputs[1]), shapes.contents(node.inputs[2])
    steps = shapes.contents(node.inputs[4]) if len(node.inputs) > 4 else None
    for index, axis in enumerate(axes):
        position = (axis or 0) % len(shape)
        length, start, end = shape[position].value, at(starts, index), at(ends, index)
        step = 1 if steps is None and len(node.inputs) <= 4 else at(steps, index)
        exact = (
            None
            if None in (length, start, end, step) or not step
            else len(range(*slice(start, end, step).indices(length or 0)))
        )
        shape[position] = dims.unknown() if exact is None else Dim(exact)
    return tuple(shape)


def _gather(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    data, indices = inputs[0], inputs[1]
    if data is None or indices is None:
        return None
    axis = node.attributes.get_int("axis", 0) % len(data)
    return (*data[:axis], *indices, *data[axis + 1 :])


def _gather_nd(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    data, indices = inputs[0] or (), inputs[1]
    depth = None if not indices else indices[-1].value
    if indices is None or depth is None:
        return None
    return (*indices[:-1], *data[node.attributes.get_int("batch_dims", 0) + depth :])


def _gather_elements(_: Shapes, __: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    return inputs[1]


def _expand(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    target = shapes.contents(node.inputs[1])
    if target is None:
        return None
    return broadcast_all(
        [inputs[0], tuple(dims.unknown() if dim is None or dim.value == -1 else dim for dim in target)]
    )


def _flatten(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0] or ()
    axis = node.attributes.get_int("axis", 1) % (len(shape) + 1)
    return (dims.product(shape[:axis]), dims.product(shape[axis:]))


def _conv(_: Shapes, __: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    data, weight = inputs[0], inputs[1]
    if data is None or weight is None:
        return None
    return (data[0], weight[0], *(dims.unknown() for _ in data[2:]))


def _shape_of(shapes: Shapes, node: ir.Node, _: list[Shape | None]) -> Shape | None:
    contents = read_shape(shapes, node)
    return None if contents is None else (Dim(len(contents)),)


def _tile(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0] or ()
    repeats = shapes.contents(node.inputs[1]) or (None,) * len(shape)
    if len(repeats) != len(shape):
        return None
    pairs = zip(shape, repeats, strict=True)
    return tuple(dims.unknown() if repeat is None else dims.multiply(dim, repeat) for dim, repeat in pairs)


def _pad(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0] or ()
    pads = shapes.contents(node.inputs[1])
    if pads is None or len(pads) != 2 * len(shape) or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return tuple(dims.unknown() for _ in shape)
    ends = zip(shape, pads[: len(shape)], pads[len(shape) :], strict=True)
    return tuple(
        dims.unknown() if before is None or after is None else dims.add(dims.add(dim, before), after)
        for dim, before, after in ends
    )


def _top_k(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape, count = list(inputs[0] or ()), shapes.contents(node.inputs[1])
    shape[node.attributes.get_int("axis", -1)] = (count[0] if count else None) or dims.unknown()
    return tuple(shape)


def _one_hot(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape, depth = list(inputs[0] or ()), shapes.contents(node.inputs[1])
    axis = node.attributes.get_int("axis", -1) % (len(shape) + 1)
    shape.insert(axis, (depth[0] if depth else None) or dims.unknown())
    return tuple(shape)


def _non_zero(_: Shapes, __: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    return (Dim(len(inputs[0])), dims.unknown()) if inputs[0] else None


def _arg_extreme(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0] or ()
    axis, keep = node.attributes.get_int("axis", 0) % len(shape), node.attributes.get_int("keepdims", 1)
    return (*shape[:axis], *((Dim(1),) if keep else ()), *shape[axis + 1 :])


def _embedded(_: Shapes, __: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    table = inputs[2]
    return None if table is None else (*(inputs[0] or ()), table[-1])


def _attention(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    """Attention of the standard: [batch, heads, rows, width of V], or [batch, rows, heads * width of V]."""
    if node.domain:
        weight = inputs[1]
        if weight is None or node.attributes.get("qkv_hidden_sizes") is not None:
            return None
        return (*(inputs[0] or ())[:2], dims.divide(weight[-1], Dim(3)) or dims.unknown())
    query, values = inputs[0] or (), inputs[2]
    if values is None or len(values) != len(query):
        return None
    if len(query) == 4:
        return (*query[:3], values[3])
    heads, shared = (node.attributes.get_int(f"{which}_num_heads", 0) for which in ("q", "kv"))
    width = dims.divide(values[2], Dim(shared)) if shared else None
    return (*query[:2], dims.unknown() if width is None or not heads else dims.multiply(width, Dim(heads)))


def _grouped_query_attention(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    query = inputs[0] or ()
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return query
    heads, shared = (node.attributes.get_int(f"{which}num_heads", 0) for which in ("", "kv_"))
    width = dims.divide(query[-1], Dim(heads + 2 * shared)) if heads else None
    return (*query[:-1], dims.unknown() if width is None else dims.multiply(width, Dim(heads)))


def _multi_head_attention(_: Shapes, __: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    query, values = inputs[0] or (), inputs[2] if len(inputs) > 2 else None
    if len(query) != 3 or values is None or len(values) != 3:
        return None
    return (*query[:2], values[2])


SHAPES: Mapping[str, Callable[[Shapes, ir.Node, list[Shape | None]], Shape | None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GatherElements": _gather_elements,
    "Expand": _expand,
    "Flatten": _flatten,
    "Conv": _conv,
    "Shape": _shape_of,
    "Tile": _tile,
    "Pad": _pad,
    "TopK": _top_k,
    "OneHot": _one_hot,
    "NonZero": _non_zero,
    "ArgMax": _arg_extreme,
    "ArgMin": _arg_extreme,
    "EmbedLayerNormalization": _embedded,
    "Attention": _attention,
    "GroupQueryAttention": _grouped_query_attention,
    "MultiHeadAttention": _multi_head_attention,
}
"""Operator -> shape of its first output; the shape of its first input is known."""

MORE_OUTPUTS: Mapping[str, int] = {
    "SkipLayerNormalization": 3,
    "SkipSimplifiedLayerNormalization": 3,
    "TopK": 1,
}
"""Operator -> another output that has the shape of its first."""
