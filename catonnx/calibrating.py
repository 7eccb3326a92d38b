"""Calibration as a recipe wants it: inputs from all of its texts, and what they send into every site."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Run the model up to its last site and sum up what flows into each; those in bodies are `Moments.unknown`."""
    rows = KEPT_ROWS if recipe.needs_rows else 0
    requests = {
        site.name: MomentRequest(moment_width(site.width, opened.absorptions[site.name], recipe), rows)
        for site in opened.sites
        if not site.inside
    }
    stages = cut(opened.model, opened.sites)
    try:
        seen = measure(stages, requests, feeds, scratch=work, provider=recipe.provider, progress=progress)
    except ModelError as error:
        raise error.within(work / load.COPY) from error
    # Nothing is fitted to what is assumed, so a diagonal does.
    return seen | {site.name: Moments.unknown(site.width, 1, rows) for site in opened.sites if site.inside}
