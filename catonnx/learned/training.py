"""The loop that all learned methods share: a hundred short steps, and held-out rows that judge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from catonnx.learned.cayley import CayleyAdam
from catonnx.learned.maps import TorchMap
from catonnx.learned.objective import Objective
from catonnx.learned.site import SiteSample
from catonnx.math.factors import Transform

HELD_OUT = 0.25
"""Share of the rows that nothing is learned from."""

JUDGED_COLUMNS = 1024
"""Output channels, over all linears, that the held-out error is measured on; rounding all would take too long."""

LEAST_GAIN = 1e-3
"""Part of the held-out error that must be gained; less is noise."""

WIDEST_CLIP = 0.99
"""A clip ratio is learned through a sigmoid, which can start at no more than this: at 1 it would not move."""

PLAIN_RATE, ROTATION_RATE, CLIP_RATE = 0.02, 0.003, 0.05
"""Sizes of the first step, in units of relative change, radians, and the clip ratio's logit. They fall to zero along
half a cosine. At three inputs of SmolLM2 twice and half the plain rate were 0 to 4 % worse."""


@dataclass(frozen=True)
class Effort:
    """How long to learn.

    Attributes:
        steps: Number of steps; 0 learns nothing.
        rows: Rows of a step.
        columns: Output channels of a step, shared evenly by the linears.
        threads: Threads of torch. With another number the last digits of the result may differ.

    Raises:
        ValueError: A number is out of range.
    """

    steps: int = 100
    rows: int = 256
    columns: int = 256
    threads: int = 1

    def __post_init__(self) -> None:
        if self.steps < 0 or min(self.rows, self.columns, self.threads) < 1:
            raise ValueError(f"{self} has a number out of range: steps are 0 or more, the others 1 or more")


@dataclass(frozen=True, eq=False)
class Learned:
    """What came of it.

    Attributes:
        transform: The factors.
        clip: Clip ratio of the activation grid.
        error_before: Relative squared error of the outputs on held-out rows, with the start's transform and clip ratio.
        error_after: The same with what was learned, kept or not.
        why_not: Why transform and clip ratio are those of the start; empty if they are learned.
    """

    transform: Transform
    clip: float
    error_before: float
    error_after: float
    why_not: str = ""

    @property
    def kept(self) -> bool:
        """Whether the held-out error fell, and what was learned is used."""
        return not self.why_not


class Clip:
    """The clip ratio of an activation grid, fixed or learned."""

    def __init__(self, start: float, *, learned: bool) -> None:
        self._start = start
        logit = torch.logit(torch.tensor(min(start, WIDEST_CLIP)))
        self.trained: list[Tensor] = [logit.requires_grad_()] if learned else []

    def __call__(self) -> Tensor | float:
        """Return the ratio, with its gradient."""
        return torch.sigmoid(self.trained[0]) if self.trained else self._start

    @property
    def ratio(self) -> float:
        """The ratio as a number."""
        return float(torch.sigmoid(self.trained[0].detach())) if self.trained else self._start


def learn(
    sample: SiteSample,
    start: Transform,
    maps: Sequence[TorchMap],
    *,
    learn_clip: bool,
    effort: Effort | None,
    seed: int,
) -> Learned:
    """Train maps, and keep the outcome if the error on held-out rows fell.

    Args:
        sample: The site.
        start: The transform that the maps begin as.
        maps: Its factors in torch.
        learn_clip: Whether the clip ratio is learned too; it then begins as the best of a few, not as the grid's own.
        effort: How long to learn; None for the usual time.
        seed: Of every draw.
    """
    effort, generator = effort or Effort(), np.random.default_rng(seed)
    order = generator.permutation(len(sample.rows))
    held_out, training = np.split(order, [int(len(order) * HELD_OUT)])
    counts, columns = sample.row_counts(), sample.some_columns(JUDGED_COLUMNS, generator)
    before = sample.output_error(start, sample.clip, held_out, columns, counts)
    with _threads(effort.threads):
        objective = Objective(sample, training, counts, rows=effort.rows, columns=effort.columns, generator=generator)
        learn_clip = learn_clip and sample.grid is not None
        clip = Clip(objective.best_clip(maps) if learn_clip else sample.clip, learned=learn_clip)
        _descend(objective, maps, clip, effort.steps)
    try:
        after = Transform(tuple(part.factor() for part in maps))
    except ValueError as problem:  # a factor that became singular or NaN says so itself
        return Learned(start, sample.clip, before, math.inf, f"learning failed: {problem}")
    error = sample.output_error(after, clip.ratio, held_out, columns, counts)
    if error < before * (1 - LEAST_GAIN):
        return Learned(after, clip.ratio, before, error)
    return Learned(start, sample.clip, before, error, f"the held-out error went from {before:.4g} to {error:.4g}")


def _descend(objective: Objective, maps: Sequence[TorchMap], clip: Clip, steps: int) -> None:
    turning = CayleyAdam([matrix for part in maps for matrix in part.orthogonal])
    plain = [(tensor, PLAIN_RATE) for part in maps for tensor in part.trained]
    plain += [(tensor, CLIP_RATE) for tensor in clip.trained]
    adam = torch.optim.Adam([{"params": [tensor], "lr": rate} for tensor, rate in plain]) if plain else None
    for step in range(steps):
        fade = (1 + math.cos(math.pi * step / steps)) / 2
        objective(maps, clip()).backward()
        if adam is not None:
            for group, (_, rate) in zip(adam.param_groups, plain, strict=True):
                group["lr"] = rate * fade
            adam.step()
            adam.zero_grad()
        turning.step(ROTATION_RATE * fade)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads, and give back what was set before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
