"""Run a model on calibration inputs, stage by stage, and sum up what flows into its linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from catonnx.errors import CalibrationError
from catonnx.graph.sites import Site
from catonnx.graph.stages import Stage
from catonnx.math.moments import Moments
from catonnx.progress import Progress, silent
from catonnx.runtime.feeds import Feeds
from catonnx.runtime.stream import Batches, Decision, run_stages

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
    progress: Progress = silent,
) -> dict[str, Moments]:
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
        progress: Told of every stage.

    Raises:
        CalibrationError: as `run_stages`; or fewer than two rows at every site.
        ModelError, OutputError: as `run_stages`.
    """
    moments: dict[str, Moments] = {}

    def visit(site: Site, batches: Batches) -> Decision:
        request = requests[site.name]
        stride = max(1, len(batches) * FEWEST_KEPT // request.rows) if request.rows else 1
        keeping = -(-len(batches) // stride)
        total = Moments(site.width, request.block, kept_rows=-(-request.rows // keeping))
        for index, rows in enumerate(batches):
            total.update(rows.exact, keep=index % stride == 0)
        moments[site.name] = total
        return Decision()

    run_stages(
        stages,
        feeds,
        visit,
        scratch=scratch,
        paired=False,
        provider=provider,
        threads=threads,
        progress=lambda _, done, total: progress("calibrate", done, total),
    )
    if moments and all(total.count < 2 for total in moments.values()):
        name, total = next(iter(moments.items()))
        raise CalibrationError(
            f"calibration saw {total.count} row(s), and statistics need many",
            where=f"site {name}",
            hint="give more or longer samples",
        )
    return {name: _known(moments[name], request) for name, request in requests.items()}


def _known(total: Moments, request: MomentRequest) -> Moments:
    """Return moments, or what is assumed where there are none: no text may have reached an expert."""
    return total if total.count > 1 else Moments.unknown(total.width, total.block, request.rows)
