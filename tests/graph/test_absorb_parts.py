"""Parts of a value: channels pass at the window's place, and who reads another window sees no change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto

from tests.graph.builder import Net, absorbable
from tests.graph.equivalence import assert_equivalent

TOLERANCE = 1e-5
"""Relative L2. Measured over these nets: worst 4e-7."""

X = {"x": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)}
WIDTH = 12
Build = Callable[[Net, str], str]


def cut(net: Net, value: str, start: int, end: int, axis: int = -1, *step: int) -> str:
    steps = [net.constant(list(step))] if step else []
    return net.op("Slice", value, net.constant([start]), net.constant([end]), net.constant([axis]), *steps)


def pick(net: Net, value: str, index: int, axis: int) -> str:
    return net.op("Gather", value, net.constant(np.array(index)), axis=axis)


def reshape(net: Net, value: str, *shape: int) -> str:
    return net.op("Reshape", value, net.constant(list(shape)))


def others_read(net: Net, *values: str) -> None:
    for value in values:
        net.output(net.op("Tanh", value))


def net_of(build: Build, rows: str | int = "seq") -> Net:
    """Take x [batch, seq, 4], a linear to 12 channels with a bias, what `build` makes of it, and a linear of 4."""
    net = Net(seed=5)
    whole = net.op("Add", net.op("MatMul", net.input("x", ["batch", rows, 4]), net.normal(4, WIDTH)), net.vector(WIDTH))
    net.output(net.op("MatMul", build(net, whole), net.normal(4, 5), result="y"))
    return net


def a_window(net: Net, whole: str) -> str:
    others_read(net, cut(net, whole, 0, 4), cut(net, whole, 8, 99))
    return cut(net, whole, 4, 8)


def every_second(net: Net, whole: str) -> str:
    others_read(net, cut(net, whole, 0, 12, -1, 2), cut(net, whole, 9, 12))
    return cut(net, whole, 1, -3, -1, 2)


def a_list_of_one(net: Net, whole: str) -> str:
    """The same, the axis kept: Falcon's keys and values."""
    parts = reshape(net, whole, 0, 0, 3, 4)
    first, second = (net.op("Gather", parts, net.constant([index]), axis=2) for index in (0, -2))
    others_read(net, first)
    return reshape(net, second, 0, 0, 4)


def one_of_three(net: Net, whole: str) -> str:
    """[batch, seq, 3, 4], as some exporters write a fused projection."""
    parts = reshape(net, whole, 0, 0, 3, 4)
    others_read(net, pick(net, parts, 0, 2), pick(net, parts, -1, 2))
    return pick(net, parts, 1, 2)


def one_of_three_in_front(net: Net, whole: str) -> str:
    """[3, batch, seq, 4], as others do."""
    parts = net.op("Transpose", reshape(net, whole, 0, 0, 3, 4), perm=[2, 0, 1, 3])
    others_read(net, pick(net, parts, 1, 0), pick(net, parts, 0, 0))
    return pick(net, parts, 2, 0)


def one_of_the_last(net: Net, whole: str) -> str:
    """[batch, seq, 4, 3]: the three parts interleaved."""
    parts = reshape(net, whole, 0, 0, 4, 3)
    others_read(net, pick(net, parts, 1, -1), pick(net, parts, 2, -1))
    return pick(net, parts, 0, -1)


def split_into_ones(net: Net, whole: str) -> str:
    parts = net.ops("Split", reshape(net, whole, 0, 0, 3, 4), results=["q", "k", "v"], axis=2, num_outputs=3)
    others_read(net, *parts[:2])
    return net.op("Squeeze", parts[2], net.constant([2]))


def within_heads(net: Net, whole: str) -> str:
    """[batch, seq, 2 heads, 6]: the second third of either head."""
    heads = reshape(net, whole, 0, 0, 2, 6)
    others_read(net, cut(net, heads, 0, 2), cut(net, heads, 4, 6))
    return reshape(net, cut(net, heads, 2, 4), 0, 0, 4)


def two_axes_at_once(net: Net, whole: str) -> str:
    heads = reshape(net, whole, 0, 0, 2, 6)
    others_read(net, cut(net, heads, 0, 1, 2), cut(net, heads, 4, 6))
    return reshape(net, net.op("Slice", heads, *(net.constant(list(b)) for b in ((1, 0), (2, 4), (2, 3)))), 0, 0, 4)


def rows_and_channels(net: Net, whole: str) -> str:
    others_read(net, cut(net, whole, 4, 12))
    ends, axes = net.constant([2, 4]), net.constant([1, 2])
    return net.op("Slice", whole, net.constant([0, 0]), ends, axes)


def one_row_alone(net: Net, whole: str) -> str:
    return cut(net, cut(net, whole, 0, 4), 1, 2, 1)


def unknown_rows(net: Net, whole: str) -> str:
    end = net.op("Sub", net.op("Shape", "x", start=1, end=2), net.constant([1]))
    return net.op("Slice", cut(net, whole, 0, 4), net.constant([0]), end, net.constant([1]))


def first_row(net: Net, whole: str) -> str:
    return pick(net, cut(net, whole, 0, 4), 0, 1)


def some_rows(net: Net, whole: str) -> str:
    return net.op("Gather", cut(net, whole, 0, 4), net.constant(np.array([[2, 0], [1, 1]])), axis=1)


def rows_by_an_input(net: Net, whole: str) -> str:
    index = net.op("Sub", net.op("Shape", "x", start=1, end=2), net.constant([1]))
    return net.op("Gather", net.op("Transpose", cut(net, whole, 0, 4), perm=[0, 2, 1]), index, axis=-1)


def rows_by_an_input_turned(net: Net, whole: str) -> str:
    return net.op("Transpose", rows_by_an_input(net, whole), perm=[0, 2, 1])


def both_windows(net: Net, whole: str) -> str:
    others_read(net, cut(net, whole, 8, 12))
    return net.op("Add", cut(net, whole, 0, 4), cut(net, whole, 4, 8))


def a_gate_of_windows(net: Net, whole: str) -> str:
    return net.op("Mul", cut(net, whole, 0, 4), net.op("Sigmoid", cut(net, whole, 8, 12)))


def an_empty_window(net: Net, whole: str) -> str:
    net.output(net.op("Tanh", cut(net, whole, 6, 6)))
    return cut(net, whole, 4, 8)


def nobody_else(net: Net, whole: str) -> str:
    cut(net, whole, 0, 12)  # its output is read by nobody
    return cut(net, whole, 4, 8)


PASSES: dict[str, tuple[Build, int, list[int], bool]] = {
    "a window": (a_window, 4, [4, 5, 6, 7], True),
    "every second channel": (every_second, 4, [1, 3, 5, 7], True),
    "one of three parts": (one_of_three, 4, [4, 5, 6, 7], True),
    "a list of one index of three": (a_list_of_one, 4, [4, 5, 6, 7], True),
    "one of three parts in front": (one_of_three_in_front, 4, [8, 9, 10, 11], True),
    "one of three parts interleaved": (one_of_the_last, 4, [0, 3, 6, 9], True),
    "a split into ones": (split_into_ones, 4, [8, 9, 10, 11], True),
    "a window of each head": (within_heads, 4, [2, 3, 8, 9], True),
    "a window of one head": (two_axes_at_once, 4, [6, 7, 8, 9], True),
    "a window of rows and channels": (rows_and_channels, 4, [0, 1, 2, 3], True),
    "one row": (one_row_alone, 4, [0, 1, 2, 3], True),
    "rows up to an unknown one": (unknown_rows, 4, [0, 1, 2, 3], True),
    "the first row": (first_row, 4, [0, 1, 2, 3], True),
    "rows by their numbers": (some_rows, 4, [0, 1, 2, 3], True),
    "rows by an unknown number": (rows_by_an_input_turned, 4, [0, 1, 2, 3], True),
    "a sum of two windows": (both_windows, 4, [0, 1, 2, 3], True),
    "a gate of two windows": (a_gate_of_windows, 1, [0, 1, 2, 3], True),
    "an empty window beside it": (an_empty_window, 4, [4, 5, 6, 7], True),
    "a window that nobody reads": (nobody_else, 4, [4, 5, 6, 7], True),
}


@pytest.mark.parametrize("rows", ["seq", 3])
@pytest.mark.parametrize(("build", "width", "position", "permutes"), PASSES.values(), ids=PASSES)
def test_channels_lie_at_the_place_of_their_window(
    build: Build, width: int, position: list[int], permutes: bool, rows: str | int
) -> None:
    net = net_of(build, rows)
    absorption = absorbable(net)
    assert (absorption.width, absorption.writers[0].sizes) == (width, (WIDTH,))
    np.testing.assert_array_equal(absorption.writers[0].position, position)
    assert absorption.permutable is not None
    assert (absorption.permutable.reason == "") == permutes
    assert_equivalent(net, X, tolerance=TOLERANCE)


def an_overlap(at: int) -> Build:
    def build(net: Net, whole: str) -> str:
        others_read(net, cut(net, whole, at, at + 5))
        return cut(net, whole, 4, 8)

    return build


def the_same_index(net: Net, whole: str) -> str:
    parts = reshape(net, whole, 0, 0, 3, 4)
    others_read(net, pick(net, parts, -2, 2))
    return pick(net, parts, 1, 2)


def a_list_of_indices(net: Net, whole: str) -> str:
    parts = reshape(net, whole, 0, 0, 3, 4)
    others_read(net, net.op("Gather", parts, net.constant([0, 2]), axis=2))
    return pick(net, parts, 1, 2)


def an_unknown_index(net: Net, whole: str) -> str:
    parts = reshape(net, whole, 0, 0, 3, 4)
    others_read(net, net.op("Gather", parts, net.input("index", [], TensorProto.INT64), axis=2))
    return pick(net, parts, 1, 2)


def other_rows(net: Net, whole: str) -> str:
    part = cut(net, whole, 0, 4)
    others_read(net, cut(net, whole, 0, 6))
    return cut(net, part, 0, 2, 1)


def rows_that_others_read(net: Net, whole: str) -> str:
    part = cut(net, whole, 0, 4)
    others_read(net, cut(net, part, 2, 3, 1))
    return cut(net, part, 0, 2, 1)


def one_row(net: Net, whole: str) -> str:
    """The others read other rows, but a bias is added to all rows alike."""
    part = cut(net, whole, 0, 4)
    others_read(net, cut(net, part, 1, 3, 1))
    return cut(net, part, 0, 1, 1)


def rows_split(net: Net, whole: str) -> str:
    return net.ops("Split", cut(net, whole, 0, 4), net.constant([1, 2]), results=["a", "b"], axis=1)[1]


def gathered_channels(net: Net, whole: str) -> str:
    return net.op("Gather", whole, net.constant([3, 1, 2, 0]), axis=-1)


def unknown_bounds(net: Net, whole: str) -> str:
    start = net.input("start", [1], TensorProto.INT64)
    return net.op("Slice", whole, start, net.constant([8]), net.constant([2]))


def unknown_axes(net: Net, whole: str) -> str:
    axes = net.input("axes", [1], TensorProto.INT64)
    return net.op("Slice", whole, net.constant([0]), net.constant([4]), axes)


def backwards(net: Net, whole: str) -> str:
    return reshape(net, cut(net, whole, 7, 3, -1, -1), 0, 0, 4)


def all_of_it(net: Net, whole: str) -> str:
    others_read(net, whole)
    return cut(net, whole, 0, 4)


def the_whole_from_its_output(net: Net, whole: str) -> str:
    return cut(net, net.output(whole), 0, 4)


def a_table(net: Net, _: str) -> str:
    index = net.op("Cast", net.op("Abs", cut(net, "x", 0, 1)), to=TensorProto.INT64)
    return net.op("Gather", net.normal(9, 4), net.op("Squeeze", index, net.constant([2])))


REFUSES: dict[str, tuple[Build, str]] = {
    "a window that begins below and ends in ours": (an_overlap(0), "also read by Slice"),
    "a window that begins with our last channel": (an_overlap(7), "also read by Slice"),
    "the same index": (the_same_index, "also read by Gather"),
    "a list of indices": (a_list_of_indices, "also read by Gather"),
    "an unknown index": (an_unknown_index, "also read by Gather"),
    "a wider window of all rows": (other_rows, "also read by Slice"),
    "rows that somebody else reads": (rows_that_others_read, "also read by Slice"),
    "one row of those that get a bias": (one_row, "does not lie along the channels"),
    "rows split": (rows_split, "does not split channels of known number"),
    "channels by their numbers": (gathered_channels, "gathers channels"),
    "unknown bounds": (unknown_bounds, "the bounds at which"),
    "unknown axes": (unknown_axes, "the axes that"),
    "a window read backwards": (backwards, "the bounds at which"),
    "somebody who reads all": (all_of_it, "also read by Tanh"),
    "an output of the whole": (the_whole_from_its_output, "also an output"),
    "rows of a table": (a_table, "straight from a constant"),
}


@pytest.mark.parametrize(("build", "reason"), REFUSES.values(), ids=REFUSES)
def test_what_stops_the_walk_and_why(build: Build, reason: str) -> None:
    absorption = absorbable(net_of(build, 3))
    assert (absorption.width, absorption.writers) == (0, ())
    assert reason in absorption.reason
    assert absorption.permutable is not None
    assert absorption.permutable.writers == ()


@pytest.mark.parametrize("cutter", ["Split", "Slice"])
def test_a_permutation_is_seen_by_the_other_part_of_a_value_that_it_reaches_twice(cutter: str) -> None:
    """The site takes the first half of the whole and the second of its Relu; the first half of the Relu sees both."""

    def halves(net: Net, value: str) -> list[str]:
        if cutter == "Split":
            return net.ops("Split", value, results=[net.name("a"), net.name("b")], axis=-1, num_outputs=2)
        return [cut(net, value, 0, 4), cut(net, value, 4, 8)]

    def net_with(watched: bool) -> Net:
        net = Net(seed=5)
        whole = net.op("MatMul", net.input("x", ["batch", "seq", 4]), net.normal(4, 8))
        left, right = halves(net, whole)[0], halves(net, net.op("Relu", whole))
        if watched:
            others_read(net, right[0])
        net.output(net.op("MatMul", net.op("Mul", left, right[1]), net.normal(4, 5)))
        return net

    for watched in (False, True):
        net = net_with(watched)
        room = absorbable(net).permutable
        assert room is not None
        assert not room.writers
        assert_equivalent(net, X, seeds=range(6), tolerance=TOLERANCE)


def test_a_window_of_a_fused_norm_takes_a_scaling_of_its_own() -> None:
    net = net_of(lambda n, v: a_window(n, n.op("LayerNormalization", v, n.vector(WIDTH), n.vector(WIDTH))))
    absorption = absorbable(net)
    assert (absorption.width, len(absorption.writers)) == (1, 2)
    np.testing.assert_array_equal(absorption.writers[1].position, [4, 5, 6, 7])
    assert_equivalent(net, X, tolerance=TOLERANCE)
