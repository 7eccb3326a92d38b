"""Calibration data out of nothing: let the language model write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from catonnx.errors import CalibrationError
from catonnx.progress import Progress, silent
from catonnx.runtime.decoding import LOGITS, Decoder
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.sessions import run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

LONGEST_WITHOUT_CACHE = 64
"""Without a cache the work grows with the square of the length."""


def sample_text(
    session: InferenceSession,
    spec: InputSpec,
    *,
    samples: int,
    seq_len: int,
    seed: int,
    bos: int,
    temperature: float = 1.0,
    batch: int = 16,
    progress: Progress = silent,
) -> np.ndarray:
    """Return texts that the model itself writes, each from nothing but `bos`.

    Tokens are drawn from the model's full distribution. A token that ends a text is one like any other: what the model
    writes after it is kept, so that all rows are full. The random numbers of a row do not depend on the batch size.

    Args:
        session: A causal language model.
        spec: Its inputs.
        samples: Texts.
        seq_len: Tokens in each, `bos` included.
        seed: Of numpy's default generator.
        bos: Id of the first token.
        temperature: Divides the logits.
        batch: Texts written at a time; the cache grows with it.
        progress: Told after every token.

    Returns:
        int64 [samples, seq_len].

    Raises:
        CalibrationError: the model gives NaN or Inf, or has no cache and `seq_len` is over `LONGEST_WITHOUT_CACHE`.
        ModelError: ONNX Runtime failed.
    """
    if samples < 1 or seq_len < 2 or batch < 1 or not temperature > 0:
        raise CalibrationError(f"cannot sample {samples} texts of {seq_len} tokens at temperature {temperature}")
    uniforms = np.random.default_rng(seed).random((samples, seq_len))
    rows = np.full((samples, seq_len), bos, dtype=np.int64)
    start = writer(session, spec, seq_len)
    starts = range(0, samples, batch)
    for done, first in enumerate(starts):
        texts = rows[first : first + batch]  # a view: written in place
        next_logits = start(len(texts))
        for position in range(1, seq_len):
            logits = next_logits(texts[:, :position])
            if not np.isfinite(logits).all():
                raise CalibrationError(
                    f"the model's logits hold NaN or Inf at position {position} of its own text",
                    hint="look for NaN in its weights, or use a float32 model instead of float16",
                )
            texts[:, position] = draw(logits / temperature, uniforms[first : first + batch, position])
            progress("sample text", done * seq_len + position + 1, len(starts) * seq_len)
    return rows


def draw(logits: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Draw one token per row of `logits` [batch, vocabulary] by inverting the distribution at `uniforms` [batch]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    cumulative = np.cumsum(np.exp(shifted), axis=-1)
    thresholds = uniforms * cumulative[:, -1]
    drawn = [np.searchsorted(row, at, side="right") for row, at in zip(cumulative, thresholds, strict=True)]
    last = logits.shape[-1] - 1
    return np.array(drawn, dtype=np.int64).clip(max=last)  # rounding can carry a threshold past the last sum


_NextLogits = Callable[[np.ndarray], np.ndarray]


def writer(session: InferenceSession, spec: InputSpec, seq_len: int) -> Callable[[int], _NextLogits]:
    """Return what begins a batch, and gives a function from the tokens so far to the logits of the next."""
    if spec.has_cache:
        decoder = Decoder(session, spec)

        def start_cached(size: int) -> _NextLogits:
            decoder.start(size)

            def next_cached(tokens: np.ndarray) -> np.ndarray:
                logits: np.ndarray = decoder.step(tokens[:, decoder.length :])[:, -1]
                return logits

            return next_cached

        return start_cached
    if seq_len > LONGEST_WITHOUT_CACHE:
        raise CalibrationError(
            f"the model has no key-value cache, so writing {seq_len} tokens would take too long",
            hint="give a calibration text, or export the model with a cache (--task text-generation-with-past)",
        )
    if LOGITS not in {node.name for node in session.get_outputs()}:
        raise CalibrationError("the model gives no logits, so it cannot write text", hint="give a calibration text")

    def next_logits(tokens: np.ndarray) -> np.ndarray:
        logits: np.ndarray = run(session, [LOGITS], spec.feeds(tokens))[0][:, -1]
        return logits

    return lambda _size: next_logits
