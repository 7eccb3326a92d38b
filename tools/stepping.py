"""Times of language models that take turns, so that what slows the machine down for a while slows down all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from catonnx.errors import CatonnxError
from catonnx.runtime.decoding import LOGITS, present_name
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.library import open_model
from catonnx.runtime.sessions import PROVIDER_NAMES

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_WARM_UP = 2
"""Steps before those that count: the first one allocates anew, and threads of the model before spin on for a while."""

_AT_ONCE = 512
"""Tokens of a context that are taken in at once, all texts together: logits of more would fill the memory."""


@dataclass(frozen=True)
class Variant:
    """A model as it is run: a file and session configuration entries."""

    path: Path
    config: Mapping[str, str]


@dataclass(frozen=True)
class Times:
    """Seconds of one variant, one entry a round; of prefill none if it was not timed."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]


@dataclass(frozen=True)
class Past:
    """What a model has read: the length, and the cache by input name, as ONNX Runtime's own tensors."""

    length: int
    cache: Mapping[str, object]


class Runner:
    """A language model whose cache and logits stay where they are computed: nothing of them is copied while time runs.

    Raises:
        CatonnxError: the model does not load, or has no cache.
    """

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self._spec = InputSpec.from_session(session)
        outputs = {node.name for node in session.get_outputs()}
        if not self._spec.has_cache or LOGITS not in outputs:
            raise CatonnxError("the model has no cache or no logits", hint="export it with a cache")
        self._device = "cuda" if PROVIDER_NAMES["cuda"] in session.get_providers() else "cpu"
        self._present = [present_name(name, outputs) for name in self._spec.past_names]
        self.start()

    def start(self, past: Past | None = None) -> None:
        """Forget everything, or go on behind what this model or another one with the same cache has read."""
        self.past = past or Past(0, {})

    def step(self, tokens: np.ndarray) -> float:
        """Append `tokens` int64 [batch, n] and return the seconds that it took."""
        feeds = self._spec.feeds(tokens, self.past.length)
        if self.past.length == 0:
            feeds |= self._spec.zero_past(len(tokens))
        binding = self._session.io_binding()
        begin = time.perf_counter()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, value in self.past.cache.items():
            binding.bind_ortvalue_input(name, value)
        for name in (LOGITS, *self._present):
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        seconds = time.perf_counter() - begin
        cache = dict(zip(self._spec.past_names, binding.get_outputs()[1:], strict=True))
        self.past = Past(self.past.length + tokens.shape[1], cache)
        return seconds


def open_runner(variant: Variant, provider: str = "cpu") -> Runner:
    """Open a variant at ONNX Runtime's default optimization, with the library of our operators if it is built."""
    return Runner(open_model(variant.path, provider=provider, config=variant.config))


def take_turns(
    runners: Mapping[str, Runner],
    tokens: np.ndarray,
    *,
    rounds: int,
    context: int,
    decoded: int,
    batch: int = 1,
    prefill: bool = True,
    most_seconds: float = math.inf,
) -> dict[str, Times]:
    """Time all runners in every round, beginning with another one each time, after one round that warms up.

    Args:
        runners: By name; of models whose caches have the same names, types and shapes.
        tokens: int64 [sequence], longer than `context` and `decoded` together by 2; taken in at once for the time of
            prefill.
        rounds: Rounds that count.
        context: Tokens that stand before the first one that is decoded. The first runner takes them in, once, and all
            go on behind its cache: what it holds has no influence on time.
        decoded: Tokens decoded one by one in a round; their median is the round's time.
        batch: Copies of the text at once.
        prefill: Also time that.
        most_seconds: After that time no further round begins, but for the first one that counts.

    Raises:
        ValueError: there are too few tokens.
    """
    if len(tokens) < context + decoded + 2:
        raise ValueError(f"{len(tokens)} tokens are fewer than {context} and {decoded} to decode, and 2")
    names, texts = list(runners), np.repeat(tokens[np.newaxis], batch, axis=0)
    first = runners[names[0]]
    first.start()
    piece = max(1, _AT_ONCE // batch)
    for start in range(0, context, piece):
        first.step(texts[:, start : min(start + piece, context)])
    past = first.past
    times: dict[str, list[tuple[float | None, float]]] = {name: [] for name in names}
    begin = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > 1 and time.perf_counter() - begin > most_seconds:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            measured = _one_round(runners[name], texts, past, decoded, prefill)
            if turn:
                times[name].append(measured)
    return {
        name: Times(tuple(first for first, _ in own if first is not None), tuple(decode for _, decode in own))
        for name, own in times.items()
    }


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median over the rounds of over / under."""
    return statistics.median(first / second for first, second in zip(over, under, strict=True))


def _one_round(
    runner: Runner, tokens: np.ndarray, past: Past, decoded: int, prefill: bool
) -> tuple[float | None, float]:
    # Prefill comes last: the threads of the model that ran before spin on for a while, and would be in its way.
    runner.start(past)
    ends = range(past.length + 1, past.length + _WARM_UP + decoded + 1)
    seconds = [runner.step(tokens[:, end - 1 : end]) for end in ends]
    runner.start()
    return runner.step(tokens) if prefill else None, statistics.median(seconds[_WARM_UP:])
