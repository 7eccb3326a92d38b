"""The kinds of invertible maps of one activation; `factors` multiplies them.

Row convention: ``x' = x F`` and ``W' = F^-1 W``, so that ``x' W' = x W`` for a weight [d, N] in ONNX order.

| kind | F | free parameters |
| --- | --- | --- |
| scale | ``diag(vector)`` | d |
| blocks | block-diagonal, n blocks of k x k | d k |
| hadamard | ``I_(d / order) kron H_order``, orthonormal | none |

Everything is computed in float64: a transform is folded into a weight once, and rounded once, by its caller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from catonnx.math.hadamard import hadamard_matrix, has_hadamard, kronecker_pair, largest_hadamard_order

Array: TypeAlias = NDArray[np.float64]

CONDITION_LIMIT = 1e10
"""Largest 1-norm condition number of a block: in float64 the inverse then still holds 6 digits, float32's worth."""


class FactorKind(Enum):
    """What a factor is, and so what a graph must be able to take up."""

    SCALE = "scale"
    BLOCKS = "blocks"
    HADAMARD = "hadamard"


class InvertibleMap(ABC):
    """One invertible map F of d channels."""

    kind: ClassVar[FactorKind]
    width: int
    """Number of channels d."""

    @property
    @abstractmethod
    def multiply_adds(self) -> int:
        """Cost per row when run as a node."""

    @property
    @abstractmethod
    def is_identity(self) -> bool:
        """Whether the map changes nothing."""

    def apply(self, rows: NDArray[Any]) -> Array:
        """Return ``rows F`` for rows (..., d).

        Raises:
            ValueError: The last axis is not d wide.
        """
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim == 0 or rows.shape[-1] != self.width:
            raise ValueError(f"rows have shape {rows.shape}, but the factor covers {self.width} channels")
        return self._apply(rows.reshape(-1, self.width)).reshape(rows.shape)

    def solve(self, weight: NDArray[Any]) -> Array:
        """Return ``F^-1 weight`` for a weight (d, N).

        Raises:
            ValueError: The weight does not have d rows.
        """
        weight = np.asarray(weight, dtype=np.float64)
        if weight.ndim != 2 or len(weight) != self.width:
            raise ValueError(f"weight has shape {weight.shape}, but the factor covers {self.width} channels (its rows)")
        return self._solve(weight).reshape(weight.shape)

    def dense(self) -> Array:
        """Return F, shape (d, d)."""
        return self.apply(np.eye(self.width))

    @abstractmethod
    def _apply(self, rows: Array) -> Array: ...

    @abstractmethod
    def _solve(self, weight: Array) -> Array: ...


@final
@dataclass(frozen=True, eq=False)
class Scale(InvertibleMap):
    """``F = diag(vector)``.

    Args:
        vector: One factor per channel, shape (d,); finite, no zeros.

    Raises:
        ValueError: The vector is not 1-D, is empty, or holds a zero, NaN or Inf.
    """

    vector: Array
    width: int = field(init=False)
    kind: ClassVar[FactorKind] = FactorKind.SCALE

    def __post_init__(self) -> None:
        vector = _frozen(self.vector)
        if vector.ndim != 1 or vector.size == 0:
            raise ValueError(f"a scale has shape {vector.shape}; it must be one vector with one number per channel")
        bad = ~np.isfinite(vector) | (vector == 0)
        if bad.any():
            channel = int(bad.argmax())
            raise ValueError(f"the scale of channel {channel} is {vector[channel]}; it must be finite and not zero")
        object.__setattr__(self, "vector", vector)
        object.__setattr__(self, "width", len(vector))

    @property
    def multiply_adds(self) -> int:
        """Cost per row: one product a channel."""
        return self.width

    @property
    def is_identity(self) -> bool:
        """Whether all scales are 1."""
        return bool(np.all(self.vector == 1))

    def _apply(self, rows: Array) -> Array:
        return rows * self.vector

    def _solve(self, weight: Array) -> Array:
        return weight / self.vector[:, None]


@final
@dataclass(frozen=True, eq=False)
class Blocks(InvertibleMap):
    """``F`` block-diagonal.

    Args:
        matrices: n blocks of k x k, shape (n, k, k); finite and well conditioned.

    Raises:
        ValueError: The shape is another, or a block is singular, ill-conditioned or not finite.
    """

    matrices: Array
    width: int = field(init=False)
    kind: ClassVar[FactorKind] = FactorKind.BLOCKS

    def __post_init__(self) -> None:
        matrices = _frozen(self.matrices)
        if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or matrices.size == 0:
            raise ValueError(f"blocks have shape {matrices.shape}; they must be (n, k, k)")
        finite = np.isfinite(matrices).all(axis=(1, 2))
        if not finite.all():
            raise ValueError(f"block {int(finite.argmin())} of {len(matrices)} holds NaN or Inf")
        condition = np.linalg.cond(matrices, 1)
        worst = int(condition.argmax())
        if condition[worst] > CONDITION_LIMIT:
            raise ValueError(
                f"block {worst} of {len(matrices)} cannot be inverted: its condition number is {condition[worst]:.1e}, "
                f"at most {CONDITION_LIMIT:.0e} is allowed; damp its moments more"
            )
        object.__setattr__(self, "matrices", matrices)
        object.__setattr__(self, "width", matrices.shape[0] * matrices.shape[1])

    @property
    def multiply_adds(self) -> int:
        """Cost per row: ``d k``."""
        return self.matrices.size

    @property
    def is_identity(self) -> bool:
        """Whether all blocks are the identity."""
        return bool(np.all(self.matrices == np.eye(self.matrices.shape[1])))

    def _apply(self, rows: Array) -> Array:
        by_block = rows.reshape(-1, *self.matrices.shape[:2]).swapaxes(0, 1)  # (n, rows, k)
        return (by_block @ self.matrices).swapaxes(0, 1)

    def _solve(self, weight: Array) -> Array:
        solved = np.linalg.solve(self.matrices, weight.reshape(*self.matrices.shape[:2], -1))
        return np.asarray(solved, dtype=np.float64)


@final
@dataclass(frozen=True)
class Hadamard(InvertibleMap):
    """``F = I_(width / order) kron H_order``, orthonormal.

    Args:
        width: Number of channels d.
        order: Order of the Hadamard matrix; divides the width.

    Raises:
        ValueError: The order does not divide the width, or has no known Hadamard matrix.
    """

    width: int
    order: int
    kind: ClassVar[FactorKind] = FactorKind.HADAMARD

    def __post_init__(self) -> None:
        if self.width < 1 or self.order < 1 or self.width % self.order or not has_hadamard(self.order):
            best = f"; {largest_hadamard_order(self.width)} is the largest that does" if self.width > 0 else ""
            raise ValueError(f"no Hadamard matrix of order {self.order} tiles {self.width} channels{best}")

    @property
    def multiply_adds(self) -> int:
        """Cost per row, as two small products where the order splits (`kronecker_pair`)."""
        first, second = kronecker_pair(self.order)
        return self.width * (second if first == 1 else first + second)

    @property
    def is_identity(self) -> bool:
        """Whether the order is 1."""
        return self.order == 1

    def _apply(self, rows: Array) -> Array:
        first, second = kronecker_pair(self.order)
        mixed_within = rows.reshape(-1, second) @ hadamard_matrix(second)
        return hadamard_matrix(first).T @ mixed_within.reshape(-1, first, second)

    def _solve(self, weight: Array) -> Array:  # the inverse is the transpose
        first, second = kronecker_pair(self.order)
        mixed_across = hadamard_matrix(first).T @ weight.reshape(self.width // self.order, first, -1)
        return hadamard_matrix(second).T @ mixed_across.reshape(-1, second, weight.shape[1])


Factor: TypeAlias = Scale | Blocks | Hadamard


def _frozen(array: NDArray[Any]) -> Array:
    """Copy to float64, read-only: a frozen dataclass whose arrays can be written is not frozen."""
    copy = np.array(array, dtype=np.float64)
    copy.flags.writeable = False
    return copy
