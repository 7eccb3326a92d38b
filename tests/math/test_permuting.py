"""Channels that belong together are found again in any order, nothing is made worse, and no chance is involved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from catonnx.math.cat import cat_blocks, damped
from catonnx.math.factors import Blocks, Permutation
from catonnx.math.permuting import LEAST_GAIN, block_sum, gathering_order

Array = NDArray[np.float64]


def planted(width: int, block: int, seed: int, correlation: float = 0.9) -> tuple[Array, Array]:
    """Return moments whose activation is correlated within blocks, channels in their places."""
    rng = np.random.default_rng(seed)
    x_moment = np.kron(np.eye(width // block), np.full((block, block), correlation) + (1 - correlation) * np.eye(block))
    loudness = np.exp(rng.uniform(-1, 1, width))
    weight = rng.standard_normal((width, 4 * width))
    return x_moment * np.outer(loudness, loudness), weight @ weight.T / width


def shuffled(x_moment: Array, w_moment: Array, seed: int) -> tuple[Array, Array]:
    order = np.random.default_rng(seed).permutation(len(x_moment))
    return x_moment[np.ix_(order, order)], w_moment[np.ix_(order, order)]


def sum_after(x_moment: Array, w_moment: Array, order: NDArray[np.int64], block: int) -> float:
    x_moment, w_moment = (damped(moment[None], 1e-4)[0] for moment in (x_moment, w_moment))
    return block_sum(x_moment, w_moment, order, block)


@pytest.mark.parametrize(("width", "block"), [(24, 4), (64, 8), (96, 16), (120, 60)])
@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_are_found_again(width: int, block: int, seed: int) -> None:
    moments = planted(width, block, seed)
    ideal, unchanged = sum_after(*moments, np.arange(width), block), np.arange(width)
    mixed = shuffled(*moments, seed)
    before, after = sum_after(*mixed, unchanged, block), sum_after(*mixed, gathering_order(*mixed, block), block)
    regained = (before - after) / (before - ideal)
    assert regained > 0.99  # measured 1 - 1e-14


def test_groups_correlated_in_the_weights_are_found_too() -> None:
    x_moment, w_moment = planted(64, 8, 1)
    mixed = shuffled(w_moment, x_moment, 1)
    ideal = sum_after(w_moment, x_moment, np.arange(64), 8)
    assert sum_after(*mixed, gathering_order(*mixed, 8), 8) < 1.001 * ideal


def test_what_correlates_alike_on_both_sides_needs_no_block() -> None:
    x_moment, _ = planted(32, 4, 0)
    mixed, _ = shuffled(x_moment, x_moment, 0)
    np.testing.assert_array_equal(gathering_order(mixed, mixed, 4), np.arange(32))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 4, 6, 8, 12]), st.booleans())
def test_no_order_is_worse_than_none(seed: int, block: int, weak: bool) -> None:
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((2, 24, 24)) * np.exp(rng.uniform(-2, 2, (2, 24, 1))) + (10 if weak else 0) * np.eye(24)
    x_moment, w_moment = roots @ roots.swapaxes(1, 2)
    order = gathering_order(x_moment, w_moment, block)
    before, after = (sum_after(x_moment, w_moment, o, block) for o in (np.arange(24), order))
    if np.array_equal(order, np.arange(24)):
        assert after == before
    else:
        assert after < (1 - LEAST_GAIN) * before
        assert Permutation(order).width == 24
        assert (np.diff(order.reshape(-1, block), axis=1) > 0).all()
    again = gathering_order(x_moment.copy(), w_moment.copy(), block)
    np.testing.assert_array_equal(again, order)


def test_the_sum_is_the_energy_that_the_blocks_leave() -> None:
    """After the permutation and CAT both sides carry energy sum(l): the alignment that theory promises is reached."""
    x_moment, w_moment = shuffled(*planted(48, 8, 4), 4)
    order = gathering_order(x_moment, w_moment, 8)
    x_moved, w_moved = (damped(moment[None], 1e-4)[0][np.ix_(order, order)] for moment in (x_moment, w_moment))
    x_own, w_own = (np.stack([moment[i : i + 8, i : i + 8] for i in range(0, 48, 8)]) for moment in (x_moved, w_moved))
    matrix = Blocks(cat_blocks(x_own, w_own, damping=0)).dense()
    inverse = np.linalg.inv(matrix)
    total = sum_after(x_moment, w_moment, order, 8)
    assert np.trace(matrix @ x_moved @ matrix) == pytest.approx(total, rel=1e-9)
    assert np.trace(inverse @ w_moved @ inverse) == pytest.approx(total, rel=1e-9)


def test_nothing_to_gather_changes_nothing() -> None:
    x_moment, w_moment = shuffled(*planted(24, 4, 2), 2)
    unchanged = np.arange(24)
    for block in (1, 24):
        np.testing.assert_array_equal(gathering_order(x_moment, w_moment, block), unchanged)
    nothing = np.zeros((24, 24))
    for x_side, w_side in ((np.diag(np.arange(1.0, 25)), np.eye(24)), (nothing, w_moment), (x_moment, nothing)):
        np.testing.assert_array_equal(gathering_order(x_side, w_side, 4), unchanged)


def test_dead_channels_are_gathered_without_harm() -> None:
    x_moment, w_moment = shuffled(*planted(32, 4, 3), 3)
    x_moment[5], x_moment[:, 5] = 0, 0
    w_moment[9], w_moment[:, 9] = 0, 0
    order = gathering_order(x_moment, w_moment, 4)
    assert sorted(order) == list(range(32))
    assert sum_after(x_moment, w_moment, order, 4) < 0.9 * sum_after(x_moment, w_moment, np.arange(32), 4)


@pytest.mark.parametrize(
    ("x_moment", "w_moment", "block", "message"),
    [
        (np.eye(6), np.eye(6), 4, "blocks of 4 channels do not tile 6"),
        (np.eye(6), np.eye(6), 0, "blocks of 0"),
        (np.eye(6), np.eye(4), 2, "differ in shape"),
        (np.ones((6, 1, 1)), np.eye(6), 2, r"activation moment has shape \(6, 1, 1\)"),
        (np.eye(6), np.full((6, 6), np.nan), 2, "weight moment holds NaN"),
        (np.eye(6) - 2 * np.eye(6)[::-1], np.eye(6), 6 // 2, "not positive definite"),
    ],
)
def test_nonsense_is_refused(x_moment: Array, w_moment: Array, block: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gathering_order(x_moment, w_moment, block)
