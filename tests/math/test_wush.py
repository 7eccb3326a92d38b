"""WUSH against its definition in the paper, and what it promises: CAT's alignment, a flat diagonal."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from catonnx.math.cat import cat_blocks, damped
from catonnx.math.hadamard import hadamard_matrix
from catonnx.math.wush import wush_blocks

Array = NDArray[np.float64]
RNG = np.random.default_rng(5)


def moments(count: int, block: int, spread: float = 2.0) -> Array:
    roots = RNG.standard_normal((count, block, block)) * np.exp(RNG.uniform(-spread, spread, (count, 1, block)))
    return np.asarray(roots @ roots.swapaxes(1, 2))


@pytest.mark.parametrize("block", [1, 2, 4, 6, 12, 16, 18])
def test_it_aligns_as_cat_does(block: int) -> None:
    x, w = moments(3, block), moments(3, block)
    aligned, spread = cat_blocks(x, w), wush_blocks(x, w)
    geometric = aligned @ aligned
    # Measured 4e-13 of the largest entry.
    np.testing.assert_allclose(spread @ spread.swapaxes(1, 2), geometric, rtol=0, atol=1e-10 * np.abs(geometric).max())


@pytest.mark.parametrize("block", [2, 4, 12, 16])
def test_both_sides_carry_one_moment_with_a_flat_diagonal(block: int) -> None:
    x, w = (damped(moments(2, block), 1e-4) for _ in range(2))
    spread = wush_blocks(x, w, damping=0)
    turned = spread.swapaxes(1, 2)
    left = turned @ x @ spread
    inverse = np.linalg.inv(spread)
    right = inverse @ w @ inverse.swapaxes(1, 2)
    scale = np.abs(left).max()
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-8 * scale)  # measured 6e-12
    flat = np.trace(left, axis1=1, axis2=2)[:, None] / block
    np.testing.assert_allclose(np.diagonal(left, axis1=1, axis2=2), np.broadcast_to(flat, (2, block)), rtol=1e-8)


def test_it_is_the_papers_product() -> None:
    x, w = (damped(moments(1, 8), 1e-4)[0] for _ in range(2))
    x_root, w_root = np.linalg.cholesky(x), np.linalg.cholesky(w)
    left, singular, _ = np.linalg.svd(w_root.T @ x_root)
    paper = hadamard_matrix(8) @ np.diag(singular**-0.5) @ left.T @ w_root.T
    own = wush_blocks(x[None], w[None], damping=0)[0].T
    # The same but for the signs of singular vectors, which H hides: undo it.
    first, second = hadamard_matrix(8).T @ paper, hadamard_matrix(8) @ own
    signs = np.sign((first * second).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(second, signs * first, rtol=0, atol=1e-9 * np.abs(first).max())  # measured 1e-12


@pytest.mark.parametrize(("block", "order"), [(18, 2), (36, 36), (14, 2), (15, 1)])
def test_a_width_without_a_hadamard_matrix_is_tiled_and_dealt_out(block: int, order: int) -> None:
    x, w = moments(1, block), moments(1, block)
    spread = wush_blocks(x, w)
    moment = spread[0].T @ damped(x, 1e-4)[0] @ spread[0]
    sums = np.diagonal(moment).reshape(-1, order)
    np.testing.assert_allclose(sums, np.broadcast_to(sums[:, :1], sums.shape), rtol=1e-8)


def test_dead_channels_and_dead_sides_stay_finite() -> None:
    x, w = moments(2, 4), moments(2, 4)
    x[0, 1], x[0, :, 1] = 0, 0
    w[1] = 0
    assert np.isfinite(wush_blocks(x, w)).all()
    identity = wush_blocks(np.zeros((2, 4, 4)), w)
    np.testing.assert_allclose(identity @ identity.swapaxes(1, 2), np.broadcast_to(np.eye(4), (2, 4, 4)), atol=1e-14)


def test_the_same_moments_give_the_same_blocks() -> None:
    x, w = moments(2, 8), moments(2, 8)
    np.testing.assert_array_equal(wush_blocks(x, w), wush_blocks(x.copy(), w.copy()))


def test_moments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        wush_blocks(moments(2, 4), moments(1, 4))
