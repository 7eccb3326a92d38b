"""Judge one random graph: optimize it, and compare the result with the source on inputs that nobody calibrated on.

The sessions here are our own: node by node as the graph is written, apart from what `optimize` verifies itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

import catonnx
from catonnx.errors import CatonnxError, VerificationError
from catonnx.report import Report
from models.dressing import tensors_of
from tools.fuzz.cases import Case, Feeds, decoding

TOLERANCE = {False: 1e-4, True: 2e-2}
"""Relative L2 of any output, in float32 and in float16."""

WORST_AMPLIFICATION = {False: 30, True: 3}
"""A norm of numbers that nearly cancel multiplies any rounding: such sources say nothing and are counted apart."""

NOISE = {False: 1e-6, True: 1e-3}

SMALLEST_OUTPUT = 1e-4
"""Of an output that is nowhere larger than this, rounding may change a part that says nothing."""

NOT_RUNNABLE, ILL_CONDITIONED = "source not runnable", "source ill-conditioned"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        kind: `ok`, `refused <class>`, one of the two that say nothing, or `FAILED <why>`.
        error: Worst relative L2 of an output against the source, where nothing was rounded.
        detail: Of a failure: what happened, with a traceback if there was one.
    """

    kind: str
    error: float | None = None
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether catonnx did wrong."""
        return self.kind.startswith("FAILED")


class Wrong(Exception):  # noqa: N818
    """What a case found; the first argument is a kind of few words, the second the details."""


def judge(case: Case, folder: Path | None = None) -> Outcome:
    """Run one case in a new temporary folder below `folder` and say how it ended."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=folder) as place:
        try:
            return _judged(case, Path(place))
        except Wrong as found:
            return Outcome(f"FAILED {found.args[0]}", detail=str(found.args[1]))


def _judged(case: Case, place: Path) -> Outcome:
    model = case.write(place)
    try:
        expected = [run(model / "model.onnx", feeds) for feeds in case.checks]
        calibrated = [feeds for feeds in case.feeds if not is_empty(feeds)]  # it dies of some
        seen = [run(model / "model.onnx", feeds) for feeds in calibrated]
        steps = [decoding(case, outputs, feeds) for outputs, feeds in zip(expected, case.checks, strict=True)]
        further = [None if step is None else run(model / "model.onnx", step) for step in steps]
    except ERRORS:
        return Outcome(NOT_RUNNABLE)
    if not _finite(*expected, *filter(None, further)):
        return Outcome(NOT_RUNNABLE)
    amplified = float("inf") if _is_all_but_zero(*seen, *expected) else amplification(case, expected)
    before = contents(place)
    try:
        report = catonnx.optimize(model, place / "out", case.recipe(place))
    except CatonnxError as error:
        _check_nothing_left(place, before)
        if isinstance(error, VerificationError) and "float16" not in str(error):
            # It was verified on what it was calibrated on, which may be nearer to where a Softmax turns over.
            amplified = max(amplified, amplification(dataclasses.replace(case, checks=tuple(calibrated)), seen))
            if amplified > WORST_AMPLIFICATION[case.half]:
                return Outcome(ILL_CONDITIONED)
            raise Wrong(f"VerificationError {_words(error.what)}", f"{error}, amplification {amplified:.0f}") from error
        return Outcome(f"refused {type(error).__name__}")
    except Exception as error:
        raise Wrong(f"{type(error).__name__} in {_raised_in(error)}", traceback.format_exc()) from error
    _check_nothing_left(place, before, "out")
    if amplified > WORST_AMPLIFICATION[case.half]:
        return Outcome(ILL_CONDITIONED)
    worst = _compare(case, report, model, place / "out" / "model.onnx", expected, further)
    return Outcome("ok" if worst is None else "ok, compared in float", worst)


def _compare(
    case: Case, report: Report, model: Path, out: Path, expected: list[Feeds], further: list[Feeds | None]
) -> float | None:
    """Compare a result with the source; return the worst error, or None where it is rounded."""
    kept = expected[0].keys() - set(report.changed_caches)
    pairs = []
    for feeds, outputs, later in zip(case.checks, expected, further, strict=True):
        try:
            actual = run(out, feeds)
            pairs.append((outputs, actual))
            step = decoding(case, actual, feeds)
            if step is not None and later is not None:
                pairs.append((later, run(out, step)))
        except ERRORS as error:
            raise Wrong("the result does not run", error) from error
    for outputs, actual in pairs:
        if outputs.keys() != actual.keys():
            raise Wrong("other outputs", f"{sorted(outputs)} and {sorted(actual)}")
        if any(outputs[name].shape != actual[name].shape for name in outputs):
            raise Wrong("other shapes", str({name: (outputs[name].shape, actual[name].shape) for name in outputs}))
        if any(outputs[name].dtype != actual[name].dtype for name in outputs):
            raise Wrong("other types", str({name: (outputs[name].dtype, actual[name].dtype) for name in outputs}))
        if not _finite(actual):
            raise Wrong("outputs that are not finite", str(model))
    if report.recipe["scheme"] != "float":
        return None
    errors = {name: max(relative_error(outputs[name], actual[name]) for outputs, actual in pairs) for name in kept}
    worst = max(errors.values(), default=0.0)
    if not worst <= TOLERANCE[case.half]:
        raise Wrong("another function", str(errors))
    return worst


def amplification(case: Case, expected: list[Feeds]) -> float:
    """Return by how much a model multiplies a relative change of its inputs and its constants."""
    size, worst, generator = NOISE[case.half], 0.0, np.random.default_rng(0)

    def moved(array: np.ndarray) -> np.ndarray:
        return (array * (1 + size * generator.normal(size=array.shape))).astype(array.dtype)

    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for tensor in tensors_of(model):
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            tensor.CopyFrom(numpy_helper.from_array(moved(numpy_helper.to_array(tensor)), tensor.name))
    for feeds, outputs in zip(case.checks, expected, strict=True):
        others = run(model, {name: moved(array) for name, array in feeds.items()})
        worst = max([worst, *(relative_error(outputs[name], others[name]) / size for name in outputs)])
    return worst if np.isfinite(worst) else float("inf")


def run(model: Path | onnx.ModelProto, feeds: Feeds) -> Feeds:
    """Run a model node by node as it is written."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    quiet = ort.RunOptions()
    quiet.log_severity_level = 4
    content = model if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds), quiet), strict=True))


def _ort_errors() -> tuple[type[Exception], ...]:
    state = ort.capi.onnxruntime_pybind11_state
    own = (value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*own, RuntimeError, ValueError)


ERRORS = _ort_errors()
"""By which ONNX Runtime says that it cannot; they share no base class."""


def relative_error(reference: np.ndarray, actual: np.ndarray) -> float:
    """Return |actual - reference| / |reference|, in L2."""
    expected = reference.astype(np.float64)
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / max(float(np.linalg.norm(expected)), 1e-30))


def is_empty(feeds: Feeds) -> bool:
    """Whether there is no sequence in these inputs at all."""
    return any(array.shape[:1] == (0,) for array in feeds.values())


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of every file below a folder, links as where they lead."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"-> {path.readlink()}"
        else:
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


def _check_nothing_left(place: Path, before: dict[str, str], *but: str) -> None:
    """Check that nothing was changed or added but the result."""
    results = tuple(str(place / name) for name in but)
    after = {name: value for name, value in contents(place).items() if not (results and name.startswith(results))}
    if after != before:
        changed = sorted(name for name in after.keys() | before.keys() if after.get(name) != before.get(name))
        raise Wrong("files left or changed", f"{changed}")
    if any(not (place / name / "model.onnx").is_file() for name in but):
        raise Wrong("no result", "the folder holds no model")


def _finite(*groups: Feeds) -> bool:
    return all(np.isfinite(array).all() for group in groups for array in group.values() if array.dtype.kind == "f")


def _is_all_but_zero(*groups: Feeds) -> bool:
    """Whether an output holds nothing but the last steps of a Sigmoid, which ONNX Runtime computes to 6e-8."""
    arrays = (array for feeds in groups for array in feeds.values() if array.dtype.kind == "f")
    peaks = (float(np.abs(array).max(initial=0)) for array in arrays)
    return any(0 < peak < SMALLEST_OUTPUT for peak in peaks)


def _raised_in(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "catonnx" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "nowhere of ours"


def _words(text: str) -> str:
    return text.partition(":")[0][:60]


def recipe_of(case: Case) -> dict[str, Any]:
    """Return the wishes as plain data, to keep beside a model."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in case.wishes.items()}
