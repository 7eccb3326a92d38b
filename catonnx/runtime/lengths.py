"""Whether a text was too long for a model, where ONNX Runtime only names a node that failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from catonnx.errors import CalibrationError
from catonnx.runtime.sessions import RunError
from catonnx.runtime.text import named_length


@contextlib.contextmanager
def blaming_length(*folders: Path, advice: str = "take a seq_len of {} or less") -> Iterator[None]:
    """Say of a model that failed on a text that this is longer than its configuration allows, if it is.

    The configuration alone decides nothing: positions that are computed, and not read from a table, have no end.

    Args:
        folders: Of the models that run, where their config.json lies.
        advice: What to do, with the number of tokens at {}.

    Raises:
        CalibrationError: the text was too long.
        RunError: it was not, as far as anyone says.
    """
    try:
        yield
    except RunError as error:
        for folder in folders:
            most = named_length(folder)
            if most is not None and error.tokens > most:
                raise CalibrationError(
                    f"the model failed on a text of {error.tokens} tokens, and its configuration allows {most}",
                    where=folder,
                    hint=advice.format(most),
                ) from error
        raise
