"""Calibration as a recipe wants it: inputs from all of its texts, and what they send into every site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from catonnx.analysis import Opened
from catonnx.errors import ModelError
from catonnx.graph import load
from catonnx.graph.segments import cut
from catonnx.kept import Kept
from catonnx.math.moments import Moments
from catonnx.planning.plan import moment_width
from catonnx.progress import Progress
from catonnx.recipe import Recipe
from catonnx.runtime.calibrate import MomentRequest, measure
from catonnx.runtime.checkpoint import Checkpoint
from catonnx.runtime.feeds import Feeds
from catonnx.runtime.samples import gather

KEPT_ROWS = 512
"""Rows of every activation that calibration keeps, where ranges are searched or something is learned."""


_JOINT = "joint moments"


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
    """Run the model up to its last site and sum up what flows into each; those in bodies are `Moments.unknown`.

    See `runtime.calibrate.measure`.
    """
    rows = KEPT_ROWS if recipe.needs_rows else 0
    requests = {
        site.name: MomentRequest(moment_width(site.width, opened.absorptions[site.name], recipe), rows)
        for site in opened.sites
        if not site.inside
    }
    stages = cut(opened.model, opened.sites)
    try:
        measured = measure(
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
    return _Seen(opened, measured, rows, Kept() if kept is None else kept)


class _Seen(Mapping[str, Moments]):
    """Moments of every site, of those too that calibration did not see; sites that share weights have joint ones."""

    def __init__(self, opened: Opened, measured: Mapping[str, Moments], rows: int, kept: Kept) -> None:
        self._opened, self._measured, self._rows, self._kept = opened, measured, rows, kept
        self._sites = {site.name: site for site in opened.sites}
        self._latest: dict[str, Moments] = {}

    def __getitem__(self, name: str) -> Moments:
        if self._sites[name].inside:  # nothing is fitted to what is assumed, so a diagonal does
            return Moments.unknown(self._sites[name].width, 1, self._rows)
        leader = self._opened.leaders.get(name)
        if leader is None:
            return self._own(name)
        if leader not in self._latest:
            self._latest.clear()
            self._latest[leader] = self._joint(leader)
        return self._latest[leader]

    def _own(self, name: str) -> Moments:
        own, peers = self._measured[name], self._opened.absorptions[name].peers
        if not own.assumed or not peers:
            return own
        # No text reached it: it has those of its peers, other rows of one value.
        pooled = Moments.pooled([self._measured[site.name] for site in peers])
        pooled.assumed = True
        return pooled

    def _joint(self, leader: str) -> Moments:
        """Return the moments of all sites that follow one."""
        arrays = self._kept.get(_JOINT, leader)
        if arrays is not None:
            return Moments.from_arrays(arrays)
        joint = Moments.pooled([self._own(name) for name, other in self._opened.leaders.items() if other == leader])
        if not joint.assumed:
            self._kept.put(_JOINT, leader, joint.to_arrays())
        return joint

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)
