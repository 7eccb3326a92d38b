"""SmoothQuant's scale: the formula, its limits, dead channels and nonsense."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from catonnx.math.smoothing import smooth_scale

RNG = np.random.default_rng(0)
X, W = RNG.uniform(0.1, 50, 8), RNG.uniform(0.01, 2, 8)


def test_half_and_half_gives_both_sides_the_same_range() -> None:
    scale = smooth_scale(X, W)
    np.testing.assert_allclose(X * scale, W / scale, rtol=1e-14)
    np.testing.assert_allclose(X * scale, np.sqrt(X * W), rtol=1e-14)


def test_it_is_the_inverse_of_the_papers_scale() -> None:
    np.testing.assert_allclose(smooth_scale(X, W, 0.8), 1 / (X**0.8 / W**0.2), rtol=1e-14)


def test_at_the_ends_one_side_becomes_flat() -> None:
    np.testing.assert_allclose(X * smooth_scale(X, W, 1.0), 1, rtol=1e-14)
    np.testing.assert_allclose(W / smooth_scale(X, W, 0.0), 1, rtol=1e-14)


def test_a_dead_channel_gets_a_finite_scale_and_changes_no_other() -> None:
    x, w = X.copy(), W.copy()
    x[2] = w[5] = 0
    scale = smooth_scale(x, w)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    alive = np.delete(np.arange(8), [2, 5])
    np.testing.assert_array_equal(scale[alive], smooth_scale(X, W)[alive])
    assert w[2] / scale[2] < np.sqrt(X * W).min(), "the weights of a dead channel must not stand out"
    np.testing.assert_array_equal(smooth_scale(np.zeros(8), W), np.ones(8))
    np.testing.assert_array_equal(smooth_scale(X, np.zeros(8)), np.ones(8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smooth_scale(X, W, 1.5), "alpha is 1.5"),
        (lambda: smooth_scale(X, W, np.nan), "alpha is nan"),
        (lambda: smooth_scale(X, W, floor=0), "floor is 0"),
        (lambda: smooth_scale(X[:3], W), "maxima of 3 activation channels and 8 weight rows"),
        (lambda: smooth_scale(X[:, None], W), r"activation maxima have shape \(8, 1\)"),
        (lambda: smooth_scale(X, -W), "weight maxima hold a number that is negative"),
        (lambda: smooth_scale(X * np.inf, W), "activation maxima hold"),
    ],
)
def test_nonsense_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
