"""Alignment: the change of basis that makes activation and weights carry the same second moment.

    G = Sx^-1 # Sw            matrix geometric mean: the only positive definite G with G Sx G = Sw
    M = G^(1/2)               x' = x M,  W' = M^-1 W,  and then  M Sx M = M^-1 Sw M^-1

with ``Sx = E[x^T x]`` of a row x and ``Sw = W W^T`` of a weight [d, N], summed over all weights that read x.
Among all changes of basis M gives the best alignment, ``A_max = sum(l^2) / (sum l)^2`` where l^2 are the eigenvalues
of ``Sx^(1/2) Sw Sx^(1/2)``. On k x k diagonal blocks it is solved block by block; k = 1 is a scale per channel.

Source: Federici et al., "Dissecting Quantization Error: A Concentration-Alignment Perspective", arXiv 2603.04359.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

COLUMNS_PER_STEP = 4096
"""Columns of a weight cast to float64 at a time: an output head of 50 000 columns should not be copied whole."""


def cat_scale(x_diagonal: NDArray[Any], w_diagonal: NDArray[Any], damping: float = 1e-4) -> Array:
    """Return the aligning scale, ``s_i = (Sw_ii / Sx_ii)^(1/4)``: `cat_blocks` for k = 1.

    Args:
        x_diagonal: Mean square of each channel of the activation, shape (d,).
        w_diagonal: Sum of squares of each row of the weights, shape (d,).
        damping: Added to both, in units of their mean; a channel that is dead on one side stays finite.

    Returns:
        Factor of each channel for ``x' = x s``, shape (d,), positive.

    Raises:
        ValueError: Shapes differ, a moment is negative or not finite, or the damping is negative.
    """
    scales = cat_blocks(np.asarray(x_diagonal)[:, None, None], np.asarray(w_diagonal)[:, None, None], damping)
    return scales[:, 0, 0]


def cat_blocks(x_moment: NDArray[Any], w_moment: NDArray[Any], damping: float = 1e-4) -> Array:
    """Return the aligning blocks M, symmetric positive definite.

    Args:
        x_moment: Diagonal blocks of Sx, shape (n, k, k), symmetric.
        w_moment: Diagonal blocks of Sw, shape (n, k, k), symmetric.
        damping: Added to the diagonals (`damped`).

    Returns:
        M, shape (n, k, k), for ``x' = x M`` and ``W' = M^-1 W``. Where one whole side is dead, M is the identity.

    Raises:
        ValueError: Shapes differ, a moment is not positive definite even after damping, or is not finite.
    """
    x_moment, w_moment = _moment(x_moment, "activation"), _moment(w_moment, "weight")
    if x_moment.shape != w_moment.shape:
        raise ValueError(f"activation moment {x_moment.shape} and weight moment {w_moment.shape} differ in shape")
    if not x_moment.any() or not w_moment.any():
        return np.broadcast_to(np.eye(x_moment.shape[1]), x_moment.shape).copy()
    x_moment, w_moment = damped(x_moment, damping), damped(w_moment, damping)

    # With Sx = L L^T and L^T Sw L = U D U^T:  G = B B^T,  B = L^-T U D^(1/4).
    lower = _cholesky(x_moment, "activation")
    upper = lower.swapaxes(1, 2)
    eigenvalues, vectors = np.linalg.eigh(upper @ w_moment @ lower)
    if eigenvalues.min() <= 0:
        block = int(eigenvalues.min(axis=1).argmin())
        raise ValueError(f"the weight moment of block {block} is not positive definite; raise the damping")
    root = np.linalg.solve(upper, vectors * eigenvalues[:, None, :] ** 0.25)
    # eigh of G loses twice the digits that svd of B would, and takes a third of its time; 10 digits are left.
    eigenvalues, vectors = np.linalg.eigh(root @ root.swapaxes(1, 2))
    aligned = (vectors * np.sqrt(eigenvalues)[:, None, :]) @ vectors.swapaxes(1, 2)
    return np.asarray((aligned + aligned.swapaxes(1, 2)) / 2, dtype=np.float64)


def damped(moment: NDArray[Any], damping: float) -> Array:
    """Return a moment (n, k, k) with ``damping`` times its mean diagonal, over all blocks, added to its diagonal.

    The mean is that of the whole site: a dead block then still gets a level to stand on.

    Raises:
        ValueError: The damping is negative.
    """
    if not damping >= 0:
        raise ValueError(f"damping is {damping}; it must be 0 or more (1e-4 is usual)")
    level = np.trace(moment, axis1=1, axis2=2).sum() / (moment.shape[0] * moment.shape[1])
    return np.asarray(moment + damping * level * np.eye(moment.shape[1]), dtype=np.float64)


def weight_moment(weights: Sequence[NDArray[Any]], block: int) -> Array:
    """Return the k x k diagonal blocks of ``sum_i W_i W_i^T``.

    Args:
        weights: Weights (d, N_i) that read the same activation, any floating type.
        block: Block width k; divides d.

    Returns:
        Sw, shape (d / k, k, k), float64.

    Raises:
        ValueError: There is no weight, their rows differ, or the block does not divide them.
    """
    rows = {weight.shape[0] for weight in weights}
    if len(rows) != 1:
        raise ValueError(f"weights of one site must have one number of rows, these have {sorted(rows)}")
    width = rows.pop()
    if block < 1 or width % block:
        raise ValueError(f"blocks of {block} channels do not tile a weight of {width} rows")
    total = np.zeros((width // block, block, block))
    for weight in weights:
        for start in range(0, weight.shape[1], COLUMNS_PER_STEP):
            columns = weight[:, start : start + COLUMNS_PER_STEP].astype(np.float64)
            by_block = columns.reshape(width // block, block, -1)
            if block == 1:  # k = 1 is a sum of squares; matmul would go one channel at a time
                total[:, 0, 0] += np.einsum("dn,dn->d", columns, columns)
            else:
                total += by_block @ by_block.swapaxes(1, 2)
    return total


def tied_mean(moment: NDArray[Any], ties: NDArray[Any] | Sequence[int]) -> Array:
    """Return a moment in which every tied block is the mean of its set, so that the set gets one transform.

    Args:
        moment: Blocks (n, k, k).
        ties: One label per block, shape (n,); blocks of one label are tied, as query heads of one key-value head are.

    Returns:
        Blocks (n, k, k).

    Raises:
        ValueError: The number of labels is not the number of blocks.
    """
    moment, labels = np.asarray(moment, dtype=np.float64), np.asarray(ties)
    if labels.shape != moment.shape[:1]:
        raise ValueError(f"ties have shape {labels.shape}; there must be one label for each of {len(moment)} blocks")
    result = np.empty_like(moment)
    for label in np.unique(labels):
        result[labels == label] = moment[labels == label].mean(axis=0)
    return result


def _moment(moment: NDArray[Any], side: str) -> Array:
    moment = np.asarray(moment, dtype=np.float64)
    if moment.ndim != 3 or moment.shape[1] != moment.shape[2] or moment.size == 0:
        raise ValueError(f"{side} moment has shape {moment.shape}; it must be (n, k, k)")
    if not np.isfinite(moment).all():
        raise ValueError(f"{side} moment holds NaN or Inf; look at what was fed to the model")
    return moment


def _cholesky(moment: Array, side: str) -> Array:
    try:
        return np.asarray(np.linalg.cholesky(moment), dtype=np.float64)
    except np.linalg.LinAlgError:
        block = int(np.linalg.eigvalsh(moment).min(axis=1).argmin())
        raise ValueError(f"the {side} moment of block {block} is not positive definite; raise the damping") from None
