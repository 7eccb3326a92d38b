"""A made-up site with what makes 4 bits hard: a few loud channels, correlated ones, and a huge first token."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from catonnx.math.activations import ActivationGrid

Array = NDArray[np.float64]
PER_TOKEN = ActivationGrid(4)


def planted(width: int, *outputs: int, count: int = 320, seed: int = 0) -> tuple[NDArray[np.float32], list[Array]]:
    """Return rows (count, width) and one weight (width, N) for each number of outputs."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(width) + rng.standard_normal((width, width)) / width**0.5
    loudness = np.exp(0.7 * rng.standard_normal(width))
    loudness[rng.permutation(width)[: width // 16]] *= 15
    rows = rng.standard_normal((count, width)) @ mixing * loudness
    rows[::80] *= 30
    weights = [rng.standard_normal((width, columns)) / loudness[:, None] ** 0.5 for columns in outputs]
    return rows.astype(np.float32), weights


def site(width: int, *outputs: int, seed: int = 0, **options: Any) -> Any:
    """Return the planted site as a sample, activations in 4 bits per token unless told otherwise."""
    from catonnx.learned import SiteSample  # not before the caller has seen that torch is there

    rows, weights = planted(width, *outputs, seed=seed)
    return SiteSample(**{"rows": rows, "weights": weights, "grid": PER_TOKEN, **options})
