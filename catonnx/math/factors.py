"""Products of factors, and how they are kept in plan files. The factors themselves are in `factor_kinds`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from catonnx.math.factor_kinds import Blocks, Factor, Hadamard, Kronecker, Permutation, Scale
from catonnx.math.invertible_map import FactorKind

__all__ = [
    "Blocks",
    "Factor",
    "FactorKind",
    "Hadamard",
    "Kronecker",
    "Permutation",
    "Scale",
    "Transform",
    "transform_from_arrays",
    "transform_to_arrays",
]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Transform:
    """A product of factors, the first one nearest the producer: ``x' = ((x F1) F2) ...``.

    Args:
        factors: At least one factor, all of one width.

    Raises:
        ValueError: There is no factor, or their widths differ.
    """

    factors: tuple[Factor, ...]

    def __post_init__(self) -> None:
        if not self.factors:
            raise ValueError("a transform needs at least one factor; Transform.identity(width) changes nothing")
        widths = [factor.width for factor in self.factors]
        if len(set(widths)) > 1:
            raise ValueError(f"the factors of one transform must have one width, these have {widths}")

    @classmethod
    def identity(cls, width: int) -> Transform:
        """Return the transform of ``width`` channels that changes nothing."""
        return cls((Scale(np.ones(width)),))

    @property
    def width(self) -> int:
        """Number of channels d."""
        return self.factors[0].width

    @property
    def multiply_adds(self) -> int:
        """Cost per row when every factor that does something is run as a node."""
        return sum(factor.multiply_adds for factor in self.factors if not factor.is_identity)

    @property
    def is_identity(self) -> bool:
        """Whether every factor changes nothing."""
        return all(factor.is_identity for factor in self.factors)

    def apply(self, rows: NDArray[Any]) -> Array:
        """Return ``rows F1 F2 ...`` for rows (..., d)."""
        return reduce(lambda result, factor: factor.apply(result), self.factors, np.asarray(rows))

    def solve(self, weight: NDArray[Any]) -> Array:
        """Return ``... F2^-1 F1^-1 weight`` for a weight (d, N)."""
        return reduce(lambda result, factor: factor.solve(result), self.factors, np.asarray(weight))

    def dense(self) -> Array:
        """Return F, shape (d, d)."""
        return self.apply(np.eye(self.width))

    def inverse_error(self) -> float:
        """Return the largest entry of ``|F F^-1 - I|``: 1e-12 is usual, 1e-6 is lost precision."""
        identity = np.eye(self.width)
        return float(np.abs(self.dense() @ self.solve(identity) - identity).max())


_PARTS: dict[FactorKind, tuple[str, ...]] = {FactorKind.KRONECKER: ("first", "second")}
"""Kinds that are kept as several arrays."""


def transform_to_arrays(transform: Transform) -> dict[str, NDArray[Any]]:
    """Return arrays that `transform_from_arrays` reads back, keyed ``"<position>.<kind>"``.

    A scale is its vector (d,), blocks are their matrices (n, k, k), a Hadamard factor is ``[width, order]``, a
    permutation its order (d,). A Kronecker product is two arrays, ``"<position>.kronecker.first"`` and ``.second``.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for position, factor in enumerate(transform.factors):
        key = f"{position}.{factor.kind.value}"
        match factor:
            case Scale():
                arrays[key] = factor.vector
            case Blocks():
                arrays[key] = factor.matrices
            case Hadamard():
                arrays[key] = np.array([factor.width, factor.order], dtype=np.int64)
            case Permutation():
                arrays[key] = factor.order
            case Kronecker():
                arrays |= {f"{key}.first": factor.first, f"{key}.second": factor.second}
    return arrays


def transform_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Transform:
    """Rebuild a transform from what `transform_to_arrays` returned, in any order of the keys.

    Raises:
        ValueError: A key or an array is not of that form.
    """
    parts: dict[int, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        position, _, kind = key.partition(".")
        if not position.isdecimal() or kind not in _KEYS:
            known = ", ".join(f"<position>.{key}" for key in _KEYS)
            raise ValueError(f"{key!r} does not name a factor; names are {known}")
        parts.setdefault(int(position), {})[kind] = np.asarray(array)
    if sorted(parts) != list(range(len(parts))):
        raise ValueError(f"the factors {sorted(arrays)} do not count up from 0 without gaps")
    return Transform(tuple(_factor_from_arrays(parts[position], position) for position in range(len(parts))))


def _keys_of(kind: FactorKind) -> tuple[str, ...]:
    return tuple(f"{kind.value}.{part}" for part in _PARTS.get(kind, ())) or (kind.value,)


_KEYS = tuple(key for kind in FactorKind for key in _keys_of(kind))


def _factor_from_arrays(parts: Mapping[str, NDArray[Any]], position: int) -> Factor:
    kind = FactorKind(next(iter(parts)).partition(".")[0])
    if set(parts) != set(_keys_of(kind)):
        raise ValueError(f"position {position} holds {sorted(parts)}; one factor is {list(_keys_of(kind))}")
    first, *others = (parts[key] for key in _keys_of(kind))
    if kind is FactorKind.HADAMARD:
        if first.shape != (2,) or first.dtype.kind not in "iu":
            raise ValueError(
                f"'{position}.hadamard' is {first.dtype} of shape {first.shape}; it must be the integers [width, order]"
            )
        return Hadamard(int(first[0]), int(first[1]))
    if kind is FactorKind.PERMUTATION:
        return Permutation(first)
    for key, array in parts.items():
        if array.dtype.kind != "f":
            raise ValueError(f"'{position}.{key}' has type {array.dtype}; it must be floating point")
    if kind is FactorKind.KRONECKER:
        return Kronecker(first, *others)
    return Scale(first) if kind is FactorKind.SCALE else Blocks(first)
