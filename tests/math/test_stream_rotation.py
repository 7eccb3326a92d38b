"""Rotations of a whole stream: orthogonal, flat, and the mean stays where it is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from catonnx.math.stream_rotation import StreamRotation

WIDTHS = [1, 2, 3, 7, 16, 24, 36, 64, 66, 80, 96, 576]


@pytest.mark.parametrize("keeps_mean", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_orthogonal(width: int, keeps_mean: bool) -> None:
    matrix = StreamRotation.random(width, 3, keeps_mean=keeps_mean).apply(np.eye(width))
    # Measured 2e-15.
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_mean_stays(width: int) -> None:
    rows = np.random.default_rng(0).normal(size=(2, 5, width)) + 1
    turned = StreamRotation.random(width, 3, keeps_mean=True).apply(rows)
    np.testing.assert_allclose(turned.mean(axis=-1), rows.mean(axis=-1), atol=1e-12)
    centred = rows - rows.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        turned - turned.mean(axis=-1, keepdims=True),
        StreamRotation.random(width, 3, keeps_mean=True).apply(centred),
        atol=1e-12,
    )


def test_without_being_asked_it_moves() -> None:
    ones = np.ones((1, 64))
    assert np.abs(StreamRotation.random(64, 3).apply(ones) - ones).max() > 0.5


@pytest.mark.parametrize("width", [64, 80, 576])
def test_every_channel_is_spread_over_all(width: int) -> None:
    flat = StreamRotation.random(width, 1).apply(np.eye(width))
    np.testing.assert_allclose(np.abs(flat), width**-0.5)
    kept = StreamRotation.random(width, 1, keeps_mean=True).apply(np.eye(width))
    assert np.abs(kept).max() < 3 * width**-0.5  # measured: 2.1, 2.2 and 1.7


def test_a_width_without_a_hadamard_matrix_is_mixed_all_over() -> None:
    rotation = StreamRotation.random(66, 1)
    assert rotation.name == "rotation 33 x hadamard 2"
    assert (np.abs(rotation.apply(np.eye(66))) > 1e-6).all()


def test_the_seed_decides() -> None:
    one, same, other = (StreamRotation.random(48, seed).apply(np.eye(48)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
