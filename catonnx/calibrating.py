"""Calibration as a recipe wants it: inputs from all of its texts, and what they send into every site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from catonnx.analysis import Opened
from catonnx.errors import ModelError
from catonnx.graph import load
from catonnx.graph.segments import cut
from catonnx.kept import Kept
from catonnx.math.moments import Moments
from catonnx.plan import moment_width
from catonnx.progress import Progress
from catonnx.recipe import Recipe
from catonnx.runtime.calibrate import MomentRequest, measure
from catonnx.runtime.checkpoint import Checkpoint
from catonnx.runtime.feeds import Feeds
from catonnx.runtime.samples import gather

KEPT_ROWS = 512
"""Rows of every activation that calibration keeps, where ranges are searched or something is learned."""


def calibration_feeds(
    reference: Path,
    source: load.Source,
    opened: Opened,
    recipe: Recipe,
    samples: int,
    progress: Progress,
    kept: Kept | None = None,
) -> list[Feeds]:
    """Return calibration inputs as the recipe wants them, `samples` sequences at most; those in `kept` as they are."""
    if kept is not None and (arrays := kept.get("feeds")) is not None:
        feeds: list[Feeds] = [{} for _ in range(int(arrays.pop("count")))]
        for name, array in arrays.items():
            number, _, key = name.partition("/")
            feeds[int(number)][key] = array
        return feeds
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
    feeds = [sample for turn in zip_longest(*parts) for sample in turn if sample is not None]
    if kept is not None:
        arrays = {f"{number}/{key}": array for number, sample in enumerate(feeds) for key, array in sample.items()}
        kept.put("feeds", "", arrays | {"count": np.array(len(feeds))})
    return feeds


def measure_sites(
    opened: Opened,
    work: Path,
    feeds: Sequence[Feeds],
    recipe: Recipe,
    progress: Progress,
    kept: Kept | None = None,
    checkpoint: Checkpoint | None = None,
) -> Mapping[str, Moments]:
    """Run the model up to its last site and sum up what flows into each; see `runtime.calibrate.measure`."""
    requests = {
        site.name: MomentRequest(
            moment_width(site.width, opened.absorptions[site.name], recipe), KEPT_ROWS if recipe.needs_rows else 0
        )
        for site in opened.sites
    }
    stages = cut(opened.model, opened.sites)
    try:
        return measure(
            stages,
            requests,
            feeds,
            scratch=work,
            provider=recipe.provider,
            kept=kept,
            checkpoint=checkpoint,
            progress=progress,
        )
    except ModelError as error:
        raise error.within(work / load.COPY) from error
