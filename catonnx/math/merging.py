"""Factors as matrices on diagonal blocks, and neighbours multiplied out where that costs nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from catonnx.math.factors import Blocks, Factor, Hadamard, Kronecker, Permutation, Scale
from catonnx.math.hadamard import hadamard_matrix


def mixing_width(factor: Factor) -> int:
    """Return how many neighbouring channels a factor mixes; all of them if it moves any from where it is."""
    match factor:
        case Scale():
            return 1
        case Hadamard():
            return factor.order
        case Blocks():
            return int(factor.matrices.shape[1])
        case Permutation() | Kronecker():
            return factor.width


def in_blocks(factor: Factor, block: int) -> np.ndarray:
    """Return a factor as its diagonal blocks of a given width.

    Args:
        factor: Covers d channels.
        block: A multiple of `mixing_width(factor)` that divides d.

    Returns:
        Matrices of shape (d / block, block, block).

    Raises:
        ValueError: if the factor mixes more than a block.
    """
    inner = mixing_width(factor)
    if block % inner or factor.width % block:
        raise ValueError(f"a factor that mixes {inner} of {factor.width} channels has no diagonal blocks of {block}")
    match factor:
        case Scale():
            small = factor.vector.reshape(-1, 1, 1)
        case Hadamard():
            small = np.broadcast_to(hadamard_matrix(inner), (factor.width // inner, inner, inner))
        case Blocks():
            small = factor.matrices
        case Permutation() | Kronecker():
            small = factor.dense()[None]
    return widened(small, block)


def widened(blocks: np.ndarray, block: int) -> np.ndarray:
    """Lay narrower diagonal blocks (n, k, k) into wider ones (n k / block, block, block), zeros between them."""
    count, inner, _ = blocks.shape
    together = block // inner
    wide = np.zeros((count // together, together, inner, together, inner))
    index = np.arange(together)
    wide[:, index, :, index, :] = blocks.reshape(-1, together, inner, inner).transpose(1, 0, 2, 3)
    return wide.reshape(-1, block, block)


def changed_moment(moment: np.ndarray, factor: Factor) -> np.ndarray:
    """Return ``F^T S F``: a second moment of rows x as that of x F.

    Args:
        moment: Diagonal blocks of S, shape (n, m, m).
        factor: Mixes no more than a block.

    Returns:
        Blocks of the same shape. A permutation is looked up, not multiplied: dense products of d = 1536 take 0.3 s.
    """
    if isinstance(factor, Permutation):
        if moment.shape[1] != factor.width:
            raise ValueError(f"a permutation of {factor.width} channels moves them between blocks of {moment.shape[1]}")
        return moment[:, factor.order][:, :, factor.order]
    matrices = in_blocks(factor, moment.shape[1])
    changed: np.ndarray = matrices.transpose(0, 2, 1) @ moment @ matrices
    return changed


def merged(factors: Sequence[Factor]) -> list[Factor]:
    """Multiply out neighbours that fit into blocks which one of the two already has, and join permutations."""
    result: list[Factor] = []
    for factor in factors:
        last = factor
        while result and (joined := _joined(result[-1], last)) is not None:
            last = joined
            result.pop()
        result.append(last)
    return result


def _joined(first: Factor, second: Factor) -> Factor | None:
    """Return the product of two factors if it costs no more than the dearer of them."""
    if isinstance(first, Permutation) and isinstance(second, Permutation):
        return Permutation(first.order[second.order])
    left, right = mixing_width(first), mixing_width(second)
    if isinstance(first, Blocks) and left % right == 0:
        return Blocks(first.matrices @ in_blocks(second, left))
    if isinstance(second, Blocks) and right % left == 0:
        return Blocks(in_blocks(first, right) @ second.matrices)
    return None
