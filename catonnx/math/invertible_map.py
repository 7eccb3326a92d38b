"""What every factor of a change of basis can do; the kinds themselves are in `factor_kinds`.

Row convention: ``x' = x F`` and ``W' = F^-1 W``, so that ``x' W' = x W`` for a weight [d, N] in ONNX order.
Everything is computed in float64: a transform is folded into a weight once, and rounded once, by its caller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

CONDITION_LIMIT = 1e10
"""Largest 1-norm condition number of a matrix: in float64 the inverse then still holds 6 digits, float32's worth."""


class FactorKind(Enum):
    """What a factor is, and so what a graph must be able to take up."""

    SCALE = "scale"
    BLOCKS = "blocks"
    HADAMARD = "hadamard"
    PERMUTATION = "permutation"
    KRONECKER = "kronecker"


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


def check_conditions(matrices: Array, what: str) -> None:
    """Refuse matrices (n, k, k) of which one is not finite or cannot be inverted.

    Args:
        matrices: The matrices.
        what: Name of one of them, followed by its number.

    Raises:
        ValueError: naming the worst.
    """
    finite = np.isfinite(matrices).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(f"{what} {int(finite.argmin())} of {len(matrices)} holds NaN or Inf")
    condition = np.linalg.cond(matrices, 1)
    worst = int(condition.argmax())
    if condition[worst] > CONDITION_LIMIT:
        raise ValueError(
            f"{what} {worst} of {len(matrices)} cannot be inverted: its condition number is {condition[worst]:.1e}, "
            f"at most {CONDITION_LIMIT:.0e} is allowed; damp its moments more"
        )


def frozen(array: NDArray[Any]) -> Array:
    """Copy to float64, read-only: a frozen dataclass whose arrays can be written is not frozen."""
    copy = np.array(array, dtype=np.float64)
    copy.flags.writeable = False
    return copy
