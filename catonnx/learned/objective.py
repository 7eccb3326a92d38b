"""The loss of one step: how far rounding moves some outputs of a site, for some rows.

    sum_i  E_r[c_r |Q(x F) Q(F^-1 W_i) - x W_i|^2] / E_r[c_r |x W_i|^2]

over the linears i and rows r of one site. Every linear's error is relative to its own output, so that a loud query
projection does not rule a quiet value projection; `site.ROW_POWER` tells what a row counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from catonnx.learned.grids import round_activation, round_weight
from catonnx.learned.maps import TorchMap
from catonnx.learned.site import Columns, Rows, SiteSample
from catonnx.math.activations import CLIPS

ALWAYS = 1 / 8
"""Share of a step's rows that are those of largest output, every time; the others are drawn, and count for those left
out. Where first tokens make up most of the error, steps without one went astray: the error grew six times."""


class Objective:
    """Rows, weights and rounding of a site in torch.

    Args:
        sample: The site.
        training: Rows to learn from.
        counts: What each row of the sample counts, shape (n,).
        rows: Rows of a step.
        columns: Output channels of a step, shared by the linears.
        generator: Draws them.
    """

    def __init__(
        self,
        sample: SiteSample,
        training: Columns,
        counts: Rows,
        *,
        rows: int,
        columns: int,
        generator: np.random.Generator,
    ) -> None:
        by_output = training[np.argsort(counts[training], kind="stable")]  # largest first: it counts least
        self._sample = sample
        self._rows, self._row_counts = torch.from_numpy(sample.rows[by_output]), torch.from_numpy(counts[by_output])
        self._weights = [torch.from_numpy(np.ascontiguousarray(w.T, dtype=np.float32)) for w in sample.weights]
        self._energies = [float(self._row_counts @ (self._rows @ w.T).square().mean(1)) for w in self._weights]
        self._rows_of_step, self._columns_of_step, self._generator = min(rows, len(by_output)), columns, generator

    def __call__(self, maps: Sequence[TorchMap], clip: Tensor | float) -> Tensor:
        """Return the loss for rows and columns drawn anew."""
        rows, row_counts = self._some_rows()
        columns, column_counts = self._some_columns()
        return self._loss(rows, row_counts, columns, column_counts, maps, clip)

    def best_clip(self, maps: Sequence[TorchMap]) -> float:
        """Return the clip ratio of smallest loss for one draw.

        The loss tells more than the rows alone: clipping a token of a few huge entries costs most of its output.
        """
        rows, row_counts = self._some_rows()
        columns, column_counts = self._some_columns()
        with torch.no_grad():
            losses = [float(self._loss(rows, row_counts, columns, column_counts, maps, clip)) for clip in CLIPS]
        return CLIPS[int(np.argmin(losses))]

    def _loss(
        self,
        rows: Tensor,
        row_counts: Tensor,
        columns: Tensor,
        column_counts: Tensor,
        maps: Sequence[TorchMap],
        clip: Tensor | float,
    ) -> Tensor:
        target = rows @ columns.T
        for part in maps:
            rows, columns = part(rows, columns)
        if self._sample.grid is not None:
            rows = round_activation(rows, self._sample.grid, clip)
        error = rows @ round_weight(columns, self._sample.group_size, self._sample.bits).T - target
        return row_counts @ error.square() @ column_counts

    def _some_rows(self) -> tuple[Tensor, Tensor]:
        """Return rows (n, d), and what they count so that the expectation is the sum over all rows."""
        always = int(self._rows_of_step * ALWAYS)
        others, drawn = len(self._rows) - always, self._rows_of_step - always
        picked = torch.from_numpy(always + self._generator.permutation(others)[:drawn])
        rows = torch.cat([self._rows[:always], self._rows[picked]])
        return rows, torch.cat([self._row_counts[:always], self._row_counts[picked] * (others / drawn)])

    def _some_columns(self) -> tuple[Tensor, Tensor]:
        """Return output channels (C, d), and what they count: every linear alike, relative to its energy."""
        chosen = self._sample.some_columns(self._columns_of_step, self._generator)
        columns = [weight[torch.from_numpy(some)] for weight, some in zip(self._weights, chosen, strict=True)]
        counts = [
            torch.full((len(some),), 1 / (energy * len(some) * len(chosen)) if energy > 0 else 0.0)
            for some, energy in zip(chosen, self._energies, strict=True)
        ]
        return torch.cat(columns), torch.cat(counts)
