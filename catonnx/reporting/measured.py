"""Read back what `evaluate` and `compare` measured: the file of their `--json`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from catonnx.errors import UsageError
from catonnx.reporting.plaindata import BrokenError, made, read_plain


@dataclasses.dataclass(frozen=True)
class Answers:
    """One figure of a task that was asked.

    Attributes:
        task: Name of the task.
        metric: Name of the figure.
        value: The figure; None if it is not finite.
        error: Its standard error, None if it has none.
    """

    task: str
    metric: str
    value: float | None
    error: float | None


@dataclasses.dataclass(frozen=True)
class Measured:
    """Figures of one model; one that was not measured is None.

    Attributes:
        model: Its name, as it was given.
        perplexity: On the text.
        kl_nats: Mean divergence per token from the model that it was compared with.
        top1_agreement: Share of positions with the same most likely token.
        prefill_tokens_per_second: Of a whole row at once.
        decode_tokens_per_second: Token after token.
        disk_bytes: Size of the model and its data.
        tasks: Figures of the tasks that it was asked.
    """

    model: str
    disk_bytes: int | None = None
    perplexity: float | None = None
    kl_nats: float | None = None
    top1_agreement: float | None = None
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    tasks: tuple[Answers, ...] = ()


@dataclasses.dataclass(frozen=True)
class _File:
    models: tuple[Measured, ...]


def load_measured(path: Path) -> tuple[Measured, ...]:
    """Read the figures of all models.

    Raises:
        UsageError: there is no such file, or it is something else.
    """
    hint = "write one with catonnx evaluate --json, or catonnx compare --json"
    if not path.is_file():
        raise UsageError("there are no such figures", where=path, hint=hint)
    try:
        return made(_File, read_plain(path), "").models
    except BrokenError as error:
        raise UsageError(f"these are no figures of catonnx: {error}", where=path, hint=hint) from error
