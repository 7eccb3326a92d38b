"""Whose fault an unexpected error is: the model's, if ONNX Runtime will not have it either."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from catonnx.errors import CatonnxError
from catonnx.runtime.sessions import open_session


@contextlib.contextmanager
def blaming(model: Path, provider: str) -> Iterator[None]:
    """Turn an error that nobody raised on purpose into one about the model, if ONNX Runtime does not load it.

    The passes trust that attributes have the types and inputs the numbers that their operators ask for. ONNX Runtime
    checks all of that, but only where a session is opened, which on a large model is too dear to do once more.

    Args:
        model: The source.
        provider: Where it would run.

    Raises:
        ModelError: ONNX Runtime does not load it.
    """
    try:
        yield
    except CatonnxError:
        raise
    except Exception:  # any: which one a broken attribute ends in is chance, and it goes on if the model is sound
        open_session(model, provider=provider, optimization="basic")
        raise
