"""Every error that catonnx raises on purpose.

Each one says what was found, where (file, node, input), and what to do about it, and carries the exit code of the
command line. Anything else that escapes is a bug.

| code | class | meaning |
| --- | --- | --- |
| 0 | | done |
| 2 | `UsageError` | options or recipe that contradict each other or the model; a plan or report that is broken |
| 3 | `ModelError` | the model cannot be read, or is not a sound ONNX model |
| 4 | `NothingToOptimizeError` | a sound model without a linear layer that the recipe selects |
| 5 | `CalibrationError` | calibration or evaluation data that is missing, wrong, or drives the model to NaN |
| 6 | `OutputError` | the output cannot be written where it was asked for |
| 7 | `VerificationError` | the rewritten model does not do what the source does; nothing was saved |
| 8 | `RuntimeUnavailableError` | ONNX Runtime, or the execution provider asked for, is not there |
| 130 | (KeyboardInterrupt) | interrupted; nothing was saved |
"""

from __future__ import annotations

from typing import ClassVar, Self

INTERRUPTED = 130
"""Exit code of what Ctrl-C or SIGTERM ended."""


class CatonnxError(Exception):
    """Base of all deliberate errors.

    Args:
        what: What was found, in one sentence without a full stop.
        where: File, node or input it was found in.
        hint: What the user can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        super().__init__(self._text())

    def moved(self, old: object, new: object) -> Self:
        """Return the same error about the place that the user knows, where ours was at `old` while we worked."""
        what, where, hint = (text and text.replace(str(old), str(new)) for text in (self.what, self.where, self.hint))
        return type(self)(what or "", where=where, hint=hint)

    def within(self, place: object) -> Self:
        """Return the same error with a wider place before its own."""
        return type(self)(self.what, where=place if self.where is None else f"{place}, {self.where}", hint=self.hint)

    def _text(self) -> str:
        place = f" ({self.where})" if self.where else ""
        advice = f"; {self.hint}" if self.hint else ""
        return f"{self.what}{place}{advice}"


class UsageError(CatonnxError):
    """Options, recipe or plan contradict each other or the model; or a plan or report is broken."""

    exit_code = 2


class ModelError(CatonnxError):
    """The model cannot be read, or is not a sound ONNX model."""

    exit_code = 3


class NothingToOptimizeError(CatonnxError):
    """The model is sound but holds no linear layer that the recipe selects."""

    exit_code = 4


class CalibrationError(CatonnxError):
    """Calibration or evaluation data is missing, does not fit the model, or drives it to NaN or Inf."""

    exit_code = 5


class OutputError(CatonnxError):
    """The output cannot be written where it was asked for."""

    exit_code = 6


class VerificationError(CatonnxError):
    """The rewritten model does not do what the source does; nothing was saved."""

    exit_code = 7


class RuntimeUnavailableError(CatonnxError):
    """ONNX Runtime, or the execution provider asked for, is not available."""

    exit_code = 8


def root_cause(error: BaseException) -> BaseException:
    """Return what an error began with; onnx-ir wraps errors in others that print whole graphs."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
