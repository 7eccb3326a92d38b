"""Let a language model go on from a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from catonnx.errors import CalibrationError
from catonnx.runtime.decoding import LOGITS
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.sampling import LONGEST_WITHOUT_CACHE, draw, writer

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def go_on(
    session: InferenceSession,
    prompt: np.ndarray,
    *,
    tokens: int,
    ends: Set[int] = frozenset(),
    temperature: float = 0.0,
    seed: int = 0,
    finished: Callable[[Sequence[int]], bool] = lambda _: False,
) -> tuple[int, ...]:
    """Return what a model writes after a prompt, as token ids.

    Args:
        session: A causal language model.
        prompt: int64 [tokens], special ones included.
        tokens: The most tokens to write.
        ends: Tokens that end a text; they are not part of it.
        temperature: Divides the logits before a token is drawn; 0 takes the most likely one.
        seed: Of the numbers that decide what is drawn: models that think alike write alike.
        finished: Asked after every token, with all that was written, whether that is enough.

    Raises:
        CalibrationError: the model cannot write, or gives NaN or Inf.
        ModelError: ONNX Runtime failed.
    """
    if LOGITS not in {node.name for node in session.get_outputs()}:
        raise CalibrationError("the model gives no logits, so it cannot go on from a prompt", hint="leave --prompt out")
    if not len(prompt):
        raise CalibrationError("the prompt has no tokens", hint="give some words")
    spec = InputSpec.from_session(session)
    if not spec.has_cache and len(prompt) + tokens > LONGEST_WITHOUT_CACHE:
        raise CalibrationError(
            f"the model has no key-value cache, so {len(prompt)} + {tokens} tokens would take too long",
            hint=f"ask for {LONGEST_WITHOUT_CACHE} in all, or export it with a cache",
        )
    next_logits = writer(session, spec, len(prompt) + tokens)(1)
    uniforms = np.random.default_rng(seed).random(tokens)
    text = prompt[np.newaxis]
    for position in range(tokens):
        logits = next_logits(text)
        if not np.isfinite(logits).all():
            raise CalibrationError(f"the model's logits hold NaN or Inf at position {position} of its text")
        at = uniforms[position : position + 1]
        chosen = draw(logits / temperature, at) if temperature > 0 else logits.argmax(-1)
        if int(chosen[0]) in ends:
            break
        text = np.concatenate([text, chosen[:, np.newaxis].astype(np.int64)], axis=1)
        if finished(text[0, len(prompt) :].tolist()):
            break
    return tuple(text[0, len(prompt) :].tolist())
