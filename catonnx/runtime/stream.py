"""Run a model stage by stage, in float and with its linears rounded so far, side by side.

    for each site, in graph order:
        visit it with the rows that both runs send into its linears  ->  rounded weights, rounding of the rows
        run the stage behind it on every input: in float; with what was decided
        keep what later stages read, forget the rest

Memory holds one stage's weights and what is handed over between two stages, however many layers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from catonnx.errors import CalibrationError
from catonnx.graph.sites import Site
from catonnx.graph.stages import Stage, Tap, check_weights
from catonnx.progress import Progress, silent
from catonnx.runtime.checkpoint import Checkpoint
from catonnx.runtime.feeds import Feeds, as_taken, check_feeds, graph_inputs
from catonnx.runtime.live import Live, Way
from catonnx.runtime.sessions import run
from catonnx.runtime.stage_sessions import free_path, stage_session

MEMORY = 1 << 29
"""Bytes of activations between stages that are held in memory; more go to files.

32 samples of 512 tokens of SmolLM2 take up to 0.3 GB."""


class Rows(NamedTuple):
    """What one input of the model sends into the linears of a site, float32 [n, d] each.

    Attributes:
        exact: By the model in float.
        rounded: By the model with all earlier linears rounded; the same array as `exact` if only that runs.

    Both are views of what runs on, and cannot be written to.
    """

    exact: np.ndarray
    rounded: np.ndarray


@dataclass(frozen=True)
class Decision:
    """How the selected linears of a site run from now on in the rounded model.

    Attributes:
        weights: Dequantized weights [K, N] by name of the linear; those left out keep theirs.
        round_rows: Rounds float32 rows [n, d] before these linears, and before nothing else; None leaves them.
    """

    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    round_rows: Callable[[np.ndarray], np.ndarray] | None = None


class Batches:
    """The rows of one site, one item for each input of the model; to be read once, often or never.

    Raises:
        CalibrationError: while read, at an activation of another width than the site's, or with NaN or Inf.
    """

    def __init__(self, tap: Tap, live: Live) -> None:
        self._tap, self._live = tap, live

    def __len__(self) -> int:
        return self._live.samples

    def __iter__(self) -> Iterator[Rows]:
        for sample in range(len(self)):
            rows = [self._rows(way, sample) for way in self._live.ways]
            yield Rows(rows[0], rows[-1])

    def _rows(self, way: Way, sample: int) -> np.ndarray:
        value = self._live.get(way, self._tap.name, sample)
        rows = _as_rows(value, self._tap, f"{way} run, calibration sample {sample}")
        if not np.isfinite(rows).all():
            raise CalibrationError(
                "the activation holds NaN or Inf",
                where=f"site {self._tap.site.name}, value {self._tap.name}, {way} run, calibration sample {sample}",
                hint="the model overflows on this input; in the rounded run only, an earlier site was rounded badly",
            )
        return rows


Visit = Callable[[Site, Batches], Decision]


def run_stages(
    stages: Sequence[Stage],
    feeds: Sequence[Feeds],
    visit: Visit,
    *,
    scratch: Path,
    paired: bool = True,
    provider: str = "cpu",
    threads: int | None = None,
    memory: int = MEMORY,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> None:
    """Lead `feeds` through a model, and hand the activations of every site to `visit` on the way.

    Args:
        stages: The model, as `graph.segments.cut` cuts it.
        feeds: Inputs of the whole model, one mapping per run.
        visit: Called once for each site, in graph order, when both runs have come to it. It returns what the rounded
            run does with the site's selected linears; linears that read the same value and are not selected, and any
            other reader, go on in float.
        scratch: An existing folder; external tensors that lie in it are not copied.
        paired: Also run the rounded model. Otherwise decisions have no effect, and the time is half.
        provider: "cpu" or "cuda".
        threads: Threads of ONNX Runtime; all cores unless given.
        memory: Bytes of activations to hold in memory before more of them go to files in `scratch`.
        checkpoint: Keeps what waits between stages. Stages that it knows do not run again; their sites are visited all
            the same, and must be decided without their rows.
        progress: Told of every stage.

    Raises:
        CalibrationError: no feeds; an input that they lack; an activation of another width than its site's, or with
            NaN or Inf.
        ModelError: a stage does not load or run.
        OutputError: the scratch folder cannot hold what has to wait.
        ValueError: a decision names a linear that the site has not, or gives a weight or rows of another shape.
    """
    if not feeds:
        raise CalibrationError("there is nothing to calibrate on", hint="give text, or inputs in an .npz file")
    if not stages:
        return
    inputs = graph_inputs(stages[0].source)
    feeds = [as_taken(sample, inputs) for sample in feeds]
    for index, sample in enumerate(feeds):
        check_feeds(sample, inputs, where=f"calibration sample {index}")
    ways: tuple[Way, ...] = ("float", "rounded") if paired else ("float",)
    decided: dict[Tap, Decision] = {}
    with Live(feeds, ways, scratch, memory) as live:
        runner = _Runner(live, provider, threads)
        finished = checkpoint.restore(live) if checkpoint else -1
        for stage in stages:
            for tap in stage.arriving:
                decided[tap] = visit(tap.site, Batches(tap, live))
                linears = {linear.name: linear for linear in tap.site.selected}
                check_weights(decided[tap].weights, linears, f"site {tap.site.name}")
            if stage.number > finished:
                for way in ways if stage.number else ("both",):
                    runner.run(stage, way, decided if way == "rounded" else {})
                if checkpoint:
                    checkpoint.save(stage.number, live)
            decided = {tap: decision for tap, decision in decided.items() if tap.last > stage.number}
            progress("run stages", stage.number + 1, len(stages))
    if checkpoint:
        checkpoint.clear()


@dataclass(frozen=True)
class _Runner:
    """Runs stages on all samples, with one session open at a time."""

    live: Live
    provider: str
    threads: int | None

    def run(self, stage: Stage, way: Way, decided: Mapping[Tap, Decision]) -> None:
        """Run one stage; its outputs are kept."""
        if not stage.outputs:
            return
        here = stage.linears
        weights = {
            name: array for decision in decided.values() for name, array in decision.weights.items() if name in here
        }
        outputs = [str(value.name) for value in stage.outputs]
        model = stage.model(self._arrays(stage, way, {}, 0), weights)
        # Basic optimization: what it leaves out would make no stage faster than it takes to find.
        with stage_session(
            model,
            free_path(self.live.folder.parent),
            f"stage {stage.number} of the model, {way} run",
            provider=self.provider,
            optimization="basic",
            threads=self.threads,
        ) as session:
            for sample in range(self.live.samples):
                values = run(session, outputs, self._arrays(stage, way, decided, sample))
                self.live.forget(way, stage.ending, sample)
                for name in outputs:
                    self.live.put(way, name, sample, values.pop(0))

    def _arrays(self, stage: Stage, way: Way, decided: Mapping[Tap, Decision], sample: int) -> Feeds:
        arrays = {str(value.name): self.live.get(way, str(value.name), sample) for value in stage.inputs}
        for tap in stage.fed:
            value = arrays[tap.name] if tap.name in arrays else self.live.get(way, tap.name, sample)
            round_rows = decided[tap].round_rows if tap in decided else None
            arrays[tap.rows] = value if round_rows is None else _rounded(value, tap, round_rows)
        return arrays


def _as_rows(value: np.ndarray, tap: Tap, where: str) -> np.ndarray:
    """Return an activation as float32 [n, d] that cannot be written to."""
    width = tap.site.width
    if value.ndim == 0 or value.shape[-1] != width:
        raise CalibrationError(
            f"the activation has shape {list(value.shape)} where {width} channels were planned",
            where=f"site {tap.site.name}, value {tap.name}, {where}",
        )
    rows: np.ndarray = value.reshape(-1, width).astype(np.float32, copy=False).view()
    rows.flags.writeable = False
    return rows


def _rounded(value: np.ndarray, tap: Tap, round_rows: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    rows = _as_rows(value, tap, "rounded run")
    rounded = round_rows(rows)
    if rounded.shape != rows.shape:
        raise ValueError(
            f"round_rows made {list(rounded.shape)} of {list(rows.shape)}; it must keep it (site {tap.site.name})"
        )
    return rounded.astype(value.dtype, copy=False).reshape(value.shape)
