"""Whether a text was too long for a model, where ONNX Runtime only names a node that failed."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

from catonnx.errors import CalibrationError, CatonnxError
from catonnx.runtime.sessions import RunError
from catonnx.runtime.text import named_length

_WANT_OF_MEMORY = re.compile(r"out of memory|alloc", re.IGNORECASE)


@contextlib.contextmanager
def blaming_length(*folders: Path, advice: str = "take a seq_len of {} or less") -> Iterator[None]:
    """Say of a model that failed on a text that this is longer than its configuration allows, if it is.

    The configuration alone decides nothing: positions that are computed, and not read from a table, have no end. Want
    of memory is told as what it is.

    Args:
        folders: Of the models that run, where their config.json lies; one without a readable one says nothing.
        advice: What to do, with the number of tokens at {}.

    Raises:
        CalibrationError: the text was too long.
        RunError: it was not, as far as anyone says.
    """
    try:
        yield
    except RunError as error:
        blamed = folders if error.tokens and not _WANT_OF_MEMORY.search(error.what) else ()
        lengths = {folder: _length(folder) for folder in blamed}
        # Of several models the one with the shortest is the one that failed.
        folder, most = min(lengths.items(), key=lambda item: item[1], default=(None, math.inf))
        if folder is None or error.tokens <= most:
            raise
        raise CalibrationError(
            f"the model failed on a text of {error.tokens} tokens, and its configuration allows {most}",
            where=folder,
            hint=advice.format(most),
        ) from error


def _length(folder: Path) -> float:
    try:
        most = named_length(folder)
    except (CatonnxError, OSError):  # it is the failure that matters
        return math.inf
    return math.inf if most is None else most
