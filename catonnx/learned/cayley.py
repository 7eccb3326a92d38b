"""Adam on orthogonal matrices: every step is a rotation, given by the Cayley transform of an antisymmetric matrix.

    Y = G R^T - R G^T            the part of the gradient G of a loss that turns R, antisymmetric
    S = rate / 2  Adam(Y)        antisymmetric as well: Adam scales entry by entry, and (i, j) and (j, i) alike
    R <- (I + S)^-1 (I - S) R    orthogonal as R was; to first order R - 2 S R

The step is Cayley SGD's, with which SpinQuant (arXiv 2405.16406) learns its rotations, after Li et al. (arXiv
2002.01113). They follow the gradient itself. With Adam's step sizes the held-out error fell to 0.60 and 0.82 of
Hadamard's at two inputs of SmolLM2 (W4A4), with one step size for all entries to 0.62 and 0.84.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTUM, DECAY = 0.9, 0.99
"""Adam's memory of the gradient and of its square; the runs are short, so that 0.999 would remember its start."""


@dataclass
class _State:
    matrix: Tensor
    mean: Tensor
    square: Tensor


class CayleyAdam:
    """Moves orthogonal matrices against the gradient that was left in them.

    In float32 they drift from orthogonality by about 1e-7 a step, so make them orthogonal again at the end.
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self._states = [_State(matrix, torch.zeros_like(matrix), torch.zeros_like(matrix)) for matrix in matrices]
        self._steps = 0

    def step(self, rate: float) -> None:
        """Turn every matrix by about ``rate`` in each plane, and clear its gradient."""
        self._steps += 1
        with torch.no_grad():
            for state in self._states:
                self._turn(state, rate)

    def _turn(self, state: _State, rate: float) -> None:
        matrix = state.matrix
        product = matrix.grad @ matrix.T
        turn = product - product.T
        state.mean.lerp_(turn, 1 - MOMENTUM)
        state.square.lerp_(turn.square_(), 1 - DECAY)
        mean = state.mean / (1 - MOMENTUM**self._steps)
        size = (state.square / (1 - DECAY**self._steps)).sqrt_().add_(1e-12)
        half = mean.div_(size).mul_(rate / 2)
        identity = torch.eye(len(matrix))
        matrix.copy_(torch.linalg.solve(identity + half, matrix - half @ matrix))
        matrix.grad = None
