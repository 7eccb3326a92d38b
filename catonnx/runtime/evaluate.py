"""Judge a deployed model: perplexity, divergence from another model, speed, size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from catonnx.errors import CalibrationError, ModelError
from catonnx.graph.twin import needs_twin
from catonnx.progress import Progress, silent
from catonnx.runtime.decoding import LOGITS
from catonnx.runtime.divergence import LogitDifference, json_number, mean_cosine, negative_log_likelihood
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.library import open_model
from catonnx.runtime.recording import compared_outputs
from catonnx.runtime.sessions import run
from catonnx.runtime.speed import decode_speed, prefill_speed
from catonnx.runtime.spool import Spool

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


Rows: TypeAlias = Sequence[np.ndarray] | np.ndarray
"""Token ids of texts: int64 [rows, sequence], or rows of any lengths."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model. A figure that the model or the call does not allow is None.

    Attributes:
        rows: Texts evaluated.
        perplexity: exp of the mean surprise in nats per token, every token of a row after the first.
        against_perplexity: The same of the other model.
        kl_nats: Mean KL(other || this) per position, nats.
        top1_agreement: Share of positions where both models find the same token most likely.
        cosine: Output name -> mean cosine between this and the other model's vectors (models without logits).
        prefill_tokens_per_second: One whole row at once.
        decode_tokens_per_second: Token after token.
        disk_bytes: The model file and all of its external data.
        float32_twin: Whether its float32 twin ran in place of a bfloat16 model (`graph.twin`); it has no speed then.
    """

    rows: int
    perplexity: float | None
    against_perplexity: float | None
    kl_nats: float | None
    top1_agreement: float | None
    cosine: Mapping[str, float] | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    disk_bytes: int
    float32_twin: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the figures in JSON's types; a figure that is not finite becomes None."""
        figures = asdict(self)
        return {key: json_number(value) if isinstance(value, float) else value for key, value in figures.items()}


class MismatchError(CalibrationError):
    """Two models give outputs that cannot be held against each other."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model gave for every row, to hold others against.

    Attributes:
        names: The outputs by which it is judged.
        perplexity: As in `Evaluation`.
        spool: The outputs, by row and position of the name.
    """

    names: list[str]
    perplexity: float | None
    spool: Spool


@contextmanager
def reference(
    model_path: str | Path,
    rows: Rows,
    *,
    provider: str = "cpu",
    config: Mapping[str, str] | None = None,
    threads: int | None = None,
    scratch: str | Path | None = None,
    progress: Progress = silent,
) -> Iterator[Reference]:
    """Run a model on rows and keep its outputs as long as the context; its session is closed by then.

    Args:
        model_path: The model.
        rows: As for `evaluate`.
        provider: "cpu" or "cuda".
        config: Session configuration entries.
        threads: Threads of ONNX Runtime; all cores unless given.
        scratch: Folder for the outputs, and for the float32 twin of a bfloat16 model.
        progress: Told of every run.

    Raises:
        CatonnxError: as `evaluate`.
    """
    _check_rows(rows)
    with Spool(scratch) as spool:
        subject = _Subject.of(
            open_model(model_path, provider=provider, config=config, threads=threads, scratch=scratch)
        )

        def keep(index: int, values: Sequence[np.ndarray]) -> None:
            spool.put(index, values)
            progress("evaluate", index + 1, len(rows))

        names, perplexity = subject.names, subject.pass_over(rows, keep)
        del subject  # its session must be gone before the next one opens
        yield Reference(names, perplexity, spool)


def evaluate(
    model_path: str | Path,
    rows: Rows,
    *,
    against: str | Path | Reference | None = None,
    provider: str = "cpu",
    config: Mapping[str, str] | None = None,
    against_config: Mapping[str, str] | None = None,
    threads: int | None = None,
    speed: bool = True,
    scratch: str | Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate a language model or a text encoder on rows of token ids.

    Rows are run one at a time, and the two models one after the other, so that neither the logits of many rows nor two
    models are in memory together.

    Args:
        model_path: The model to judge.
        rows: int64 [sequence] each, beginning the way a text begins (`pack_text`).
        against: The model that it was made from, or another to compare with; or what that gave for the same rows.
        provider: "cpu" or "cuda".
        config: Session configuration entries of the model.
        against_config: Those of the other model.
        threads: Threads of ONNX Runtime; all cores unless given.
        speed: Measure tokens per second too.
        scratch: Folder for the other model's outputs (100 MB for 512 tokens of a vocabulary of 49152), and for the
            float32 twins of bfloat16 models.
        progress: Told of every run.

    Raises:
        CalibrationError: no rows, a model that is not fed from text, or two models whose outputs do not match.
        ModelError: a model does not load or run.
        OutputError: the other model's outputs do not fit on the disk.
    """
    _check_rows(rows)
    size, twin = disk_bytes(model_path), needs_twin(Path(model_path))
    timed = speed and not twin  # a twin has a speed of its own
    own_reference = against is not None and not isinstance(against, Reference)
    before, steps = (len(rows), 2 * len(rows)) if own_reference else (0, len(rows))
    with ExitStack() as stack:
        if against is None or isinstance(against, Reference):
            kept = against
        else:
            kept = stack.enter_context(
                reference(
                    against,
                    rows,
                    provider=provider,
                    config=against_config,
                    threads=threads,
                    scratch=scratch,
                    progress=lambda step, done, _: progress(step, done, steps),
                )
            )
        subject = _Subject.of(
            open_model(model_path, provider=provider, config=config, threads=threads, scratch=scratch)
        )
        if kept is not None and kept.names != subject.names:
            raise MismatchError(
                f"the models give different outputs: {', '.join(subject.names)} and {', '.join(kept.names)}",
                hint="compare a model with the one that it was made from",
            )
        difference = _Difference()

        def judge(index: int, values: Sequence[np.ndarray]) -> None:
            if kept is not None:
                for position, name in enumerate(subject.names):
                    difference.add(name, kept.spool.get(index, position), values[position])
            progress("evaluate", before + index + 1, steps)

        perplexity = subject.pass_over(rows, judge)
        return Evaluation(
            rows=len(rows),
            perplexity=perplexity,
            against_perplexity=kept.perplexity if kept else None,
            kl_nats=difference.logits.kl_nats if difference.logits.positions else None,
            top1_agreement=difference.logits.top1_agreement if difference.logits.positions else None,
            cosine=difference.mean_cosines(),
            prefill_tokens_per_second=prefill_speed(subject.session, subject.spec, rows[0]) if timed else None,
            decode_tokens_per_second=decode_speed(subject.session, subject.spec, rows[0]) if timed else None,
            disk_bytes=size,
            float32_twin=twin,
        )


def _check_rows(rows: Rows) -> None:
    if len(rows) < 1 or any(np.ndim(row) != 1 or len(row) < 2 for row in rows):
        shapes = list(rows.shape) if isinstance(rows, np.ndarray) else [list(np.shape(row)) for row in rows]
        raise CalibrationError(f"cannot evaluate on token rows of shape {shapes}", hint="give a longer text")


def disk_bytes(model_path: str | Path) -> int:
    """Return the size in bytes of a model: its file and every file of external data that it names.

    Raises:
        ModelError: the model cannot be read, or a data file is missing.
    """
    path = Path(model_path)
    try:
        # Not through onnx-ir, whose graph would hold hundreds of inline megabytes until the garbage collector comes by.
        graph = onnx.load(path, load_external_data=False).graph
    except (DecodeError, OSError) as error:
        raise ModelError(f"the model cannot be read: {error}", where=path) from error
    entries = (entry for tensor in graph.initializer for entry in tensor.external_data)
    files = {path.parent / entry.value for entry in entries if entry.key == "location"}
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise ModelError(f"external data is missing: {', '.join(absent)}", where=path)
    return sum(file.stat().st_size for file in {path, *files})


@dataclass(frozen=True)
class _Subject:
    """An open model, the outputs by which it is judged, and whether its logits predict the next token."""

    session: InferenceSession
    spec: InputSpec
    names: list[str]

    @classmethod
    def of(cls, session: InferenceSession) -> _Subject:
        names = compared_outputs(node.name for node in session.get_outputs())
        return cls(session, InputSpec.from_session(session), [LOGITS] if LOGITS in names else names)

    def run(self, tokens: np.ndarray) -> list[np.ndarray]:
        return run(self.session, self.names, self.spec.first_feeds(tokens[np.newaxis]))

    def pass_over(self, rows: Rows, visit: Callable[[int, Sequence[np.ndarray]], None]) -> float | None:
        """Show the outputs of every row to `visit` and return the perplexity, if the model predicts the next token."""
        causal = self._is_causal(rows[0])
        surprise = 0.0
        for index, row in enumerate(rows):
            values = self.run(row)
            if causal:
                surprise += negative_log_likelihood(values[0][0, :-1], row[1:])
            visit(index, values)
        # The bound keeps a broken model from ending in an OverflowError.
        return math.exp(min(surprise / sum(len(row) - 1 for row in rows), 700.0)) if causal else None

    def _is_causal(self, row: np.ndarray) -> bool:
        """Whether there is a logit per position that does not see later ones (a masked language model's does)."""
        if self.names != [LOGITS]:
            return False
        if self.spec.has_cache:
            return True
        half = row[: max(1, len(row) // 2)]
        short, whole = self.run(half)[0], self.run(row)[0]
        if whole.ndim != 3 or whole.shape[1] != len(row):
            return False
        # Float rounding differs between the two lengths by about 1e-5; a look ahead changes logits by far more.
        return bool(np.allclose(short, whole[:, : len(half)], rtol=1e-2, atol=1e-2))


class _Difference:
    """Running difference between two models: of their logits, or else of each output's vectors."""

    def __init__(self) -> None:
        self.logits = LogitDifference()
        self._cosines: dict[str, list[float]] = {}

    def add(self, name: str, reference: np.ndarray, value: np.ndarray) -> None:
        if reference.shape != value.shape:
            raise MismatchError(
                f"the models give different shapes: {list(value.shape)} and {list(reference.shape)}",
                where=f"output {name}",
            )
        if name == LOGITS:
            self.logits.add(reference, value)
        else:
            self._cosines.setdefault(name, []).append(mean_cosine(reference, value))

    def mean_cosines(self) -> dict[str, float] | None:
        return {name: float(np.mean(values)) for name, values in self._cosines.items()} or None
