"""Calibration as a recipe wants it: inputs from all of its texts, and what they send into every site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from catonnx.analysis import Opened
from catonnx.errors import ModelError
from catonnx.graph import load
from catonnx.graph.segments import cut
from catonnx.math.moments import Moments
from catonnx.plan import moment_width
from catonnx.progress import Progress
from catonnx.recipe import Recipe
from catonnx.runtime.calibrate import MomentRequest, measure
from catonnx.runtime.feeds import Feeds
from catonnx.runtime.samples import gather

KEPT_ROWS = 512
"""Rows of every activation that calibration keeps, where ranges are searched or something is learned."""


def calibration_feeds(
    reference: Path, source: load.Source, opened: Opened, recipe: Recipe, samples: int, progress: Progress
) -> list[Feeds]:
    """Return calibration inputs as the recipe wants them, `samples` sequences at most."""
    kinds = recipe.texts
    share = -(-min(samples, recipe.samples) // len(kinds))
    parts = [
        gather(
            reference,
            opened.model,
            source.folder or source.path.parent,
            kind,
            samples=share,
            seq_len=recipe.seq_len,
            seed=recipe.seed,
            provider=recipe.provider,
            progress=progress,
        )
        for kind in kinds
    ]
    return [sample for turn in zip_longest(*parts) for sample in turn if sample is not None]


def measure_sites(
    opened: Opened, work: Path, feeds: Sequence[Feeds], recipe: Recipe, progress: Progress
) -> dict[str, Moments]:
    """Run the model up to its last site and sum up what flows into each."""
    requests = {
        site.name: MomentRequest(
            moment_width(site.width, opened.absorptions[site.name], recipe), KEPT_ROWS if recipe.needs_rows else 0
        )
        for site in opened.sites
    }
    stages = cut(opened.model, opened.sites)
    try:
        measured = measure(stages, requests, feeds, scratch=work, provider=recipe.provider, progress=progress)
    except ModelError as error:
        raise error.within(work / load.COPY) from error
    return measured | _joint(measured, opened.leaders)


def _joint(measured: Mapping[str, Moments], leaders: Mapping[str, str]) -> dict[str, Moments]:
    """Return one and the same moments for all sites that share weights: of all of them together."""
    joint: dict[str, Moments] = {}
    for name, leader in leaders.items():
        if leader not in joint or joint[leader].assumed:
            joint[leader] = measured[name]
        elif not measured[name].assumed:
            joint[leader].merge(measured[name])
    return {name: joint[leader] for name, leader in leaders.items()}
