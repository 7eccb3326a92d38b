"""SmoothQuant's scale: moves the range of loud activation channels into the weights.

    s_i = max|W_i|^(1 - alpha) / max|x_i|^alpha        x' = x s,  W' = s^-1 W

The paper divides by the inverse of this. At alpha = 1/2 both sides end with the same range in every channel,
``sqrt(max|x_i| max|W_i|)``; it is `cat.cat_scale` with maxima in place of mean squares.

Source: Xiao et al., "SmoothQuant", arXiv 2211.10438, section 4.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


def smooth_scale(x_maximum: NDArray[Any], w_maximum: NDArray[Any], alpha: float = 0.5, floor: float = 1e-4) -> Array:
    """Return the smoothing scale.

    Args:
        x_maximum: Largest ``|x_i|`` seen in each channel, shape (d,).
        w_maximum: Largest ``|W_ij|`` of each row, over all weights that read the activation, shape (d,).
        alpha: How much of the difficulty goes to the weights, from 0 (none of it) to 1 (all).
        floor: Maxima below this share of their mean are taken for it; a dead channel gets a finite scale.

    Returns:
        Factor of each channel for ``x' = x s``, shape (d,), positive; ones where one whole side is dead.

    Raises:
        ValueError: Shapes differ, a maximum is negative or not finite, or alpha or floor are out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1 (0.5 is usual)")
    if not floor > 0:
        raise ValueError(f"the floor is {floor}; it must be positive (1e-4 is usual)")
    x_maximum, w_maximum = _maxima(x_maximum, "activation"), _maxima(w_maximum, "weight")
    if x_maximum.shape != w_maximum.shape:
        raise ValueError(f"maxima of {len(x_maximum)} activation channels and {len(w_maximum)} weight rows do not fit")
    if not x_maximum.any() or not w_maximum.any():
        return np.ones(len(x_maximum))
    x_maximum, w_maximum = (np.maximum(side, floor * side.mean()) for side in (x_maximum, w_maximum))
    return np.asarray(w_maximum ** (1 - alpha) / x_maximum**alpha, dtype=np.float64)


def _maxima(maximum: NDArray[Any], side: str) -> Array:
    maximum = np.asarray(maximum, dtype=np.float64)
    if maximum.ndim != 1 or maximum.size == 0:
        raise ValueError(f"the {side} maxima have shape {maximum.shape}; they must be one vector")
    if not np.isfinite(maximum).all() or (maximum < 0).any():
        raise ValueError(f"the {side} maxima hold a number that is negative, NaN or Inf")
    return maximum
