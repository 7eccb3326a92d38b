"""One orthogonal matrix for a whole residual stream: every channel is spread over all others.

    Q = D (R kron H) D'        H a Hadamard matrix of order h, R random and orthogonal, d / h wide (1 if h = d)
    Q = D (R kron H) D' M      M the reflection that brings the direction of the mean back: 1 Q = 1

RMSNorm commutes with any orthogonal Q. LayerNorm takes the mean off first, and commutes with one that keeps the
vector of ones: the mean over channels stays what it is, and so does what is left when it is gone. The reflection moves
the entries of H, 1 / sqrt(d) in size, by some 1 / d: random signs D and D' on both sides see to it that neither a row
nor a column of H points the way of the mean.

Source: Ashkboos et al., "QuaRot", 2024, for the Hadamard matrix with random signs.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from catonnx.math.factors import Hadamard, Kronecker
from catonnx.math.hadamard import hadamard_matrix, largest_hadamard_order

_AT_REST = 1e-9
"""A direction that moved by less did not move."""


@dataclasses.dataclass(frozen=True, eq=False)
class StreamRotation:
    """An orthogonal matrix Q (d, d), kept as its factors.

    Attributes:
        signs: Plus or minus 1 for every channel before and behind, (2, d).
        mixing: What spreads them.
        mirror: Unit vector of a reflection behind it, (d,); None for none.
    """

    signs: NDArray[np.float64]
    mixing: Hadamard | Kronecker
    mirror: NDArray[np.float64] | None = None

    @staticmethod
    def random(width: int, seed: int, *, keeps_mean: bool = False) -> StreamRotation:
        """Draw one.

        Args:
            width: Number of channels d.
            seed: Of the signs, and of R where no Hadamard matrix is d wide.
            keeps_mean: Whether the sum over channels has to stay what it is.
        """
        generator = np.random.default_rng(seed)
        signs = generator.choice(np.array([-1.0, 1.0]), size=(2, width))
        order = largest_hadamard_order(width)
        mixing: Hadamard | Kronecker = Hadamard(width, order)
        if order < width:
            mixing = Kronecker(_orthogonal(generator, width // order), hadamard_matrix(order))
        rotation = StreamRotation(signs, mixing)
        return rotation._with_mean() if keeps_mean else rotation

    def _with_mean(self) -> StreamRotation:
        ones = np.ones((1, self.width))
        way = (self.apply(ones) - ones)[0]
        length = float(np.linalg.norm(way))
        return self if length < _AT_REST else dataclasses.replace(self, mirror=way / length)

    @property
    def width(self) -> int:
        """Number of channels d."""
        return self.mixing.width

    @property
    def name(self) -> str:
        """What it is made of, for people."""
        if isinstance(self.mixing, Hadamard):
            return f"hadamard {self.mixing.order}"
        return f"rotation {len(self.mixing.first)} x hadamard {len(self.mixing.second)}"

    def apply(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``rows Q`` for rows (..., d); a column w of a weight that reads them is one too: w^T Q = (Q^T w)^T."""
        mixed = self.mixing.apply(rows * self.signs[0]) * self.signs[1]
        if self.mirror is not None:
            mixed -= 2 * (mixed @ self.mirror)[..., None] * self.mirror
        return np.asarray(mixed, dtype=np.float64)


def _orthogonal(generator: np.random.Generator, width: int) -> NDArray[np.float64]:
    """Return an orthogonal matrix, all of them alike likely: signs of QR made unique."""
    matrix, triangle = np.linalg.qr(generator.standard_normal((width, width)))
    return np.asarray(matrix * np.sign(np.diag(triangle)), dtype=np.float64)
