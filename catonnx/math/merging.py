"""Factors as matrices on diagonal blocks, and neighbours multiplied out where that costs nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from catonnx.math.factors import Blocks, Factor, Hadamard, Scale
from catonnx.math.hadamard import hadamard_matrix


def mixing_width(factor: Factor) -> int:
    """Return how many neighbouring channels a factor mixes."""
    match factor:
        case Scale():
            return 1
        case Hadamard():
            return factor.order
        case Blocks():
            return int(factor.matrices.shape[1])


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
    return widened(small, block)


def widened(blocks: np.ndarray, block: int) -> np.ndarray:
    """Lay narrower diagonal blocks (n, k, k) into wider ones (n k / block, block, block), zeros between them."""
    count, inner, _ = blocks.shape
    together = block // inner
    wide = np.zeros((count // together, together, inner, together, inner))
    index = np.arange(together)
    wide[:, index, :, index, :] = blocks.reshape(-1, together, inner, inner).transpose(1, 0, 2, 3)
    return wide.reshape(-1, block, block)


def merged(factors: Sequence[Factor]) -> list[Factor]:
    """Multiply out neighbours that fit into blocks which one of the two already has."""
    result: list[Factor] = []
    for factor in factors:
        previous = result[-1] if result else None
        width = mixing_width(factor)
        if isinstance(previous, Blocks) and mixing_width(previous) % width == 0:
            result[-1] = Blocks(previous.matrices @ in_blocks(factor, mixing_width(previous)))
        elif isinstance(factor, Blocks) and previous is not None and width % mixing_width(previous) == 0:
            result[-1] = Blocks(in_blocks(previous, width) @ factor.matrices)
        else:
            result.append(factor)
    return result
