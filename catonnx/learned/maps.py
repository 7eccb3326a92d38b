"""The factors of `catonnx.math` in torch: each maps rows of the activation and output channels of the weights at once.

    rows (n, d) -> rows F            columns (C, d) -> columns F^-T, that is (F^-1 W)^T for a weight W = columns^T

A map begins as a given factor. What is trained of it is a change relative to that, which begins at zero; rotations are
trained as they are, by an optimizer that keeps them orthogonal. `factor` reads the result out in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import isqrt
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catonnx.learned.site import Array
from catonnx.math.factors import Blocks, Factor, Hadamard, Kronecker, Permutation, Scale
from catonnx.math.hadamard import hadamard_matrix, has_hadamard, kronecker_pair


class TorchMap(ABC):
    """One factor F in torch."""

    @abstractmethod
    def __call__(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``rows F`` (n, d) and ``columns F^-T`` (C, d)."""

    @abstractmethod
    def factor(self) -> Factor:
        """Return the factor as it is now.

        Raises:
            ValueError: It has become singular or holds NaN.
        """

    @property
    def trained(self) -> list[Tensor]:
        """Parameters that take plain gradient steps."""
        return []

    @property
    def orthogonal(self) -> list[Tensor]:
        """Parameters (m, m) that must stay orthogonal."""
        return []


@final
class TorchScale(TorchMap):
    """``diag(start exp(change))``, with one change for each label of tied channels."""

    def __init__(self, start: Array, ties: NDArray[Any] | None = None) -> None:
        labels = np.arange(len(start)) if ties is None else _labels(np.asarray(ties)[:, None])
        self._start = start
        self._labels = torch.from_numpy(labels)
        self._vector = _float32(start)
        self._change = torch.zeros(int(labels.max()) + 1, requires_grad=True)

    def __call__(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply the rows, divide the columns."""
        vector = self._vector * self._change.exp()[self._labels]
        return rows * vector, columns / vector

    def factor(self) -> Scale:
        """Return the scale."""
        return Scale(self._start * np.exp(_float64(self._change))[self._labels.numpy()])

    @property
    def trained(self) -> list[Tensor]:
        """The logarithm of each label's change."""
        return [self._change]


@final
class TorchBlocks(TorchMap):
    """Blocks ``start (I + change)``, (n, k, k), with one change for all blocks whose channels have the same labels."""

    def __init__(self, start: Array, ties: NDArray[Any] | None = None) -> None:
        count, size = start.shape[:2]
        labels = np.arange(count) if ties is None else _labels(np.asarray(ties).reshape(count, size))
        self._start = start
        self._labels = torch.from_numpy(labels)
        self._matrices, self._inverses = _float32(start), _float32(np.linalg.inv(start))
        self._change = torch.zeros((int(labels.max()) + 1, size, size), requires_grad=True)

    def __call__(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply block by block."""
        changed = torch.eye(self._change.shape[1]) + self._change
        matrices = self._matrices @ changed[self._labels]
        inverses = torch.linalg.inv(changed)[self._labels] @ self._inverses
        return _by_block(rows, matrices), _by_block(columns, inverses.transpose(1, 2))

    def factor(self) -> Blocks:
        """Return the blocks."""
        changed = np.eye(self._start.shape[1]) + _float64(self._change)
        return Blocks(self._start @ changed[self._labels.numpy()])

    @property
    def trained(self) -> list[Tensor]:
        """The relative change of each label's blocks."""
        return [self._change]


@final
class TorchKronecker(TorchMap):
    """``first (I + change) kron second (I + change)``: any two invertible matrices."""

    def __init__(self, first: Array, second: Array) -> None:
        self._starts = (first, second)
        self._matrices = [_float32(matrix) for matrix in self._starts]
        self._inverses = [_float32(np.linalg.inv(matrix)) for matrix in self._starts]
        self._changes = [torch.zeros(matrix.shape, requires_grad=True) for matrix in self._starts]

    def __call__(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply along both axes of the channels laid out as a x b."""
        changed = [torch.eye(len(change)) + change for change in self._changes]
        first, second = (matrix @ change for matrix, change in zip(self._matrices, changed, strict=True))
        first_inverse, second_inverse = (
            torch.linalg.inv(change) @ inverse for change, inverse in zip(changed, self._inverses, strict=True)
        )
        return _by_pair(rows, first, second), _by_pair(columns, first_inverse.T, second_inverse.T)

    def factor(self) -> Kronecker:
        """Return the Kronecker product."""
        first, second = (
            start @ (np.eye(len(start)) + _float64(change))
            for start, change in zip(self._starts, self._changes, strict=True)
        )
        return Kronecker(first, second)

    @property
    def trained(self) -> list[Tensor]:
        """The relative change of either matrix."""
        return self._changes


@final
class TorchRotation(TorchMap):
    """A dense rotation (d, d)."""

    def __init__(self, start: Array) -> None:
        self._matrix = _float32(start).requires_grad_()

    def __call__(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply both by the rotation, which is its own inverse's transpose."""
        return rows @ self._matrix, columns @ self._matrix

    def factor(self) -> Blocks:
        """Return the rotation as one block."""
        return Blocks(nearest_orthogonal(_float64(self._matrix))[None])

    @property
    def orthogonal(self) -> list[Tensor]:
        """The rotation."""
        return [self._matrix]


@final
class TorchRotationPair(TorchMap):
    """``first kron second`` of two rotations."""

    def __init__(self, first: Array, second: Array) -> None:
        self._matrices = [_float32(matrix).requires_grad_() for matrix in (first, second)]

    def __call__(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply along both axes of the channels laid out as a x b."""
        first, second = self._matrices
        return _by_pair(rows, first, second), _by_pair(columns, first, second)

    def factor(self) -> Kronecker:
        """Return the Kronecker product."""
        first, second = (nearest_orthogonal(_float64(matrix)) for matrix in self._matrices)
        return Kronecker(first, second)

    @property
    def orthogonal(self) -> list[Tensor]:
        """Both rotations."""
        return self._matrices


@final
class Constant(TorchMap):
    """A factor that is not trained."""

    def __init__(self, factor: Factor) -> None:
        self._factor = factor
        match factor:
            case Scale():
                parts: list[NDArray[np.floating[Any]]] = [factor.vector]
            case Blocks():
                parts = [factor.matrices, np.linalg.inv(factor.matrices).swapaxes(1, 2)]
            case Hadamard():
                parts = [hadamard_matrix(order) for order in kronecker_pair(factor.order)]
            case Kronecker():
                pair = (factor.first, factor.second)
                parts = [*pair, *(np.linalg.inv(matrix).T for matrix in pair)]
            case Permutation():
                parts = []
        self._parts = [_float32(part) for part in parts]

    def __call__(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Do as the factor does."""
        match self._factor:
            case Scale():
                return rows * self._parts[0], columns / self._parts[0]
            case Blocks():
                return _by_block(rows, self._parts[0]), _by_block(columns, self._parts[1])
            case Hadamard() | Kronecker():  # two rotations are their own inverses' transposes
                return _by_pair(rows, *self._parts[:2]), _by_pair(columns, *self._parts[-2:])
            case Permutation(order=order):
                places = torch.tensor(order)
                return rows[:, places], columns[:, places]

    def factor(self) -> Factor:
        """Return the factor that was given."""
        return self._factor


def torch_map(factor: Factor, ties: NDArray[Any] | None, *, trained: bool) -> TorchMap:
    """Return a factor in torch; a Hadamard matrix or a permutation is never trained."""
    match factor:
        case Scale() if trained:
            return TorchScale(factor.vector, ties)
        case Blocks() if trained:
            return TorchBlocks(factor.matrices, ties)
        case Kronecker() if trained:
            return TorchKronecker(factor.first, factor.second)
    return Constant(factor)


def mixing_pair(width: int) -> tuple[Array, Array]:
    """Return two orthogonal matrices that spread, (a, a) and (b, b), with a b = width and near to square."""
    if has_hadamard(width):
        first, second = kronecker_pair(width)
    else:
        first = next(divisor for divisor in range(isqrt(width), 0, -1) if width % divisor == 0)
        second = width // first
    return spreading(first), spreading(second)


def spreading(order: int) -> Array:
    """Return an orthogonal matrix whose entries are all small: Hadamard's, or the discrete cosine transform's.

    Learning needs such a start. Where a few loud channels leave most others no code but 0, the straight-through
    gradient leads astray: from Hadamard matrices of order 2 for 66 channels the error grew by a third, from the cosines
    it fell by a third.
    """
    if has_hadamard(order):
        return hadamard_matrix(order)
    index = np.arange(order)
    cosines = np.sqrt(2 / order) * np.cos(np.pi / order * (index[:, None] + 0.5) * index)
    cosines[:, 0] = order**-0.5
    return np.asarray(cosines, dtype=np.float64)


def nearest_orthogonal(matrix: Array) -> Array:
    """Return the orthogonal matrix nearest to one (m, m): its polar factor.

    Raises:
        ValueError: It holds NaN or Inf.
    """
    if not np.isfinite(matrix).all():
        raise ValueError("a rotation holds NaN or Inf")
    left, _, right = np.linalg.svd(matrix)
    return np.asarray(left @ right, dtype=np.float64)


def _by_block(rows: Tensor, matrices: Tensor) -> Tensor:
    by_block = rows.reshape(len(rows), *matrices.shape[:2]).transpose(0, 1)  # (blocks, n, k)
    return (by_block @ matrices).transpose(0, 1).reshape(rows.shape)


def _by_pair(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return ``rows (I kron first kron second)``."""
    mixed_within = rows.reshape(-1, len(second)) @ second
    return (first.T @ mixed_within.reshape(-1, len(first), len(second))).reshape(rows.shape)


def _labels(rows: NDArray[Any]) -> NDArray[np.int64]:
    """Number the different rows of an array from 0 up."""
    _, labels = np.unique(rows, axis=0, return_inverse=True)
    return labels.reshape(-1).astype(np.int64)


def _float32(array: NDArray[np.floating[Any]]) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)


def _float64(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().numpy(), dtype=np.float64)
