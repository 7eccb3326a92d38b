"""What a language model thinks of given words, and what it goes on with: what tests of knowledge ask for."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from catonnx.errors import CalibrationError
from catonnx.runtime.decoding import LOGITS
from catonnx.runtime.divergence import log_softmax
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.sessions import run
from catonnx.runtime.text import TokenStream
from catonnx.runtime.writing import go_on

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class Scorer:
    """A language model that is asked in words. Every text begins as its model's texts begin.

    Args:
        session: A causal language model.
        stream: Its tokenizer.
        ends: Tokens that end a text.
        longest: Most tokens that the model can see; what is longer loses its beginning.

    Raises:
        CalibrationError: it has no logits, or is an encoder.
    """

    def __init__(self, session: InferenceSession, stream: TokenStream, ends: Set[int], longest: int) -> None:
        if LOGITS not in {node.name for node in session.get_outputs()} or stream.suffix:
            raise CalibrationError(
                "tasks ask what comes next, and the model does not tell", hint="give a causal language model"
            )
        self._session, self._stream, self._ends, self._longest = session, stream, ends, longest
        self._spec = InputSpec.from_session(session)

    def continuation(self, context: str, words: str) -> tuple[float, bool]:
        """Return the log-likelihood of words after a context, in nats, and whether each token is the most likely one.

        Context and words are cut into tokens as one text; spaces at the end of the context belong to the words.
        """
        stripped = context.rstrip()
        words, context = context[len(stripped) :] + words, stripped
        whole, first = self._stream.encode(context + words), self._stream.encode(context)
        return self._score([*self._stream.prefix, *first.tolist()], whole[len(first) :].tolist())

    def text(self, text: str) -> float:
        """Return the log-likelihood of a whole text, in nats; a long one in pieces that know the token before."""
        ids = self._stream.encode(text).tolist()
        total = 0.0
        for start in range(0, len(ids), self._longest):
            before = [ids[start - 1]] if start else [*self._stream.prefix][-1:]
            total += self._score(before, ids[start : start + self._longest])[0]
        return total

    def write(self, context: str, *, until: Sequence[str], tokens: int, temperature: float = 0.0, seed: int = 0) -> str:
        """Return what the model writes after a context, up to the first of the texts in `until`."""
        room = max(1, self._longest - tokens - len(self._stream.prefix))
        start = [*self._stream.prefix, *self._stream.encode(context).tolist()[-room:]]
        decode = self._stream.tokenizer.decode

        def finished(ids: Sequence[int]) -> bool:
            text = decode(list(ids))
            return any(stop in text for stop in until)

        ids = go_on(
            self._session,
            np.array(start, dtype=np.int64),
            tokens=tokens,
            ends=self._ends,
            temperature=temperature,
            seed=seed,
            finished=finished,
        )
        text: str = decode(list(ids))
        for stop in until:
            text = text.partition(stop)[0]
        return text

    def _score(self, context: list[int], words: list[int]) -> tuple[float, bool]:
        """Return the log-likelihood of tokens after others, and whether each is the most likely one."""
        ids = np.array([*context, *words][-(self._longest + 1) :], dtype=np.int64)
        words = words[-min(len(words), len(ids) - 1) :] if words else words
        if not words:
            return 0.0, True
        logits = run(self._session, [LOGITS], self._spec.first_feeds(ids[np.newaxis, :-1]))[0][0, -len(words) :]
        chosen = log_softmax(logits)[np.arange(len(words)), words]
        if not np.isfinite(chosen).all():
            raise CalibrationError("the model's logits hold NaN or Inf", hint="look for NaN in its weights")
        return float(chosen.sum()), bool((logits.argmax(-1) == words).all())
