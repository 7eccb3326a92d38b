"""The kinds of invertible maps of one activation; `factors` multiplies them.

Row convention: ``x' = x F`` and ``W' = F^-1 W``, so that ``x' W' = x W`` for a weight [d, N] in ONNX order.

| kind | F | free parameters |
| --- | --- | --- |
| scale | ``diag(vector)`` | d |
| blocks | block-diagonal, n blocks of k x k | d k |
| hadamard | ``I_(d / order) kron H_order``, orthonormal | none |
| permutation | ``F[order[j], j] = 1``: channel j becomes what channel order[j] was | an order of d |
| kronecker | ``first kron second`` | a^2 + b^2, a b = d |

A dense rotation is blocks with one block: d = 1536 takes 0.3 s to check and 0.2 s to solve for 576 columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from catonnx.math.hadamard import hadamard_matrix, has_hadamard, kronecker_pair, largest_hadamard_order
from catonnx.math.invertible_map import Array, FactorKind, InvertibleMap, check_conditions, frozen


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
        vector = frozen(self.vector)
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
        matrices = frozen(self.matrices)
        if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or matrices.size == 0:
            raise ValueError(f"blocks have shape {matrices.shape}; they must be (n, k, k)")
        check_conditions(matrices, "block")
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


@final
@dataclass(frozen=True, eq=False)
class Permutation(InvertibleMap):
    """``x'[j] = x[order[j]]``: the channel that comes to stand at j is ``order[j]``; the inverse is the transpose.

    Args:
        order: Each number from 0 to d - 1 once, shape (d,).

    Raises:
        ValueError: The order is not 1-D, is empty, or leaves a channel out.
    """

    order: NDArray[np.int64]
    width: int = field(init=False)
    kind: ClassVar[FactorKind] = FactorKind.PERMUTATION

    def __post_init__(self) -> None:
        given = np.asarray(self.order)
        if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iu":
            raise ValueError(f"an order is {given.dtype} of shape {given.shape}; it must be one vector of integers")
        order = np.array(given, dtype=np.int64)
        missing = np.setdiff1d(np.arange(len(order)), order)
        if missing.size:
            raise ValueError(f"channel {int(missing[0])} of {len(order)} is not in the order; each must be there once")
        order.flags.writeable = False
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "width", len(order))

    @property
    def multiply_adds(self) -> int:
        """Cost per row: nothing is multiplied."""
        return 0

    @property
    def is_identity(self) -> bool:
        """Whether every channel stays where it is."""
        return bool(np.array_equal(self.order, np.arange(self.width)))

    def _apply(self, rows: Array) -> Array:
        return rows[:, self.order]

    def _solve(self, weight: Array) -> Array:
        return weight[self.order]


@final
@dataclass(frozen=True, eq=False)
class Kronecker(InvertibleMap):
    """``F = first kron second``: a row, laid out as a matrix X (a, b), becomes ``first^T X second``.

    Args:
        first: Mixes across, shape (a, a); finite and well conditioned.
        second: Mixes b neighbours, shape (b, b); finite and well conditioned; a b = d.

    Raises:
        ValueError: A matrix is not square, or is singular, ill-conditioned or not finite.
    """

    first: Array
    second: Array
    width: int = field(init=False)
    kind: ClassVar[FactorKind] = FactorKind.KRONECKER

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            matrix = frozen(getattr(self, name))
            if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
                raise ValueError(
                    f"the {name} matrix of a Kronecker product has shape {matrix.shape}; it must be square"
                )
            check_conditions(matrix[None], f"{name} matrix")
            object.__setattr__(self, name, matrix)
        object.__setattr__(self, "width", len(self.first) * len(self.second))

    @property
    def multiply_adds(self) -> int:
        """Cost per row: ``d (a + b)``."""
        return self.width * (len(self.first) + len(self.second))

    @property
    def is_identity(self) -> bool:
        """Whether the product is the identity, if need be as ``c I kron I / c``."""
        level = self.first[0, 0]
        eyes = [np.eye(len(matrix)) for matrix in (self.first, self.second)]
        return bool(np.array_equal(self.first, level * eyes[0]) and np.array_equal(self.second * level, eyes[1]))

    def _apply(self, rows: Array) -> Array:
        return self.first.T @ (rows.reshape(-1, len(self.first), len(self.second)) @ self.second)

    def _solve(self, weight: Array) -> Array:
        across = np.linalg.solve(self.first, weight.reshape(len(self.first), -1))
        within = across.reshape(len(self.first), len(self.second), -1)  # (a, b, N)
        return np.asarray(np.linalg.solve(self.second, within), dtype=np.float64)


Factor: TypeAlias = Scale | Blocks | Hadamard | Permutation | Kronecker
