"""Constants that take up a factor, and how it is written into them.

Writing a factor F into a constant is the same for all of them: gather the constant's channels in the site's order,
multiply each row by F, scatter back. For a weight [K, N] that is W F, for a bias b F, for the scale of a norm (scalings
only) gamma * s; a permutation moves their channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
    """One constant input of a node that takes up a factor.

    Attributes:
        node: The node that reads the constant.
        index: Which of its inputs.
        axes: Axes of the constant that carry channels, ascending, possibly with axes of length 1 to be broadcast first.
        sizes: Their full lengths.
        position: Flat index within `sizes` of every channel of the site.  # (d,)
        power: What it takes of a scaling: -1, the inverse, where the node divides by the constant, 1/2, the root, where
            what it makes is squared on the way to the site.
    """

    node: ir.Node
    index: int
    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    position: np.ndarray
    power: float = 1.0

    @property
    def place(self) -> tuple[ir.Node, int, bytes]:
        """What tells it from other writers: two walks that find the same channels of a constant name one place."""
        return self.node, self.index, self.position.tobytes()


def fold(writer: Writer, array: np.ndarray, factor: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Write a factor into a constant.

    Args:
        writer: Where the channels lie in it.
        array: The constant before, float64.
        factor: Maps rows of the site's channels, (rows, d) to (rows, d).

    Returns:
        The constant after, float64; axes that were broadcast along the channels are written out.

    Raises:
        ValueError: if tied channels come out different: the factor does not respect the ties.
    """
    flat, restore = _as_rows(writer, array)
    rows = factor(flat[:, writer.position])
    flat[:, writer.position] = rows
    if not np.allclose(flat[:, writer.position], rows, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise ValueError(f"the factor treats tied channels differently at {writer.node.op_type} {writer.node.name}")
    return restore(flat)


def _as_rows(writer: Writer, array: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Lay a copy of a constant out as [rows, channels], and return the way back."""
    full = list(array.shape)
    for axis, size in zip(writer.axes, writer.sizes, strict=True):
        full[axis] = size
    others = [axis for axis in range(array.ndim) if axis not in writer.axes]
    order = [*others, *writer.axes]
    moved = np.broadcast_to(array, full).transpose(order)
    shape = moved.shape

    def restore(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(shape).transpose(np.argsort(order))

    return np.array(moved, np.float64).reshape(-1, int(np.prod(writer.sizes))), restore
