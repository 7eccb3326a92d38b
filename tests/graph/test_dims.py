"""Lengths as products of symbols: equal when they must be equal, and never otherwise."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from catonnx.graph import dims
from catonnx.graph.dims import Dim

BATCH, SEQ = dims.symbol("batch"), dims.symbol("seq")
LENGTHS = st.lists(st.sampled_from([Dim(1), Dim(2), Dim(3), Dim(4), Dim(6), BATCH, SEQ]), max_size=5)


def length(dim: Dim) -> int:
    """Return a length for batch = 5 and seq = 7."""
    return dim.coefficient * math.prod({"batch": 5, "seq": 7}[symbol] for symbol in dim.symbols)


def test_products_do_not_depend_on_the_order() -> None:
    assert dims.product([BATCH, Dim(3), SEQ]) == dims.product([SEQ, BATCH, Dim(3)]) == Dim(3, ("batch", "seq"))
    assert dims.product([]) == Dim(1)
    assert dims.product([BATCH, Dim(0)]) == Dim(0)


def test_division_is_exact_or_none() -> None:
    whole = dims.product([BATCH, SEQ, Dim(12)])
    assert dims.divide(whole, dims.product([SEQ, Dim(4)])) == Dim(3, ("batch",))
    assert dims.divide(whole, Dim(5)) is None
    assert dims.divide(BATCH, SEQ) is None
    assert dims.divide(BATCH, Dim(0)) is None


def test_equal_sums_are_equal_and_unlike_terms_are_a_symbol_of_their_own() -> None:
    assert dims.add(BATCH, SEQ) == dims.add(SEQ, BATCH)
    assert dims.add(BATCH, BATCH) == Dim(2, ("batch",))
    assert dims.add(BATCH, BATCH, -1) == Dim(0)
    assert dims.add(BATCH, SEQ, -1) != dims.add(SEQ, BATCH, -1)
    assert dims.add(dims.add(BATCH, Dim(1)), SEQ).value is None
    assert dims.add(Dim(0), BATCH, -1) != BATCH


def test_an_unknown_length_equals_nothing_but_itself() -> None:
    one, other = dims.unknown(), dims.unknown()
    assert one == one
    assert one != other
    assert one.value is None


def test_broadcasting_keeps_what_is_known() -> None:
    assert dims.broadcast(Dim(1), BATCH) == dims.broadcast(BATCH, Dim(1)) == BATCH
    assert dims.broadcast(BATCH, Dim(4)) == Dim(4)  # a batch of 1 or 4, broadcast to 4
    assert dims.broadcast(BATCH, BATCH) == BATCH
    assert dims.broadcast(BATCH, SEQ) not in (BATCH, SEQ)


def test_a_length_prints_as_people_write_it() -> None:
    assert str(Dim(3, ("batch", "seq"))) == "3*batch*seq"
    assert (str(BATCH), str(Dim(4))) == ("batch", "4")


def test_splitting_heads_moves_only_the_channels() -> None:
    before, after = (BATCH, SEQ, Dim(12)), (BATCH, SEQ, Dim(3), Dim(4))
    assert dims.groups(before, after) == [(range(2, 3), range(2, 4)), (range(1, 2), range(1, 2)), (range(1), range(1))]


def test_joined_rows_do_not_touch_the_channels() -> None:
    assert dims.groups((BATCH, SEQ, Dim(12)), (Dim(1, ("batch", "seq")), Dim(12)))[0] == (range(2, 3), range(1, 2))


def test_what_cannot_be_told_apart_stays_together() -> None:
    assert dims.groups((BATCH, Dim(3), SEQ, Dim(4)), (BATCH, SEQ, Dim(12)))[0] == (range(1, 4), range(1, 3))


def test_an_axis_that_two_names_were_given_is_found_between_its_neighbours() -> None:
    before, after = (BATCH, Dim(4), Dim(1, ("?",)), Dim(16)), (BATCH, Dim(4), SEQ, Dim(16))
    single = [(range(axis, axis + 1),) * 2 for axis in range(4)]
    assert sorted(dims.groups(before, after), key=str) == sorted(single, key=str)


@given(LENGTHS, LENGTHS)
def test_a_cut_is_only_made_where_both_sides_hold_as_many_elements(left: list[Dim], right: list[Dim]) -> None:
    groups = dims.groups(tuple(left), tuple(right))
    covered_left = sorted(axis for part, _ in groups for axis in part)
    covered_right = sorted(axis for _, part in groups for axis in part)
    assert (covered_left, covered_right) == (list(range(len(left))), list(range(len(right))))
    sizes = [
        (math.prod(length(left[axis]) for axis in part), math.prod(length(right[axis]) for axis in other))
        for part, other in groups
    ]
    assert sum(size != other for size, other in sizes) <= 1  # one pair takes what is left
