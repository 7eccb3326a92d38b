"""Rules for producers that join values or take a part of one.

A part is a window of channels of the whole: who reads other channels of the whole sees no change.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from catonnx.graph.absorb_pointwise import join
from catonnx.graph.absorb_walk import BlockedError, End, Walk, is_cache, reads_shape_only
from catonnx.graph.layout import Layout, at_index, part_of
from catonnx.graph.windows import gather_window, slice_ranges, split_windows


def concat(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """Rows joined to rows; a joined graph input is a cache, which comes back in the basis it was handed out in."""
    rank = walk.rank(node.outputs[0])
    if node.attributes["axis"].as_int() % rank in layout.axes:
        raise BlockedError(f"{node.name} joins channels")
    ends, caches = [], []
    for index, value in enumerate(node.inputs):
        if (
            value is not None
            and value.is_graph_input()
            and node.outputs[0].is_graph_output()
            and is_cache(node.outputs[0])
        ):
            caches.append(str(node.outputs[0].name))
        else:
            ends.append(walk.into(node, index, layout))
    if not ends:
        raise BlockedError(f"{node.name} joins graph inputs only")
    end = join(node, ends)
    return dataclasses.replace(end, caches=(*end.caches, *caches))


def split(walk: Walk, node: ir.Node, layout: Layout, *, part: int) -> End:
    """One part of a fused projection: its channels are a window of the whole, the other parts stay as they are."""
    windows = split_windows(walk.shapes, node)
    if windows is None:
        raise BlockedError(f"{node.name} does not split channels of known number")
    ((axis, window),) = windows[part][1].items()
    if axis not in layout.axes and len(window) != 1:
        raise BlockedError(f"{node.name} does not split channels of known number")
    length = windows[-1][1][axis].stop
    return walk.into(node, 0, _placed(node, layout, axis, window, length))


def slice_(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """A window of the channels; of rows, any."""
    ranges = slice_ranges(walk.shapes, node)
    if ranges is None:
        raise BlockedError(f"the axes that {node.name} slices are not known")
    if any(window is None and axis in layout.axes for axis, window in ranges.items()):
        raise BlockedError(f"the bounds at which {node.name} slices channels are not known")
    alone = _reads_alone(node)
    for axis, window in ranges.items():
        if window is not None and (axis in layout.axes or (len(window) == 1 and not alone)):
            layout = _placed(node, layout, axis, window, _length(walk, node, axis))
    return walk.into(node, 0, layout)


def gather(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """Rows, or one index of an axis, which then carries channels if others read other indices."""
    axis = node.attributes.get_int("axis", 0) % walk.rank(node.inputs[0])
    added = walk.rank(node.inputs[1])
    if any(axis <= carried < axis + added for carried in layout.axes):
        raise BlockedError(f"{node.name} gathers channels")
    axes = tuple(carried if carried < axis else carried - added + 1 for carried in layout.axes)
    moved = dataclasses.replace(layout, axes=axes)
    window = gather_window(walk.shapes, node)
    if window is not None and not _reads_alone(node):
        moved = _placed(node, moved, axis, window[axis], _length(walk, node, axis))
    return walk.into(node, 0, moved)


def _placed(node: ir.Node, layout: Layout, axis: int, window: range, length: int) -> Layout:
    """Return where channels lie in the whole that a window was taken of."""
    if axis not in layout.axes:
        return at_index(layout, axis, window.start, length)
    moved = part_of(layout, axis, window, length)
    if moved is None:
        raise BlockedError(f"the channels are not the window that {node.op_type} {node.name} takes")
    return moved


def _length(walk: Walk, node: ir.Node, axis: int) -> int:
    """Return the length of an axis of which a window is known, and so the length, too."""
    source = walk.shapes[node.inputs[0]]  # type: ignore[index]
    assert source is not None
    return source[axis].coefficient


def _reads_alone(node: ir.Node) -> bool:
    """Whether nobody else sees the numbers of a node's first input: then all of them may change."""
    value = node.inputs[0]
    return value is not None and all(reader is node or reads_shape_only(reader) for reader in value.consumers())
