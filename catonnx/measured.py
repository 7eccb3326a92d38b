"""Read back what `evaluate` and `compare` measured: the file of their `--json`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from catonnx.errors import UsageError
from catonnx.plaindata import BrokenError, made, read_plain


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
    """

    model: str
    disk_bytes: int
    perplexity: float | None = None
    kl_nats: float | None = None
    top1_agreement: float | None = None
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None


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
