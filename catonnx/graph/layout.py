"""Where the channels of a site lie inside a value further up the graph.

Walking back from a site, its d channels may be spread over several axes (heads, features), be repeated (grouped-query
attention repeats each KV head), and may be mixed only within a head. A layout says all of that; each function below
moves one across one kind of node, from the node's output to its input, and returns None where that cannot be done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from catonnx.graph import dims
from catonnx.graph.dims import Dim

Shape = tuple[Dim, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The channels of a site, seen in another value.

    Attributes:
        axes: Axes of the value that carry channels, ascending.
        sizes: Their lengths.
        position: For each channel of the site its flat index within `sizes`; channels with one index are tied.  # (d,)
        mixing: Channels of the site may be mixed only with those of the same number.  # (d,)
        diagonal: Only a scaling can be taken up from here on.
        attended: The rows are summed, weighted by another activation, on the way to the site: they are the values of an
            attention.
        merged: Those of `axes` that are longer than their entry in `sizes`: rows were merged in front of the channels,
            as in [batch * heads, ...], and index i holds the channels of i modulo that entry.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    position: np.ndarray
    mixing: np.ndarray
    diagonal: bool = False
    attended: bool = False
    merged: frozenset[int] = frozenset()

    @staticmethod
    def of_site(rank: int, width: int) -> Layout:
        """Return the layout of a site's own value: all channels on the last axis."""
        return Layout((rank - 1,), (width,), np.arange(width), np.zeros(width, np.int64))

    @property
    def coordinates(self) -> tuple[np.ndarray, ...]:
        """Index of every channel along each of `axes`."""
        return np.unravel_index(self.position, self.sizes)

    def only_scale(self) -> Layout:
        """Return this layout with mixing ruled out."""
        return dataclasses.replace(self, diagonal=True)

    @property
    def ties(self) -> np.ndarray:
        """Numbers from 0 on (d,), equal for channels that are one in the value."""
        return np.unique(self.position, return_inverse=True)[1].reshape(-1)

    @property
    def is_whole(self) -> bool:
        """Whether the site holds every channel of the value, not just a part."""
        return len(np.unique(self.position)) == int(np.prod(self.sizes))

    def is_same(self, other: Layout) -> bool:
        """Whether two layouts of one value say the same."""
        mine, theirs = ((item.axes, item.sizes, item.diagonal, item.attended, item.merged) for item in (self, other))
        arrays = ((self.position, other.position), (self.mixing, other.mixing))
        return mine == theirs and all(np.array_equal(left, right) for left, right in arrays)

    def meets(self, window: Mapping[int, range]) -> bool:
        """Whether a channel lies within the indices that a window takes of some axes."""
        inside = np.ones(len(self.position), bool)
        for axis, along in zip(self.axes, self.coordinates, strict=True):
            if axis in window and axis not in self.merged:
                inside &= np.isin(along, window[axis])
        return bool(inside.any())

    @property
    def block_width(self) -> int:
        """Width of the widest equal blocks of neighbours that may be mixed; 1 for a scaling.

        Blocks are tied as wholes, channel by channel, or not at all.
        """
        width = len(self.position)
        return 1 if self.diagonal else max(k for k in range(1, width + 1) if width % k == 0 and self._may_mix(k))

    def _may_mix(self, block: int) -> bool:
        if (self.mixing.reshape(-1, block) != self.mixing[::block, None]).any():
            return False
        blocks = np.unique(self.position.reshape(-1, block), axis=0)
        return len(np.unique(blocks)) == blocks.size


def through_transpose(layout: Layout, order: list[int]) -> Layout:
    """Cross a Transpose whose output axis `i` is input axis `order[i]`."""
    moved = [order[axis] for axis in layout.axes]
    ranking = np.argsort(moved)
    coordinates = layout.coordinates
    sizes = tuple(layout.sizes[index] for index in ranking)
    position = np.ravel_multi_index(tuple(coordinates[index] for index in ranking), sizes)
    merged = frozenset(order[axis] for axis in layout.merged)
    return dataclasses.replace(layout, axes=tuple(sorted(moved)), sizes=sizes, position=position, merged=merged)


def through_reshape(layout: Layout, before: Shape, after: Shape) -> Layout | None:
    """Cross any node that keeps the elements in row-major order: Reshape, Flatten, Unsqueeze, Squeeze."""
    lengths: dict[int, int] = {}
    for left, right in dims.groups(before, after):
        carried = [axis for axis in right if axis in layout.axes]
        if not carried:
            continue
        behind = (axis for axis in right if axis > carried[0] and axis not in carried)
        if any(after[axis].value != 1 for axis in behind) or layout.merged.intersection(carried[1:]):
            return None
        rest = int(np.prod([layout.sizes[layout.axes.index(axis)] for axis in carried]))
        for axis in reversed(left):  # the channels are its last part; what lies before them are rows
            length = before[axis].value
            if rest == 1 or length == 1:
                continue
            if length is not None and length and rest % length == 0:
                lengths[axis] = length
            elif dims.divide(before[axis], Dim(rest)) is not None:
                lengths[axis] = rest
            else:
                return None
            rest //= lengths[axis]
        if rest != 1:
            return None
    if not lengths:
        return None
    # Row-major order within each run of axes, and of the runs among themselves: the flat index stays what it was.
    axes = tuple(sorted(lengths))
    merged = frozenset(axis for axis in axes if before[axis].value != lengths[axis])
    if len(before) - 1 in merged:
        return None  # half of a linear's outputs, say, became rows of their own
    return dataclasses.replace(layout, axes=axes, sizes=tuple(lengths[axis] for axis in axes), merged=merged)


def through_expand(layout: Layout, before: Shape, after: Shape) -> Layout | None:
    """Cross an Expand, or the broadcast of one operand: what was repeated becomes tied."""
    shift = len(after) - len(before)
    kept, repeated = [], []
    for index, axis in enumerate(layout.axes):
        length = None if axis < shift else before[axis - shift].value
        same = axis in layout.merged and axis >= shift and before[axis - shift] == after[axis]
        if same or (axis >= shift and axis not in layout.merged and length == layout.sizes[index]):
            kept.append(index)
        elif axis not in layout.merged and (axis < shift or length == 1):
            repeated.append(index)
        else:
            return None
    # The other parts of what was repeated belong to somebody else, who would see them changed.
    if not kept or (repeated and not layout.is_whole):
        return None
    coordinates = layout.coordinates
    sizes = tuple(layout.sizes[index] for index in kept)
    position = np.ravel_multi_index(tuple(coordinates[index] for index in kept), sizes)
    axes = tuple(layout.axes[index] - shift for index in kept)
    merged = frozenset(axis - shift for axis in layout.merged).intersection(axes)
    return dataclasses.replace(layout, axes=axes, sizes=sizes, position=position, merged=merged)


def through_product(layout: Layout, rank: int) -> Layout | None:
    """Cross a MatMul to its right operand: channels mix freely along its last axis, never across the batch axes."""
    last = layout.axes[-1]
    if last != rank - 1 or rank - 2 in layout.axes or last in layout.merged:
        return None
    coordinates = layout.coordinates[:-1]
    return dataclasses.replace(layout, mixing=_refine(layout.mixing, *coordinates), attended=True)


def through_heads(layout: Layout, heads: int, shared: int, width: int, axes: tuple[int, ...]) -> Layout | None:
    """Cross an attention from its output to its values: query head h reads the values of head h // (heads / shared).

    Args:
        layout: On the output, whose channels are heads x width in row-major order, on one axis or several.
        heads: Number of query heads.
        shared: Number of heads of values.
        width: Channels of a head.
        axes: Where the values carry their channels: one axis for shared * width, or one for either.
    """
    if not shared or heads % shared or int(np.prod(layout.sizes)) != heads * width:
        return None
    # The other copies of a head that is read several times belong to somebody else, who would see them changed.
    if heads != shared and not layout.is_whole:
        return None
    head, channel = np.divmod(layout.position, width)
    position = head // (heads // shared) * width + channel
    lengths = (shared * width,) if len(axes) == 1 else (shared, width)
    # As everywhere, an axis of length 1 carries nothing: a Reshape could not tell it from others.
    kept = [index for index, length in enumerate(lengths) if length != 1] or [0]
    return dataclasses.replace(
        layout,
        axes=tuple(axes[index] for index in kept),
        sizes=tuple(lengths[index] for index in kept),
        position=position,
        mixing=_refine(layout.mixing, head),
        attended=True,
    )


def part_of(layout: Layout, axis: int, window: range, length: int) -> Layout | None:
    """Cross what takes a part of a whole: the indices of `window` on `axis`, of `length` in all."""
    index = layout.axes.index(axis)
    if layout.sizes[index] != len(window):
        return None
    coordinates = list(layout.coordinates)
    coordinates[index] = window.start + window.step * coordinates[index]
    sizes = tuple(length if i == index else size for i, size in enumerate(layout.sizes))
    return dataclasses.replace(layout, sizes=sizes, position=np.ravel_multi_index(tuple(coordinates), sizes))


def at_index(layout: Layout, axis: int, index: int, length: int) -> Layout:
    """Cross what takes one index of an axis that carries no channels: they lie at `index` of `length` on it."""
    if length == 1:
        return layout
    place = sum(carried < axis for carried in layout.axes)
    coordinates = list(layout.coordinates)
    coordinates.insert(place, np.full(len(layout.position), index))
    axes = (*layout.axes[:place], axis, *layout.axes[place:])
    sizes = (*layout.sizes[:place], length, *layout.sizes[place:])
    return dataclasses.replace(layout, axes=axes, sizes=sizes, position=np.ravel_multi_index(tuple(coordinates), sizes))


def _refine(*labels: np.ndarray) -> np.ndarray:
    """Number the distinct combinations of several labels per channel."""
    _, numbers = np.unique(np.stack(labels), axis=1, return_inverse=True)
    return numbers.reshape(-1)
