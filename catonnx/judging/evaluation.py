"""`evaluate`: a model, and the one that it was made from, on the same text."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from catonnx.errors import CalibrationError
from catonnx.graph import load
from catonnx.progress import Progress, silent
from catonnx.runtime.evaluate import Evaluation, evaluate
from catonnx.runtime.lengths import blaming_length
from catonnx.runtime.text import TokenStream, pack_text, read_text


@dataclasses.dataclass(frozen=True)
class Judged:
    """Figures of a model and of the one that it is compared with.

    Attributes:
        names: Of the two models, as they were given; the second is missing if there is none.
        tokens: Tokens in each row of text.
        model: Figures of the first.
        against: Figures of the second; what tells two models apart (KL, top-1) stands at the first only.
    """

    names: tuple[str, ...]
    tokens: int
    model: Evaluation
    against: Evaluation | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        rows = (self.model,) if self.against is None else (self.model, self.against)
        models = [{"model": name} | row.to_json() for name, row in zip(self.names, rows, strict=True)]
        return {"rows": self.model.rows, "tokens_per_row": self.tokens, "models": models}


def evaluate_on_text(
    model: str | os.PathLike[str],
    text: str | Path,
    *,
    against: str | os.PathLike[str] | None = None,
    samples: int = 16,
    seq_len: int = 512,
    provider: str = "cpu",
    progress: Progress = silent,
) -> Judged:
    """Judge a model on a text, cut by its own tokenizer.

    Args:
        model: An .onnx file, or a folder with `model.onnx`; tokenizer.json and config.json lie beside it.
        text: A text file in UTF-8.
        against: The model that it was made from.
        samples: Rows of text wanted, evenly spread over the file.
        seq_len: Tokens in each.
        provider: Where both run, "cpu" or "cuda".
        progress: Told of every run.

    Raises:
        CatonnxError: one of its subclasses, see `catonnx.errors`.
    """
    path = load.find(Path(model)).path
    other = None if against is None else load.find(Path(against)).path
    folders = [path.parent, *([] if other is None else [other.parent])]
    # A model that was optimized from a bare .onnx file has no tokenizer beside it; its source may have.
    home = next((folder for folder in folders if (folder / "tokenizer.json").is_file()), path.parent)
    said = read_text(text)
    rows = pack_text(said, TokenStream.load(home), seq_len=seq_len, samples=samples)
    if other is not None and home != other.parent and (other.parent / "tokenizer.json").is_file():
        theirs = pack_text(said, TokenStream.load(other.parent), seq_len=seq_len, samples=samples)
        if not np.array_equal(rows, theirs):
            raise CalibrationError(
                "the two models read the text as different tokens",
                where=other.parent,
                hint="catonnx compare holds models with tokenizers of their own against each other",
            )
    reference = None
    with blaming_length(*folders):
        own = evaluate(path, rows, against=other, provider=provider, progress=progress)
        if other is not None:
            # Its perplexity is known by now: one row is enough for the speeds.
            alone = evaluate(other, rows[:1], provider=provider, progress=progress)
            reference = dataclasses.replace(alone, rows=own.rows, perplexity=own.against_perplexity)
    names = tuple(str(name) for name in (model, against) if name is not None)
    return Judged(names, rows.shape[1], own, reference)
