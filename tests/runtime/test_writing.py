"""What a model writes after a prompt is what its own logits say, in pieces or as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from catonnx.errors import CalibrationError
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.sessions import open_session, run
from catonnx.runtime.writing import go_on

Writer = Callable[..., Path]
PROMPT = np.array([11, 0, 4])
NOISE = 1.5
"""Of the model's head: without it, it says the same token again and again."""


def directly(path: Path, prompt: list[int], tokens: int) -> list[int]:
    """Return the most likely tokens, the whole text run anew for each."""
    session, text = open_session(path), list(prompt)
    for _ in range(tokens):
        logits = run(session, ["logits"], InputSpec.from_session(session).first_feeds(np.array([text])))[0]
        text.append(int(logits[0, -1].argmax()))
    return text[len(prompt) :]


def test_the_most_likely_tokens_are_written(language_model: Writer) -> None:
    path = language_model(noise=NOISE)
    wanted = directly(path, PROMPT.tolist(), 9)
    assert len(set(wanted)) > 3
    assert go_on(open_session(path), PROMPT, tokens=9) == tuple(wanted)
    assert go_on(open_session(language_model("whole", noise=NOISE, cache=False)), PROMPT, tokens=9) == tuple(wanted)


def test_an_end_ends_the_text_and_is_no_part_of_it(language_model: Writer) -> None:
    session = open_session(language_model(noise=NOISE))
    whole = go_on(session, PROMPT, tokens=9)
    end = whole[4]
    assert go_on(session, PROMPT, tokens=9, ends={end}) == whole[: whole.index(end)]


def test_drawn_tokens_follow_the_seed_and_the_temperature(language_model: Writer) -> None:
    session = open_session(language_model(noise=NOISE))
    greedy = go_on(session, PROMPT, tokens=20)
    drawn = [go_on(session, PROMPT, tokens=20, temperature=2.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert len({greedy, drawn[0], drawn[2]}) == 3
    assert go_on(session, PROMPT, tokens=20, temperature=1e-4, seed=5) == greedy


def test_what_cannot_write_is_refused(language_model: Writer, encoder: Writer) -> None:
    with pytest.raises(CalibrationError, match="no logits"):
        go_on(open_session(encoder()), PROMPT, tokens=2)
    with pytest.raises(CalibrationError, match=r"no key-value cache, so 3 \+ 62 tokens"):
        go_on(open_session(language_model("whole", cache=False)), PROMPT, tokens=62)
    with pytest.raises(CalibrationError, match="NaN or Inf at position 0"):
        go_on(open_session(language_model("loud", noise=np.inf)), PROMPT, tokens=2)
    with pytest.raises(CalibrationError, match="no tokens"):
        go_on(open_session(language_model()), PROMPT[:0], tokens=2)


def test_writing_stops_as_soon_as_it_is_enough(language_model: Writer) -> None:
    session, seen = open_session(language_model(noise=NOISE)), []

    def finished(ids: Sequence[int]) -> bool:
        seen.append(tuple(ids))
        return len(ids) == 3

    whole = go_on(session, PROMPT, tokens=9)
    assert go_on(session, PROMPT, tokens=9, finished=finished) == whole[:3]
    assert seen == [whole[:1], whole[:2], whole[:3]]
