"""WUSH: the aligning change of basis that also gives every channel of a block the same energy.

    Sx = X X^T,  Sw = W W^T,  W^T X = U S V^T        on each k x k block, by any square roots of the moments
    F = W U S^(-1/2) H^T                             x' = x F;  in the paper's columns T = F^T = H S^(-1/2) U^T W^T

``F F^T = Sx^-1 # Sw``, so it aligns as `cat` does. Afterwards both sides carry the moment ``H S H^T``, whose diagonal
is flat, ``trace(S) / k`` in every channel, because the entries of a Hadamard matrix are all of one size. After CAT and
H it is ``H^T M Sx M H``: the same eigenvalues, but a diagonal that depends on the directions of the eigenvectors.

The blocks are computed from CAT's M: with ``M Sx M = V S V^T``, ``W U S^(-1/2) = M V`` up to signs.

Source: Chen et al., "WUSH: Near-Optimal Adaptive Transforms for LLM Quantization", arXiv 2512.00956.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from catonnx.math.cat import cat_blocks, damped
from catonnx.math.hadamard import hadamard_matrix, largest_hadamard_order

Array: TypeAlias = NDArray[np.float64]


def wush_blocks(x_moment: NDArray[Any], w_moment: NDArray[Any], damping: float = 1e-4) -> Array:
    """Return the blocks F.

    Args:
        x_moment: Diagonal blocks of Sx, shape (n, k, k), symmetric.
        w_moment: Diagonal blocks of Sw, shape (n, k, k), symmetric.
        damping: Added to the diagonals, as in `cat_blocks`.

    Returns:
        F, shape (n, k, k), for ``x' = x F`` and ``W' = F^-1 W``. Where k has no Hadamard matrix, H is as many of the
        largest order that divides k as fit, and the eigenvalues are dealt out to them so that their sums are alike.

    Raises:
        ValueError: As `cat_blocks` raises it.
    """
    aligned = cat_blocks(x_moment, w_moment, damping)
    common = aligned @ damped(np.asarray(x_moment, dtype=np.float64), damping) @ aligned
    _, vectors = np.linalg.eigh((common + common.swapaxes(1, 2)) / 2)
    spread = _spread(aligned.shape[1])
    return np.asarray(aligned @ vectors[:, :, ::-1] @ spread, dtype=np.float64)


def _spread(block: int) -> Array:
    """Return the orthogonal matrix (k, k) that spreads k directions, strongest first, over all channels alike."""
    order = largest_hadamard_order(block)
    count = block // order
    spread = np.zeros((block, block))
    for rank in range(order):
        turn = range(count) if rank % 2 == 0 else reversed(range(count))
        for taken, group in enumerate(turn):
            spread[rank * count + taken, group * order : (group + 1) * order] = hadamard_matrix(order)[:, rank]
    return spread
