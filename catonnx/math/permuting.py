"""A permutation that gathers channels into blocks in which a change of basis has the most to gain.

Blocks of k channels reach the alignment ``A = E|xW|^2 / (sum l)^2``, where l^2 are the eigenvalues of
``Sx^(1/2) Sw Sx^(1/2)`` of every diagonal block (`cat`). Which channels share a block is free: the sum is to be small.

For a block of two, with a_i = Sx_ii Sw_ii and correlations sin(p) of the activations and sin(q) of the weights,

    (l_1 + l_2)^2 = a_i + a_j + 2 sqrt(a_i a_j) cos(p - q)

so a pair gains ``g_ij = sqrt(a_i) + sqrt(a_j) - l_1 - l_2``: nothing where both sides correlate alike, most where one
correlates and the other does not. To second order in the correlations a wider block gains the sum of its pairs. The
channels are gathered so that this sum is large: block after block from the channels that are left, or from the order as
it is; then pairs of channels change blocks as long as that helps; the better of both by the exact sum of l is taken.

On MLPs of SmolLM2 (d = 1536, layers 1, 8, 20, 29) alignment gains 0.2, 0.2, 0.3 and 0.7 dB for blocks of 16, 64 and
128 alike, of the 4.2 to 5.2 dB that one block of 1536 would bring; blocks of 128 in place of 64 bring 0.2 to 0.4 dB.
Half a million random exchanges judged by the exact sum added 0.02 dB to a greedy order: there are no clusters to find.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from catonnx.math.cat import damped

Array: TypeAlias = NDArray[np.float64]
Order: TypeAlias = NDArray[np.int64]

LEAST_GAIN = 1e-3
"""Share of the sum by which an order must be better than none: 0.01 dB."""

_ROUNDS = 12
"""Of exchanges, up to d / 2 in each; later ones added less than 0.01 dB."""


def gathering_order(x_moment: NDArray[Any], w_moment: NDArray[Any], block: int, damping: float = 1e-4) -> Order:
    """Return the order that gathers channels into blocks, for `Permutation`.

    Args:
        x_moment: Second moment Sx of the activation, whole, shape (d, d), symmetric.
        w_moment: Second moment Sw of the weights, whole, shape (d, d), symmetric.
        block: Block width k; divides d.
        damping: Added to both diagonals, in units of their mean.

    Returns:
        Order (d,), int64: ``x'[j] = x[order[j]]``, ascending within each block. The identity where nothing better than
        `LEAST_GAIN` was found. The same moments give the same order.

    Raises:
        ValueError: Shapes do not fit, or a moment is not finite, or not positive definite after damping.
    """
    x_moment, w_moment = _moment(x_moment, "activation", damping), _moment(w_moment, "weight", damping)
    width = len(x_moment)
    if w_moment.shape != x_moment.shape:
        raise ValueError(f"activation moment {x_moment.shape} and weight moment {w_moment.shape} differ in shape")
    if block < 1 or width % block:
        raise ValueError(f"blocks of {block} channels do not tile {width} channels")
    unchanged = np.arange(width, dtype=np.int64)
    if not x_moment.any() or not w_moment.any() or block in (1, width):
        return unchanged
    gains = _pair_gains(x_moment, w_moment)
    found = [_exchanged(gains, labels, block) for labels in (_greedy(gains, block), unchanged // block)]
    orders = [np.argsort(labels, kind="stable") for labels in found]
    sums = [block_sum(x_moment, w_moment, order, block) for order in orders]
    best = int(np.argmin(sums))
    enough = sums[best] < (1 - LEAST_GAIN) * block_sum(x_moment, w_moment, unchanged, block)
    return orders[best] if enough else unchanged


def block_sum(x_moment: Array, w_moment: Array, order: Order, block: int) -> float:
    """Return the sum of l over all blocks of an order: alignment is inverse to its square.

    Args:
        x_moment: Sx, shape (d, d), positive definite.
        w_moment: Sw, shape (d, d), positive semidefinite.
        order: Channels block by block, shape (d,).
        block: Block width k; divides d.
    """
    members = order.reshape(-1, block)  # (n, k)
    x_blocks, w_blocks = (moment[members[:, :, None], members[:, None, :]] for moment in (x_moment, w_moment))
    try:
        lower = np.linalg.cholesky(x_blocks)
    except np.linalg.LinAlgError:
        raise ValueError("the activation moment is not positive definite; raise the damping") from None
    squares = np.linalg.eigvalsh(lower.swapaxes(1, 2) @ w_blocks @ lower)
    return float(np.sqrt(np.maximum(squares, 0)).sum())


def _pair_gains(x_moment: Array, w_moment: Array) -> Array:
    """Return g of the module's text, (d, d), with a zero diagonal."""
    roots = [np.sqrt(np.diagonal(moment)) for moment in (x_moment, w_moment)]
    x_sine, w_sine = (
        np.clip(moment / np.outer(root, root), -1, 1) for moment, root in zip((x_moment, w_moment), roots, strict=True)
    )
    cosine = x_sine * w_sine + np.sqrt((1 - x_sine**2) * (1 - w_sine**2))
    alone = roots[0] * roots[1]  # l of a channel that is its own block
    squares = alone**2
    together = np.sqrt(np.maximum(squares[:, None] + squares + 2 * np.outer(alone, alone) * cosine, 0))
    gains = np.maximum(alone[:, None] + alone - together, 0)
    np.fill_diagonal(gains, 0)
    return np.asarray((gains + gains.T) / 2, dtype=np.float64)


def _greedy(gains: Array, block: int) -> Order:
    """Fill block after block: first the channel that gains most with all that are left, then who gains most with it."""
    width = len(gains)
    left, labels = np.ones(width, dtype=bool), np.empty(width, dtype=np.int64)
    for label in range(width // block):
        pull = gains @ left
        for member in range(block):
            chosen = int(np.where(left, pull, -1).argmax())
            pull = gains[chosen].copy() if member == 0 else pull + gains[chosen]
            labels[chosen], left[chosen] = label, False
    return labels


def _exchanged(gains: Array, labels: Order, block: int) -> Order:
    """Let pairs of channels change blocks, the best first, as long as the sum of pair gains grows."""
    width, labels = len(gains), labels.copy()
    channels, tolerance = np.arange(width), 1e-9 * float(gains.max())
    pulls = np.zeros((width // block, width))  # what a channel gains with the members of a block
    np.add.at(pulls, labels, gains)
    for _ in range(_ROUNDS):
        moving = pulls[labels] - pulls[labels, channels]  # [j, i]: channel i goes where j is
        changes = moving + moving.T - 2 * gains
        partners = changes.argmax(axis=1)
        best = changes[channels, partners]
        done = 0
        for one in np.argsort(-best, kind="stable"):
            other = partners[one]
            here, there = labels[one], labels[other]
            # Earlier exchanges of this round have changed the sums.
            change = (
                pulls[there, one] - pulls[here, one] + pulls[here, other] - pulls[there, other] - 2 * gains[one, other]
            )
            if here == there or change <= tolerance:
                continue
            difference = gains[other] - gains[one]
            pulls[here] += difference
            pulls[there] -= difference
            labels[one], labels[other] = there, here
            done += 1
        if not done:
            break
    return labels


def _moment(moment: NDArray[Any], side: str, damping: float) -> Array:
    moment = np.asarray(moment, dtype=np.float64)
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or moment.size == 0:
        raise ValueError(f"{side} moment has shape {moment.shape}; it must be whole, (d, d)")
    if not np.isfinite(moment).all():
        raise ValueError(f"{side} moment holds NaN or Inf; look at what was fed to the model")
    return damped(moment[None], damping)[0] if moment.any() else moment
