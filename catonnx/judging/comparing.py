"""`compare`: any number of models on the same text, and what they write after the same words."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catonnx.errors import UsageError
from catonnx.graph import load
from catonnx.progress import Progress, silent
from catonnx.runtime.divergence import json_number
from catonnx.runtime.evaluate import Evaluation, MismatchError, Reference, evaluate, reference
from catonnx.runtime.lengths import blaming_length
from catonnx.runtime.library import open_model
from catonnx.runtime.text import TokenStream, configured_ends, pack_text, passages, read_text
from catonnx.runtime.writing import go_on


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What models are asked to go on from, and how.

    Attributes:
        texts: The words.
        tokens: The most tokens to write.
        temperature: 0 takes the most likely token, more draws.
        seed: Of the draw, the same for all models.
    """

    texts: tuple[str, ...] = ()
    tokens: int = 48
    temperature: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Written:
    """What a model wrote after one prompt.

    Attributes:
        prompt: The words.
        text: What it wrote.
        ids: The same as token ids.
        same: How many of them, from the first, are the reference's; None for the reference, or with another tokenizer.
    """

    prompt: str
    text: str
    ids: tuple[int, ...]
    same: int | None


@dataclasses.dataclass(frozen=True)
class Compared:
    """One model.

    Attributes:
        model: Its name, as it was given.
        figures: Its figures; KL and top-1 are against the reference.
        bits_per_byte: Bits that the text costs it per byte of UTF-8: comparable whatever the tokenizer is.
        why: Why KL and top-1 are missing, or its perplexity is of another kind; empty if nothing is wrong.
        texts: What it wrote, one for each prompt.
    """

    model: str
    figures: Evaluation
    bits_per_byte: float | None
    why: str
    texts: tuple[Written, ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models on one text.

    Attributes:
        reference: The model that the others are compared with.
        rows: Passages of the text.
        tokens: Tokens of the reference in each.
        text_bytes: Bytes of all passages.
        models: In the order in which they were named; a reference that was not among them comes last.
    """

    reference: str
    rows: int
    tokens: int
    text_bytes: int
    models: tuple[Compared, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        models = [
            {"model": row.model}
            | row.figures.to_json()
            | {
                "bits_per_byte": json_number(row.bits_per_byte),
                "why": row.why,
                "texts": [dataclasses.asdict(text) for text in row.texts],
            }
            for row in self.models
        ]
        head = {"reference": self.reference, "rows": self.rows, "tokens_per_row": self.tokens}
        return head | {"bytes": self.text_bytes, "models": models}


@dataclasses.dataclass(frozen=True, eq=False)
class _Subject:
    """A model, its tokenizer, and the passages as it reads them."""

    name: str
    path: Path
    home: Path
    stream: TokenStream
    rows: Sequence[np.ndarray]


def compare_on_text(
    models: Sequence[str | os.PathLike[str]],
    text: str | Path,
    *,
    against: str | os.PathLike[str] | None = None,
    prompts: Prompts | None = None,
    samples: int = 16,
    seq_len: int = 512,
    provider: str = "cpu",
    progress: Progress = silent,
) -> Comparison:
    """Judge models on passages of one text, each cut by its own tokenizer.

    The reference's tokenizer says where the passages begin and end. One model is in memory at a time.

    Args:
        models: .onnx files, or folders with `model.onnx`, tokenizer.json and config.json. A model without a tokenizer
            takes that of the first that has one.
        text: A text file in UTF-8.
        against: The model that the others are compared with; the first unless given.
        prompts: What they are asked to go on from.
        samples: Passages wanted, evenly spread over the file.
        seq_len: Tokens of the reference in each.
        provider: Where they run, "cpu" or "cuda".
        progress: Told of every run.

    Raises:
        CatonnxError: one of its subclasses, see `catonnx.errors`.
    """
    if not models:
        raise UsageError("there is no model to compare", hint="name one at least")
    prompts = prompts or Prompts()
    names = list(dict.fromkeys(str(name) for name in (*models, *([] if against is None else [against]))))
    paths = {name: load.find(Path(name)).path for name in names}
    first = str(models[0] if against is None else against)
    homes = [path.parent for path in paths.values()]
    spare = next((home for home in homes if (home / "tokenizer.json").is_file()), homes[0])
    content = read_text(text)

    home = _home(paths[first], spare)
    stream = TokenStream.load(home)
    rows = pack_text(content, stream, seq_len=seq_len, samples=samples, where=text)
    parts = passages(content, stream, seq_len=seq_len, samples=samples)
    size = sum(len(part.encode()) for part in parts)
    lead = _Subject(first, paths[first], home, stream, list(rows))
    counted = _Counted(progress, len(rows) * len(names))
    compared: dict[str, Compared] = {}
    with contextlib.ExitStack() as held:
        with blaming_length(home):
            kept = held.enter_context(reference(lead.path, lead.rows, provider=provider, progress=counted))
            alone = evaluate(lead.path, lead.rows[:1], provider=provider)  # its perplexity is known: one row is enough
        figures = dataclasses.replace(alone, rows=len(rows), perplexity=kept.perplexity)
        texts = _written(lead, prompts, provider)
        compared[first] = Compared(first, figures, _bits_per_byte(figures, lead.rows, size), "", texts)
        for name in (name for name in names if name != first):
            subject = _subject(name, paths[name], spare, lead, parts)
            with blaming_length(subject.home):
                figures, why = _judged(subject, lead, kept, provider, counted)
            known = texts if subject.rows is lead.rows else ()
            written = _written(subject, prompts, provider, known)
            compared[name] = Compared(name, figures, _bits_per_byte(figures, subject.rows, size), why, written)
    return Comparison(first, len(rows), rows.shape[1], size, tuple(compared[name] for name in names))


class _Counted:
    """Tells of rows as parts of all rows of all models."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, _step: str, _done: int, _of: int) -> None:
        self._done += 1
        self._progress("compare", self._done, self._total)


def _home(path: Path, spare: Path) -> Path:
    return path.parent if (path.parent / "tokenizer.json").is_file() else spare


def _subject(name: str, path: Path, spare: Path, lead: _Subject, parts: Sequence[str]) -> _Subject:
    """Return a model with the passages in its own tokens: the very rows of `lead` where these are the same."""
    home = _home(path, spare)
    stream = TokenStream.load(home)
    own, others = ([each.encode(part) for part in parts] for each in (stream, lead.stream))
    same = all(np.array_equal(one, other) for one, other in zip(own, others, strict=True))
    if same and (stream.prefix, stream.suffix) == (lead.stream.prefix, lead.stream.suffix):
        return _Subject(name, path, home, stream, lead.rows)
    rows = [np.concatenate([stream.prefix, ids, stream.suffix]).astype(np.int64) for ids in own]
    return _Subject(name, path, home, stream, rows)


def _judged(
    subject: _Subject, lead: _Subject, kept: Reference, provider: str, progress: Progress
) -> tuple[Evaluation, str]:
    """Return a model's figures, and why it cannot be held against the reference."""
    why = "another tokenizer: perplexity is per token of its own, and nothing can be compared token by token"
    if subject.rows is lead.rows:
        try:
            return evaluate(subject.path, subject.rows, against=kept, provider=provider, progress=progress), ""
        except MismatchError as error:
            why = error.what
    return evaluate(subject.path, subject.rows, provider=provider, progress=progress), why


def _bits_per_byte(figures: Evaluation, rows: Sequence[np.ndarray], size: int) -> float | None:
    """Return the bits that a text of `size` bytes costs; every token of a row after the first one counts."""
    if figures.perplexity is None:
        return None
    predicted = sum(len(row) - 1 for row in rows)
    return math.log2(figures.perplexity) * predicted / size


def _written(subject: _Subject, prompts: Prompts, provider: str, known: Sequence[Written] = ()) -> tuple[Written, ...]:
    """Return what a model writes after each prompt, and how much of it is what is `known`."""
    if not prompts.texts:
        return ()
    session = open_model(subject.path, provider=provider)
    ends = configured_ends(subject.home)
    written = []
    for index, prompt in enumerate(prompts.texts):
        start = np.concatenate([subject.stream.prefix, subject.stream.encode(prompt)]).astype(np.int64)
        with blaming_length(subject.home, advice="take shorter prompts or fewer tokens: {} in all"):
            ids = go_on(
                session, start, tokens=prompts.tokens, ends=ends, temperature=prompts.temperature, seed=prompts.seed
            )
        text = subject.stream.tokenizer.decode(list(ids))
        written.append(Written(prompt, text, ids, leading_same(ids, known[index].ids) if known else None))
    return tuple(written)


def leading_same(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return how many tokens from the first are the same."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(ids), len(others)))
