"""Tokens per second of a model in an open session."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from catonnx.runtime.decoding import Decoder
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.sessions import run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_REPEATS = 5
"""Timed runs after one that warms up; the median counts."""

_DECODED = 32
"""Tokens fed one by one, of which the median counts."""


def prefill_speed(session: InferenceSession, spec: InputSpec, row: np.ndarray) -> float:
    """Return tokens per second of taking in `row` int64 [sequence] at once: the median of five runs."""
    tokens = row[np.newaxis]
    if spec.has_cache:
        decoder = Decoder(session, spec)

        def prefill() -> None:
            decoder.start(1)
            decoder.step(tokens)
    else:
        names = [node.name for node in session.get_outputs()]
        feeds = spec.first_feeds(tokens)

        def prefill() -> None:
            run(session, names, feeds)

    prefill()
    return len(row) / statistics.median(_seconds(prefill) for _ in range(_REPEATS))


def decode_speed(session: InferenceSession, spec: InputSpec, row: np.ndarray) -> float | None:
    """Return tokens per second of feeding tokens one by one, or None if the model has no cache.

    The first quarter of `row` int64 [sequence] is taken in at once, then the next 32 tokens (fewer if the row ends)
    are timed one by one; the median counts. Choosing the next token is not part of it.
    """
    if not spec.has_cache:
        return None
    decoder = Decoder(session, spec)
    first = max(1, len(row) // 4)
    decoder.step(row[np.newaxis, :first])
    singles = [row[np.newaxis, at : at + 1] for at in range(first, min(first + _DECODED + 1, len(row)))]
    decoder.step(singles[0])  # the first step after a long one allocates anew
    timed = singles[1:] or singles
    return 1.0 / statistics.median(_seconds(partial(decoder.step, token)) for token in timed)


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
