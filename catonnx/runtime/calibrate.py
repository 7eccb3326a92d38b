"""Run a model on calibration inputs, stage by stage, and sum up what flows into its linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from catonnx.errors import CalibrationError
from catonnx.graph.sites import Site
from catonnx.graph.stages import Stage
from catonnx.kept import Kept
from catonnx.math.moments import Moments
from catonnx.progress import Progress, silent
from catonnx.runtime.checkpoint import Checkpoint
from catonnx.runtime.feeds import Feeds
from catonnx.runtime.stream import Batches, Decision, run_stages

_KIND = "moments"

FEWEST_KEPT = 16
"""Rows that are kept of an input, if any: the first is always among them, and must not make up a large part."""


@dataclass(frozen=True)
class MomentRequest:
    """What to measure of one site.

    Attributes:
        block: Width of the diagonal blocks of x^T x that are kept: 1 for the diagonal, the site's width for all of it.
        rows: About how many rows of the activation are kept as they are.
    """

    block: int
    rows: int = 0


def measure(
    stages: Sequence[Stage],
    requests: Mapping[str, MomentRequest],
    feeds: Sequence[Feeds],
    *,
    scratch: Path,
    provider: str = "cpu",
    threads: int | None = None,
    kept: Kept | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> Mapping[str, Moments]:
    """Return the moments of every site over all `feeds`; those of `Moments.unknown` where fewer than two rows came by.

    Memory holds the moments, one stage's weights, and what is handed over between two stages, some of it in files.
    Feeds of about 512 tokens are the fastest.

    Args:
        stages: The model, as `graph.segments.cut` cuts it.
        requests: Site name -> what to measure there; for every site of the stages.
        feeds: Inputs by name, one mapping per run.
        scratch: An existing folder for files.
        provider: "cpu" or "cuda".
        threads: Threads of ONNX Runtime; all cores unless given.
        kept: Holds the moments, so that memory does not; those that are in it already are taken as they are.
        checkpoint: Of the stages, for a run that was cut off.
        progress: Told of every stage.

    Raises:
        CalibrationError: as `run_stages`; or fewer than two rows at every site.
        ModelError, OutputError: as `run_stages`.
    """
    kept = Kept() if kept is None else kept

    def visit(site: Site, batches: Batches) -> Decision:
        if kept.get(_KIND, site.name) is not None:
            return Decision()
        request = requests[site.name]
        stride = max(1, len(batches) * FEWEST_KEPT // request.rows) if request.rows else 1
        keeping = -(-len(batches) // stride)
        total = Moments(site.width, request.block, kept_rows=-(-request.rows // keeping))
        for index, rows in enumerate(batches):
            total.update(rows.exact, keep=index % stride == 0)
        kept.put(_KIND, site.name, total.to_arrays())
        return Decision()

    lost = {name for name in requests if kept.get(_KIND, name) is None}
    if checkpoint:
        checkpoint.check(stages, lambda site: site.name in lost)
    run_stages(
        stages if lost else (),  # what is known is not run for
        feeds,
        visit,
        scratch=scratch,
        paired=False,
        provider=provider,
        threads=threads,
        checkpoint=checkpoint,
        progress=lambda _, done, total: progress("calibrate", done, total),
    )
    moments = _Moments(requests, kept)
    if stages and all(item.assumed for item in moments.values()):
        name = next(iter(requests))
        count = (kept.get(_KIND, name) or {})["count"]
        raise CalibrationError(
            f"calibration saw {count} row(s), and statistics need many",
            where=f"site {name}",
            hint="give more or longer samples",
        )
    return moments


class _Moments(Mapping[str, Moments]):
    """Moments by site name, read when they are asked for."""

    def __init__(self, requests: Mapping[str, MomentRequest], kept: Kept) -> None:
        self._requests, self._kept = requests, kept
        self._latest: dict[str, Moments] = {}

    def __getitem__(self, name: str) -> Moments:
        if name not in self._latest:
            request, arrays = self._requests[name], self._kept.get(_KIND, name)
            if arrays is None:
                raise KeyError(name)
            total = Moments.from_arrays(arrays)
            self._latest.clear()
            # Of what calibration did not reach, as an expert may be, something is assumed.
            known = total.count > 1
            self._latest[name] = total if known else Moments.unknown(total.width, total.block, request.rows)
        return self._latest[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)
