"""Run a model on all of its inputs: whole, or in parts one after the other where it is too large for that.

A model in parts needs the memory of one part and of what is handed over, whatever its size; each part's constants are
read once for all inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from catonnx.errors import CalibrationError
from catonnx.graph.parts import in_parts
from catonnx.graph.save import write_beside
from catonnx.graph.stages import Stage
from catonnx.runtime.feeds import Feeds, ModelInput, check_feeds, graph_inputs, model_inputs
from catonnx.runtime.fusion import WRITE_OPTIMIZED, OptimizedGraph, read_optimized
from catonnx.runtime.live import Live
from catonnx.runtime.sessions import open_session, run
from catonnx.runtime.stage_sessions import free_path, stage_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MEMORY = 1 << 28
"""Bytes handed over between parts that are held in memory before more of them go to files."""


@dataclass(frozen=True, eq=False)
class Unwritten:
    """A model that may be too large to be run whole, or to be written for that only.

    Attributes:
        model: Sorted; pending folds are computed when they are needed.
        folder: A folder of ours, in which its external tensors lie.
        path: The file that holds it, if there is one.
    """

    model: ir.Model
    folder: Path
    path: Path | None = None


Runnable: TypeAlias = str | Path | Unwritten
"""A file is run whole."""


class Running(Protocol):
    """A model that can be run."""

    @property
    def inputs(self) -> Sequence[ModelInput]:
        """What it takes."""

    @property
    def outputs(self) -> Mapping[str, bool]:
        """What it gives: the names of its outputs, and whether each is a tensor of numbers or flags."""

    def run(self, feeds: Sequence[Feeds], names: Sequence[str]) -> Iterator[list[np.ndarray]]:
        """Yield the values of the outputs `names` for each sample.

        Raises:
            CalibrationError: no feeds, or feeds that do not fit the inputs.
            ModelError: ONNX Runtime failed.
        """


@contextlib.contextmanager
def opened(
    model: Runnable,
    *,
    provider: str = "cpu",
    config: Mapping[str, str] | None = None,
    threads: int | None = None,
    scratch: str | Path | None = None,
    see: Callable[[OptimizedGraph], None] | None = None,
) -> Iterator[Running]:
    """Open a model for running.

    Args:
        model: A file, or what may have to run in parts.
        provider: "cpu" or "cuda".
        config: Session configuration entries.
        threads: Threads of ONNX Runtime; all cores unless given.
        scratch: A folder for what `see` reads; the system's temporary folder unless given.
        see: Told what ONNX Runtime made of the model, or of each of its parts once they have run.

    Raises:
        ModelError: the model does not load.
        OutputError: it cannot be written.
    """
    options = {"provider": provider, "config": dict(config or {}), "threads": threads}
    parts = in_parts(model.model) if isinstance(model, Unwritten) else ()
    if isinstance(model, Unwritten) and parts:
        yield _InParts(model, parts, options, scratch, see)
        return
    with _written(model) as path, _watched(options, scratch, see) as watched:
        yield _Whole(open_session(path, **watched))


@contextlib.contextmanager
def _written(model: Runnable) -> Iterator[str | Path]:
    """Give the file of a model; one that has none is written for as long."""
    if not isinstance(model, Unwritten) or model.path is not None:
        yield model.path if isinstance(model, Unwritten) and model.path is not None else str(model)
        return
    path = free_path(model.folder)
    try:
        write_beside(model.model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}_data").unlink(missing_ok=True)


@contextlib.contextmanager
def _watched(
    options: Mapping[str, Any], scratch: str | Path | None, see: Callable[[OptimizedGraph], None] | None
) -> Iterator[Mapping[str, Any]]:
    """Give options with which ONNX Runtime writes what it runs, and tell of that in the end."""
    if see is None:
        yield options
        return
    with TemporaryDirectory(prefix="catonnx-", dir=scratch) as folder:
        path = Path(folder) / "optimized.onnx"
        yield {**options, "config": options["config"] | WRITE_OPTIMIZED, "optimized_path": path}
        see(read_optimized(path))


class _Whole:
    """One session."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self.inputs = model_inputs(session)
        self.outputs = {
            node.name: node.type.startswith("tensor(") and node.type != "tensor(string)"
            for node in session.get_outputs()
        }

    def run(self, feeds: Sequence[Feeds], names: Sequence[str]) -> Iterator[list[np.ndarray]]:
        """See `Running.run`."""
        for sample in _checked(feeds, self.inputs):
            yield run(self._session, names, sample)


class _InParts:
    """One session after the other."""

    def __init__(
        self,
        model: Unwritten,
        parts: Sequence[Stage],
        options: Mapping[str, Any],
        scratch: str | Path | None,
        see: Callable[[OptimizedGraph], None] | None,
    ) -> None:
        self._folder, self._parts, self._options = model.folder, parts, options
        self._scratch, self._see = scratch, see
        self.inputs = graph_inputs(model.model)
        self.outputs = {str(value.name): _is_numeric(value) for value in model.model.graph.outputs}

    def run(self, feeds: Sequence[Feeds], names: Sequence[str]) -> Iterator[list[np.ndarray]]:
        """See `Running.run`."""
        see, self._see = self._see, None
        samples = list(_checked(feeds, self.inputs))
        later = [{str(value.name) for value in part.inputs} for part in self._parts]
        with Live(samples, ("float",), self._folder, MEMORY) as live:
            for part in self._parts:
                wanted = set(names).union(*later[part.number + 1 :])
                outputs = [str(value.name) for value in part.outputs if value.name in wanted]
                if outputs or see:
                    self._run_part(part, outputs, live, see)
            for sample in range(live.samples):
                yield [live.get("float", name, sample) for name in names]

    def _run_part(
        self, part: Stage, outputs: Sequence[str], live: Live, see: Callable[[OptimizedGraph], None] | None
    ) -> None:
        def arrays(sample: int) -> Feeds:
            return {str(value.name): live.get("float", str(value.name), sample) for value in part.inputs}

        model, what = part.model(arrays(0)), f"part {part.number + 1} of {len(self._parts)} of the model"
        with (
            _watched(self._options, self._scratch, see) as options,
            stage_session(model, free_path(self._folder), what, **options) as session,
        ):
            for sample in range(live.samples if outputs else 0):
                values = run(session, outputs, arrays(sample))
                live.forget("float", part.ending, sample)
                for name in outputs:
                    live.put("float", name, sample, values.pop(0))


def _checked(feeds: Sequence[Feeds], inputs: Sequence[ModelInput]) -> Iterator[Feeds]:
    if not feeds:
        raise CalibrationError("there are no inputs to compare on", hint="give text, or inputs in an .npz file")
    for index, sample in enumerate(feeds):
        check_feeds(sample, inputs, where=f"sample {index}")
        yield sample


def _is_numeric(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype != ir.DataType.STRING
