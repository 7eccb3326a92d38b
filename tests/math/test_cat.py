"""The aligning transform does what theory promises of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from catonnx.math.cat import COLUMNS_PER_STEP, cat_blocks, cat_scale, damped, tied_mean, weight_moment
from catonnx.math.factors import Blocks, Scale
from catonnx.math.hadamard import hadamard_matrix
from catonnx.math.sqnr import alignment

Array = NDArray[np.float64]


def covariances(count: int, width: int, seed: int, spread: float = 1.0) -> tuple[Array, Array]:
    """Return two stacks of positive definite matrices whose channels differ in size by about e^spread."""
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((2, count, width, 2 * width)) * np.exp(
        spread * rng.standard_normal((2, count, width, 1))
    )
    products = roots @ roots.swapaxes(2, 3) / (2 * width)
    return products[0], products[1]


def best_alignment(x_moment: Array, w_moment: Array) -> float:
    """Return A_max of theory.md from the eigenvalues of Sx Sw, which are those of Sx^(1/2) Sw Sx^(1/2)."""
    lengths = np.sqrt(np.linalg.eigvals(x_moment @ w_moment).real)
    return float(np.sum(lengths**2) / np.sum(lengths) ** 2)


@given(st.integers(1, 4), st.integers(1, 12), st.floats(0, 2), st.integers(0, 2**32 - 1))
def test_both_sides_carry_the_same_moment(count: int, width: int, spread: float, seed: int) -> None:
    x_moment, w_moment = covariances(count, width, seed, spread)
    blocks = cat_blocks(x_moment, w_moment)
    inverses = np.linalg.inv(blocks)
    of_x = blocks @ damped(x_moment, 1e-4) @ blocks
    of_w = inverses @ damped(w_moment, 1e-4) @ inverses
    np.testing.assert_allclose(of_x, of_w, rtol=0, atol=1e-9 * np.abs(of_x).max())  # measured 6e-12 in 1500 examples
    np.testing.assert_array_equal(blocks, blocks.swapaxes(1, 2))
    assert np.linalg.eigvalsh(blocks).min() > 0


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_scale_is_the_closed_form_and_the_blocks_of_width_one(width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_diagonal, w_diagonal = np.exp(3 * rng.standard_normal((2, width)))
    scale = cat_scale(x_diagonal, w_diagonal, damping=0)
    np.testing.assert_allclose(scale, (w_diagonal / x_diagonal) ** 0.25, rtol=1e-13)  # measured 3e-16
    blocks = cat_blocks(x_diagonal[:, None, None], w_diagonal[:, None, None])
    np.testing.assert_array_equal(cat_scale(x_diagonal, w_diagonal), blocks[:, 0, 0])


@pytest.mark.parametrize("width", [2, 8, 48])
def test_one_block_reaches_the_best_alignment(width: int) -> None:
    rng = np.random.default_rng(1)
    (x_moment,), _ = covariances(1, width, seed=2)
    weight = rng.standard_normal((width, 2 * width)) * np.exp(rng.standard_normal((width, 1)))
    before = alignment(x_moment, weight)
    (matrix,) = cat_blocks(x_moment[None], weight_moment([weight], width), damping=0)
    after = alignment(matrix @ x_moment @ matrix, np.linalg.solve(matrix, weight))
    assert after == pytest.approx(best_alignment(x_moment, weight @ weight.T), rel=1e-10)  # measured 1e-14
    assert after > 1.1 * before


def test_wider_blocks_align_better_and_never_worse_than_none() -> None:
    rng = np.random.default_rng(3)
    (x_moment,), _ = covariances(1, 48, seed=4)
    weight = rng.standard_normal((48, 30)) * np.exp(rng.standard_normal((48, 1)))
    found = [alignment(x_moment, weight)]
    for block in (1, 4, 12, 48):
        spans = [slice(start, start + block) for start in range(0, 48, block)]
        x_blocks = np.stack([x_moment[span, span] for span in spans])
        factor = Blocks(cat_blocks(x_blocks, weight_moment([weight], block), damping=1e-10))
        dense = factor.dense()
        found.append(alignment(dense.T @ x_moment @ dense, factor.solve(weight)))
    assert found == sorted(found)  # measured 0.029, 0.085, 0.086, 0.090, 0.115
    assert found[-1] > 3 * found[0]


@pytest.mark.parametrize("rotation", ["hadamard", "random"])
def test_alignment_does_not_see_rotations(rotation: str) -> None:
    rng = np.random.default_rng(5)
    (x_moment,), _ = covariances(1, 24, seed=6)
    weight = rng.standard_normal((24, 10))
    matrix = hadamard_matrix(24) if rotation == "hadamard" else np.linalg.qr(rng.standard_normal((24, 24)))[0]
    rotated = alignment(matrix.T @ x_moment @ matrix, matrix.T @ weight)
    assert rotated == pytest.approx(alignment(x_moment, weight), rel=1e-12)  # measured 3e-16
    scale = Scale(np.exp(rng.standard_normal(24)))
    scaled = alignment(scale.dense() @ x_moment @ scale.dense(), scale.solve(weight))
    assert abs(scaled / rotated - 1) > 0.1, "what is not a rotation is seen"


@pytest.mark.parametrize("dead_side", ["x", "w", "both"])
@pytest.mark.parametrize("block", [1, 3])
def test_dead_channels_stay_sane(dead_side: str, block: int) -> None:
    x_moment, w_moment = covariances(12 // block, block, seed=7, spread=0.3)
    for name, moment in (("x", x_moment), ("w", w_moment)):
        if dead_side in (name, "both"):
            moment[0] = 0.0
    eigenvalues = np.linalg.eigvalsh(cat_blocks(x_moment, w_moment))
    # One dead side costs damping^(1/4) = 10 at most; dead on both sides stands at the level of the site, 1 here.
    assert eigenvalues.min() > 0.05
    assert eigenvalues.max() < 20
    if dead_side == "both":
        np.testing.assert_allclose(eigenvalues[0], 1, rtol=0, atol=0.2)  # measured 0.09


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("dead_sides", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_a_dead_site_is_left_alone(block: int, dead_sides: tuple[float, float]) -> None:
    identity = np.stack([np.eye(block)] * 2)
    np.testing.assert_array_equal(cat_blocks(dead_sides[0] * identity, dead_sides[1] * identity), identity)


@pytest.mark.parametrize("block", [1, 4, 12])
def test_weight_moment_sums_over_weights_and_columns(block: int) -> None:
    rng = np.random.default_rng(8)
    weights = [rng.standard_normal((12, count)).astype(np.float32) for count in (5, COLUMNS_PER_STEP + 3)]
    full = np.hstack(weights).astype(np.float64) @ np.hstack(weights).astype(np.float64).T
    for index, moment in enumerate(weight_moment(weights, block)):
        span = slice(index * block, (index + 1) * block)
        np.testing.assert_allclose(
            moment, full[span, span], rtol=0, atol=1e-9
        )  # measured 2e-11 in sums of 4100 squares


@given(st.lists(st.integers(-2, 3), min_size=1, max_size=8))
def test_tied_blocks_get_their_mean(ties: list[int]) -> None:
    moment = np.random.default_rng(9).standard_normal((len(ties), 2, 2))
    tied = tied_mean(moment, ties)
    for index, label in enumerate(ties):
        expected = np.mean([moment[other] for other, name in enumerate(ties) if name == label], axis=0)
        np.testing.assert_allclose(tied[index], expected, rtol=0, atol=1e-14)  # measured 2e-16
    np.testing.assert_allclose(tied_mean(tied, ties), tied, rtol=0, atol=1e-14)


def test_nonsense_is_refused() -> None:
    good = np.stack([np.eye(2)] * 3)
    with pytest.raises(ValueError, match="differ in shape"):
        cat_blocks(good, good[:2])
    with pytest.raises(ValueError, match=r"must be \(n, k, k\)"):
        cat_blocks(good[0], good[0])
    with pytest.raises(ValueError, match="activation moment holds NaN"):
        cat_blocks(good * np.nan, good)
    with pytest.raises(ValueError, match="damping is -1"):
        cat_blocks(good, good, damping=-1)
    bad = good.copy()
    bad[1, 1, 1] = -1.0
    with pytest.raises(ValueError, match="the activation moment of block 1 is not positive definite"):
        cat_blocks(bad, good)
    with pytest.raises(ValueError, match="the weight moment of block 1 is not positive definite"):
        cat_blocks(good, bad)
    with pytest.raises(ValueError, match="one number of rows"):
        weight_moment([np.ones((2, 3)), np.ones((4, 3))], 2)
    with pytest.raises(ValueError, match="one number of rows"):
        weight_moment([], 2)
    with pytest.raises(ValueError, match="blocks of 3 channels do not tile"):
        weight_moment([np.ones((4, 3))], 3)
    with pytest.raises(ValueError, match="one label for each of 3 blocks"):
        tied_mean(good, [0, 1])
