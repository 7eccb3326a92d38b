"""What a model thinks of words is read off its logits, wherever the words begin and however long they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catonnx.errors import CalibrationError
from catonnx.runtime import scoring
from catonnx.runtime.divergence import log_softmax
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.scoring import Scorer
from catonnx.runtime.sessions import open_session, run
from catonnx.runtime.text import TokenStream, configured_length
from catonnx.runtime.writing import go_on

Writer = Callable[..., Path]
BOS, A, B, C, D = 3, 4, 5, 6, 7  # of `tokenizer_folder`: words a to h are ids 4 to 11
NEAR = 1e-5
"""Relative; measured 3e-7: the same numbers in batches of other shapes."""


@pytest.fixture
def ask(language_model: Writer, tokenizer_folder: Writer) -> Callable[..., Scorer]:
    """Return a function that opens a model with its tokenizer."""
    stream = TokenStream.load(tokenizer_folder({"bos_token_id": BOS}, special=False))

    def make(longest: int = 64, ends: frozenset[int] = frozenset(), noise: float = 1.5) -> Scorer:
        return Scorer(open_session(language_model(noise=noise)), stream, ends, longest)

    return make


def direct(path: Path, ids: list[int]) -> np.ndarray:
    """Return log probabilities of the next token at every place of a text, one of 12 words each."""
    session = open_session(path)
    return log_softmax(run(session, ["logits"], InputSpec.from_session(session).first_feeds(np.array([ids])))[0][0])


def test_words_after_a_context(ask: Callable[..., Scorer], language_model: Writer) -> None:
    logs = direct(language_model(noise=1.5), [BOS, A, B, C])
    value, _ = ask().continuation("a b", " c d")
    assert value == pytest.approx(logs[2, C] + logs[3, D], rel=NEAR)
    alone, _ = ask().continuation("", "a b")
    assert alone == pytest.approx(logs[0, A] + logs[1, B], rel=NEAR)
    assert ask().continuation("a b ", "c d")[0] == pytest.approx(value, rel=NEAR)
    assert ask().continuation("a b", "") == (0.0, True)


def test_words_are_greedy_if_each_is_the_most_likely(ask: Callable[..., Scorer], language_model: Writer) -> None:
    path, ids = language_model(noise=1.5), [BOS, A]
    for _ in range(3):
        ids.append(int(direct(path, ids)[-1].argmax()))
    names = dict(zip(range(4, 12), "abcdefgh", strict=True)) | {0: "[UNK]", 1: "x", 2: "y", 3: "z"}
    likely = " ".join(names[ident] for ident in ids[2:])
    assert ask().continuation("a", f" {likely}")[1]
    last = next(name for ident, name in names.items() if ident > 3 and ident != ids[-1])
    assert not ask().continuation("a", f" {likely[:-1]}{last}")[1]


def test_a_long_context_loses_its_beginning(ask: Callable[..., Scorer], language_model: Writer) -> None:
    logs = direct(language_model(noise=1.5), [B, C])
    assert ask(longest=2).continuation("a b c", " d")[0] == pytest.approx(logs[1, D], rel=NEAR)
    # Of three words only the last two have a place to be predicted from.
    logs = direct(language_model(noise=1.5), [B, C])
    assert ask(longest=2).continuation("a", " b c d")[0] == pytest.approx(logs[0, C] + logs[1, D], rel=NEAR)


def test_a_whole_text_counts_every_token_once(ask: Callable[..., Scorer], language_model: Writer) -> None:
    path = language_model(noise=1.5)
    logs = direct(path, [BOS, A, B, C])
    whole = logs[0, A] + logs[1, B] + logs[2, C] + logs[3, D]
    assert ask().text("a b c d") == pytest.approx(whole, rel=NEAR)
    second = direct(path, [B, C])
    pieces = logs[0, A] + logs[1, B] + second[0, C] + second[1, D]
    assert ask(longest=2).text("a b c d") == pytest.approx(pieces, rel=NEAR)
    assert ask().text("") == 0


def test_writing_stops_at_a_text_and_at_an_end(ask: Callable[..., Scorer]) -> None:
    whole = ask().write("a b", until=[], tokens=9)
    words = whole.split()
    assert len(words) > 4
    stop = words[3]
    first = words.index(stop)
    cut = ask().write("a b", until=["never", stop], tokens=9)
    assert cut.split() == words[:first]
    assert ask().write("a b", until=[], tokens=2).split() == words[:2]
    # Of six places BOS takes one and the answer three: two are left for the end of the context.
    assert ask(longest=6).write("h h h c a b", until=[], tokens=3) == ask().write("a b", until=[], tokens=3)
    assert ask().write("h h h c a b", until=[], tokens=3) != ask().write("a b", until=[], tokens=3)
    drawn = {ask().write("a b", until=[], tokens=9, temperature=3.0, seed=seed) for seed in range(3)}
    assert len(drawn) > 1


def test_nothing_is_written_behind_a_stop(ask: Callable[..., Scorer], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, ...]] = []

    def recorded(*arguments: Any, **options: Any) -> tuple[int, ...]:
        written.append(go_on(*arguments, **options))
        return written[-1]

    monkeypatch.setattr(scoring, "go_on", recorded)
    words = ask().write("a b", until=[], tokens=9).split()
    ask().write("a b", until=[words[3]], tokens=9)
    assert [len(ids) for ids in written] == [9, words.index(words[3]) + 1]


def test_what_does_not_tell_what_comes_next_is_refused(
    encoder: Writer, language_model: Writer, tokenizer_folder: Writer, ask: Callable[..., Scorer], tmp_path: Path
) -> None:
    stream = TokenStream.load(tmp_path / "tokenizer")
    with pytest.raises(CalibrationError, match="what comes next"):
        Scorer(open_session(encoder()), stream, frozenset(), 8)
    with pytest.raises(CalibrationError, match="NaN or Inf"):
        ask(noise=np.inf).continuation("a", " b")


def test_how_much_a_model_sees_is_what_its_configuration_says(tokenizer_folder: Writer) -> None:
    folder = tokenizer_folder({"n_positions": 77})
    assert configured_length(folder) == 77
    (folder / "config.json").write_text('{"max_position_embeddings": "many"}')
    assert configured_length(folder) == 2048
    (folder / "genai_config.json").write_text('{"model": {"context_length": 99}}')
    assert configured_length(folder) == 99
