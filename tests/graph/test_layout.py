"""Layouts against NumPy: channels are followed through a node by following the numbers themselves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catonnx.graph.dims import Dim, symbol
from catonnx.graph.layout import (
    Layout,
    Shape,
    at_index,
    part_of,
    through_expand,
    through_heads,
    through_product,
    through_reshape,
    through_transpose,
)

BATCH, SEQ = symbol("batch"), symbol("seq")
ROWS = {"batch": 2, "seq": 3}


def shape_of(*lengths: int | Dim) -> Shape:
    return tuple(length if isinstance(length, Dim) else Dim(length) for length in lengths)


def numbers(shape: Shape) -> np.ndarray:
    """Return an array whose every element is its own flat index."""
    lengths = [dim.coefficient * int(np.prod([ROWS[name] for name in dim.symbols])) for dim in shape]
    return np.arange(int(np.prod(lengths))).reshape(lengths)


def read(array: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the channels of a value as the layout finds them: [rows, d], rows sorted."""
    moved = np.moveaxis(array, layout.axes, range(-len(layout.axes), 0))
    rows: np.ndarray = moved.reshape(-1, int(np.prod(layout.sizes)))[:, layout.position]
    return rows[np.lexsort(rows.T[::-1])]


def test_a_site_has_its_channels_on_the_last_axis() -> None:
    layout = Layout.of_site(3, 4)
    assert (layout.axes, layout.sizes, layout.block_width) == ((2,), (4,), 4)
    np.testing.assert_array_equal(layout.position, range(4))


@given(st.permutations([0, 1, 2, 3]))
def test_channels_are_followed_through_any_transpose(order: list[int]) -> None:
    before = numbers(shape_of(BATCH, 2, SEQ, 4))
    after = before.transpose(order)
    axes = tuple(sorted(order.index(axis) for axis in (1, 3)))
    sizes = tuple(after.shape[axis] for axis in axes)
    layout = Layout(axes, sizes, np.arange(8), np.zeros(8, np.int64))
    np.testing.assert_array_equal(read(before, through_transpose(layout, order)), read(after, layout))


@pytest.mark.parametrize(
    ("before", "after", "axes"),
    [
        ((BATCH, SEQ, 2, 4), (BATCH, SEQ, 8), (2,)),
        ((BATCH, SEQ, 8), (BATCH, SEQ, 2, 4), (2, 3)),
        ((BATCH, SEQ, 8), (Dim(1, ("batch", "seq")), 8), (1,)),
        ((BATCH, SEQ, 1, 8), (BATCH, SEQ, 8), (2,)),
        ((BATCH, 2, 4, SEQ), (BATCH, 8, SEQ), (1,)),
        ((BATCH, SEQ, 2, 2, 2), (BATCH, SEQ, 4, 2), (2, 3)),
        ((BATCH, SEQ, 6), (BATCH, SEQ, 2, 1, 3), (2, 4)),
    ],
)
def test_channels_are_followed_through_reshapes(
    before: tuple[int | Dim, ...], after: tuple[int | Dim, ...], axes: tuple[int, ...]
) -> None:
    old, new = shape_of(*before), shape_of(*after)
    sizes = tuple(new[axis].coefficient for axis in axes)
    width = int(np.prod(sizes))
    order = np.random.default_rng(0).permutation(width)
    layout = Layout(axes, sizes, order, np.zeros(width, np.int64))
    moved = through_reshape(layout, old, new)
    assert moved is not None
    array = numbers(old)
    np.testing.assert_array_equal(read(array, moved), read(array.reshape(numbers(new).shape), layout))


@pytest.mark.parametrize(
    ("before", "after", "axes"),
    [
        ((BATCH, 2, SEQ, 4), (BATCH, SEQ, 8), (2,)),  # heads not turned back: rows and channels are interleaved
        ((BATCH, SEQ, 8), (BATCH, Dim(2, ("seq",)), 4), (2,)),  # half of the channels became rows
        ((BATCH, 4, SEQ), (BATCH, SEQ, 4), (2,)),
        ((SEQ, 8), (BATCH, 8, 1), (0, 1)),
        ((Dim(8, ("seq",)),), (8,), (0,)),
    ],
)
def test_a_reshape_that_mixes_rows_and_channels_is_not_crossed(
    before: tuple[int | Dim, ...], after: tuple[int | Dim, ...], axes: tuple[int, ...]
) -> None:
    new = shape_of(*after)
    sizes = tuple(new[axis].value or 2 for axis in axes)
    width = int(np.prod(sizes))
    layout = Layout(axes, sizes, np.arange(width), np.zeros(width, np.int64))
    assert through_reshape(layout, shape_of(*before), new) is None


def test_rows_merged_in_front_of_channels_can_be_told_apart_again() -> None:
    apart, merged = shape_of(BATCH, 4, SEQ, 2), shape_of(Dim(4, ("batch",)), SEQ, 2)
    layout = Layout((1, 3), (4, 2), np.arange(8)[::-1], np.repeat(range(4), 2))
    moved = through_reshape(layout, merged, apart)
    assert moved is not None
    assert (moved.axes, moved.sizes, moved.merged) == ((0, 2), (4, 2), frozenset([0]))
    assert not moved.is_same(dataclasses.replace(moved, merged=frozenset()))
    assert moved.meets({0: range(4, 5)})  # nobody knows which channels these are
    turned = through_transpose(moved, [1, 0, 2])
    assert (turned.axes, turned.merged) == ((1, 2), frozenset([1]))
    for other in (merged[:1], (Dim(1), *merged[1:])):
        assert through_expand(moved, other, merged) is None
    kept = through_expand(moved, merged, merged)
    assert kept is not None
    back = through_reshape(kept, apart, merged)
    assert back is not None
    assert back.is_same(layout)
    assert through_reshape(moved, shape_of(BATCH, 2, SEQ, 4), merged) is None


def test_a_repeat_ties_its_channels_and_cannot_be_crossed_for_a_part() -> None:
    layout = Layout((1, 3), (4, 2), np.arange(8), np.repeat(range(4), 2))
    moved = through_expand(layout, shape_of(BATCH, 1, SEQ, 2), shape_of(BATCH, 4, SEQ, 2))
    assert moved is not None
    assert (moved.axes, moved.sizes) == ((3,), (2,))
    np.testing.assert_array_equal(moved.position, [0, 1] * 4)
    part = Layout((1, 3), (4, 2), np.arange(4), np.zeros(4, np.int64))  # two of four heads
    assert not part.is_whole
    assert through_expand(part, shape_of(BATCH, 1, SEQ, 2), shape_of(BATCH, 4, SEQ, 2)) is None
    assert through_expand(part, shape_of(1, 4, SEQ, 2), shape_of(BATCH, 4, SEQ, 2)) is not None


def test_a_repeat_of_unknown_length_is_not_crossed() -> None:
    layout = Layout((1, 3), (4, 2), np.arange(8), np.zeros(8, np.int64))
    assert through_expand(layout, shape_of(BATCH, SEQ, SEQ, 2), shape_of(BATCH, 4, SEQ, 2)) is None


def test_a_product_lets_channels_mix_within_a_head_only() -> None:
    layout = Layout((1, 3), (2, 4), np.arange(8), np.zeros(8, np.int64))
    moved = through_product(layout, 4)
    assert moved is not None
    assert moved.block_width == 4
    assert moved.attended
    assert through_product(Layout((2, 3), (2, 4), np.arange(8), np.zeros(8, np.int64)), 4) is None
    assert through_product(Layout((1, 2), (2, 4), np.arange(8), np.zeros(8, np.int64)), 4) is None


def test_a_part_lies_at_its_place_within_the_whole() -> None:
    layout = Layout((1, 2), (2, 3), np.arange(6), np.zeros(6, np.int64))
    moved = part_of(layout, 2, range(4, 7), 9)
    assert moved is not None
    assert moved.sizes == (2, 9)
    np.testing.assert_array_equal(moved.position, [4, 5, 6, 13, 14, 15])
    backwards = part_of(layout, 2, range(8, 2, -2), 9)
    assert backwards is not None
    np.testing.assert_array_equal(backwards.position, [8, 6, 4, 17, 15, 13])
    assert part_of(layout, 2, range(4, 8), 9) is None, "four of three channels"


def test_what_took_one_index_lies_at_that_index() -> None:
    layout = Layout((1, 3), (2, 3), np.arange(6), np.zeros(6, np.int64))
    for axis, axes in ((0, (0, 1, 3)), (2, (1, 2, 3)), (4, (1, 3, 4))):
        whole = numbers(shape_of(*[{1: 2, 3: 3, axis: 4}.get(a, 1) for a in range(5)]))
        taken = np.take(whole, [2], axis)
        moved = at_index(layout, axis, 2, 4)
        assert moved.axes == axes
        np.testing.assert_array_equal(read(whole, moved), read(taken, layout))


@pytest.mark.parametrize(("window", "meets"), [((0, 2), True), ((2, 4), False), ((1, 4), True), ((2, 2), False)])
def test_which_windows_hold_a_channel(window: tuple[int, int], meets: bool) -> None:
    layout = Layout((1, 3), (2, 4), np.array([0, 1, 4]), np.zeros(3, np.int64))
    assert layout.meets({3: range(*window)}) == meets
    assert layout.meets({2: range(0)}), "an axis without channels tells nothing"
    assert not layout.meets({1: range(1, 2), 3: range(1, 4)}), "head 1 holds channel 0 alone"


def test_query_heads_read_the_values_of_their_group() -> None:
    layout = Layout.of_site(3, 8)
    moved = through_heads(layout, 4, 2, 2, (1, 3))
    assert moved is not None
    assert (moved.axes, moved.sizes, moved.attended, moved.block_width) == ((1, 3), (2, 2), True, 2)
    np.testing.assert_array_equal(moved.position, [0, 1, 0, 1, 2, 3, 2, 3])
    np.testing.assert_array_equal(moved.mixing, [0, 0, 1, 1, 2, 2, 3, 3])
    assert through_heads(layout, 4, 3, 2, (2,)) is None, "4 heads cannot share 3"
    assert through_heads(layout, 4, 0, 2, (2,)) is None
    assert through_heads(layout, 4, 2, 3, (2,)) is None, "8 channels are not 4 heads of 3"
    half = part_of(Layout.of_site(3, 4), 2, range(4), 8)
    assert half is not None
    assert through_heads(half, 4, 2, 2, (2,)) is None, "somebody else reads the other copies"
    alone = through_heads(half, 4, 4, 2, (2,))
    assert alone is not None
    np.testing.assert_array_equal(alone.position, range(4))


@pytest.mark.parametrize(
    ("position", "mixing", "width"),
    [
        ([0, 1, 2, 3, 4, 5], [0] * 6, 6),
        ([5, 3, 1, 0, 2, 4], [0] * 6, 6),
        ([0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1], 3),
        ([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 1, 1], 2),
        ([0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 0, 1], 1),
        ([0, 1, 0, 1, 2, 3], [0] * 6, 2),  # blocks of two, the first two alike
        ([0, 0, 1, 1, 2, 2], [0] * 6, 1),  # tied neighbours cannot be mixed with each other
        ([0, 1, 1, 0, 2, 3], [0] * 6, 1),  # tied, but in another order
        ([0, 1, 2, 0, 1, 2], [0] * 6, 3),
        ([0, 1, 2, 3, 0, 1], [0] * 6, 2),
    ],
)
def test_blocks_are_as_wide_as_mixing_and_ties_allow(position: list[int], mixing: list[int], width: int) -> None:
    layout = Layout((1,), (6,), np.array(position), np.array(mixing))
    assert layout.block_width == width
    assert layout.only_scale().block_width == 1


def test_layouts_are_the_same_if_every_channel_lies_in_the_same_place() -> None:
    layout = Layout((1,), (3,), np.arange(3), np.zeros(3, np.int64))
    assert layout.is_same(Layout((1,), (3,), np.arange(3), np.zeros(3, np.int64)))
    others = [
        Layout((2,), (3,), np.arange(3), np.zeros(3, np.int64)),
        Layout((1,), (4,), np.arange(3), np.zeros(3, np.int64)),
        Layout((1,), (3,), np.array([1, 0, 2]), np.zeros(3, np.int64)),
        Layout((1,), (3,), np.arange(3), np.array([0, 0, 1])),
        layout.only_scale(),
    ]
    assert not any(layout.is_same(other) for other in others)
