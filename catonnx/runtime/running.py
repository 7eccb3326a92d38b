"""Run a model on all of its inputs: whole, or in parts one after the other where it is too large for that.

A model in parts needs the memory of one part and of what is handed over, whatever its size; each part's constants are
read once for all inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from catonnx.errors import CalibrationError
from catonnx.graph.parts import in_parts
from catonnx.graph.save import write_beside
from catonnx.graph.stages import Stage, reads
from catonnx.runtime.feeds import Feeds, ModelInput, as_taken, check_feeds, graph_inputs, model_inputs
from catonnx.runtime.fusion import WRITE_OPTIMIZED, OptimizedGraph, read_optimized
from catonnx.runtime.live import Live
from catonnx.runtime.sessions import Optimization, open_session, run
from catonnx.runtime.stage_sessions import free_path, stage_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MEMORY = 1 << 28
"""Bytes handed over between parts that are held in memory before more of them go to files."""


@dataclasses.dataclass(frozen=True, eq=False)
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


@dataclasses.dataclass(frozen=True)
class Request:
    """One run of a model.

    Attributes:
        feeds: Inputs.
        outputs: Names of the outputs that are wanted.
        continued: Inputs that are outputs of the request before: input name -> output name. What `feeds` holds for them
            tells their shapes, as long as nothing but that is read: a model may begin with the length of its cache.
    """

    feeds: Feeds
    outputs: Sequence[str]
    continued: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Running(Protocol):
    """A model that can be run."""

    @property
    def inputs(self) -> Sequence[ModelInput]:
        """What it takes."""

    @property
    def outputs(self) -> Mapping[str, bool]:
        """What it gives: the names of its outputs, and whether each is a tensor of numbers or flags."""

    def run(self, requests: Sequence[Request]) -> Iterator[list[np.ndarray]]:
        """Yield the outputs that are asked for, for each request.

        Raises:
            CalibrationError: no requests, or feeds that do not fit the inputs.
            ModelError: ONNX Runtime failed.
        """


@contextlib.contextmanager
def opened(
    model: Runnable,
    *,
    provider: str = "cpu",
    config: Mapping[str, str] | None = None,
    threads: int | None = None,
    optimization: Optimization = "all",
    scratch: str | Path | None = None,
    see: Callable[[OptimizedGraph], None] | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> Iterator[Running]:
    """Open a model for running.

    Args:
        model: A file, or what may have to run in parts.
        provider: "cpu" or "cuda".
        config: Session configuration entries.
        threads: Threads of ONNX Runtime; all cores unless given.
        optimization: How far ONNX Runtime may rewrite the graph.
        scratch: A folder for what `see` reads; the system's temporary folder unless given.
        see: Told what ONNX Runtime made of the model, or of each of its parts once they have run.
        prepare: As of `open_session`.

    Raises:
        ModelError: the model does not load.
        OutputError: it cannot be written.
    """
    options = {
        "provider": provider,
        "config": dict(config or {}),
        "threads": threads,
        "optimization": optimization,
        "scratch": scratch,
        "prepare": prepare,
    }
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

    def run(self, requests: Sequence[Request]) -> Iterator[list[np.ndarray]]:
        """See `Running.run`."""
        before: dict[str, np.ndarray] = {}
        for request, handed in _checked(requests, self.inputs):
            names = list(dict.fromkeys([*request.outputs, *handed]))
            feeds = request.feeds | {name: before[output] for name, output in request.continued.items()}
            before = dict(zip(names, run(self._session, names, feeds), strict=True))
            yield [before[name] for name in request.outputs]


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
        self._makers = {str(value.name): part.number for part in parts for value in part.outputs}
        self.inputs = graph_inputs(model.model)
        self.outputs = {str(value.name): _is_numeric(value) for value in model.model.graph.outputs}

    def run(self, requests: Sequence[Request]) -> Iterator[list[np.ndarray]]:
        """See `Running.run`."""
        see, self._see = self._see, None
        checked = list(_checked(requests, self.inputs))
        sweeps = [0, *(number for number, (request, _) in enumerate(checked) if self._reads_early(request))]
        before: Feeds = {}
        for begin, end in itertools.pairwise([*sweeps, len(checked)]):
            (first, handed), *rest = checked[begin:end]
            fed = first.feeds | {name: before[output] for name, output in first.continued.items()}
            sweep = [(Request(fed, first.outputs), handed), *rest]
            with Live([request.feeds for request, _ in sweep], ("float",), self._folder, MEMORY) as live:
                self._sweep(sweep, live, see)
                see = None
                for sample, (request, _) in enumerate(sweep):
                    yield [live.get("float", name, sample) for name in request.outputs]
                before = {name: live.get("float", name, len(sweep) - 1) for name in sweep[-1][1]}

    def _reads_early(self, request: Request) -> bool:
        """Whether a part reads of the request before what a later part makes: all of that has to run first."""
        return any(
            not self._is_made(request.continued[str(value.name)], part)
            and any(node.op_type != "Shape" and value in reads(node, part.source.graph) for node in part.nodes)
            for part in self._parts
            for value in part.inputs
            if value.name in request.continued
        )

    def _is_made(self, output: str, part: Stage) -> bool:
        """Whether an output is there when a part has run."""
        return self._makers.get(output, 0) <= part.number

    def _sweep(
        self,
        requests: Sequence[tuple[Request, Collection[str]]],
        live: Live,
        see: Callable[[OptimizedGraph], None] | None,
    ) -> None:
        """Run every part that is needed, once; its constants are read once for all requests."""
        read = [{str(value.name) for value in part.inputs} for part in self._parts]
        for part in self._parts:
            later = set[str]().union(*read[part.number + 1 :])
            outputs = [
                [str(value.name) for value in part.outputs if value.name in later.union(request.outputs, handed)]
                for request, handed in requests
            ]
            if any(outputs) or see:
                self._run_part(part, [request for request, _ in requests], outputs, live, see)

    def _run_part(
        self,
        part: Stage,
        requests: Sequence[Request],
        outputs: Sequence[Sequence[str]],
        live: Live,
        see: Callable[[OptimizedGraph], None] | None,
    ) -> None:
        def arrays(sample: int) -> Feeds:
            made = {name: output for name, output in requests[sample].continued.items() if self._is_made(output, part)}
            return {
                name: live.get("float", made.get(name, name), sample - (name in made))
                for name in (str(value.name) for value in part.inputs)
            }

        model, what = part.model(arrays(0)), f"part {part.number + 1} of {len(self._parts)} of the model"
        with (
            _watched(self._options, self._scratch, see) as options,
            stage_session(model, free_path(self._folder), what, **options) as session,
        ):
            for sample, names in enumerate(outputs):
                values = run(session, names, arrays(sample)) if names else []
                live.forget("float", part.ending, sample)
                for name in names:
                    live.put("float", name, sample, values.pop(0))


def check_some(samples: Sequence[object]) -> None:
    """Refuse to run a model on nothing."""
    if not samples:
        raise CalibrationError("there are no inputs to compare on", hint="give text, or inputs in an .npz file")


def _checked(requests: Sequence[Request], inputs: Sequence[ModelInput]) -> Iterator[tuple[Request, Collection[str]]]:
    """Yield each request, and which of its outputs the next one continues from."""
    check_some(requests)
    for index, request in enumerate(requests):
        request = dataclasses.replace(request, feeds=as_taken(request.feeds, inputs))
        check_feeds(request.feeds, inputs, where=f"sample {index}")
        yield request, requests[index + 1].continued.values() if index + 1 < len(requests) else ()


def _is_numeric(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype != ir.DataType.STRING
