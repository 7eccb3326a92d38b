"""A model writes the same text from the same seed, from its own distribution, with or without its cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from catonnx.errors import CalibrationError
from catonnx.runtime.decoding import Decoder, present_name
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.sampling import draw, sample_text
from catonnx.runtime.sessions import open_session, run

Writer = Callable[..., Path]


def sample(path: Path, *, seed: int = 0, batch: int = 16, seq_len: int = 20, temperature: float = 1.0) -> np.ndarray:
    session = open_session(path)
    spec = InputSpec.from_session(session)
    return sample_text(
        session, spec, samples=5, seq_len=seq_len, seed=seed, bos=3, batch=batch, temperature=temperature
    )


def test_text_in_pieces_is_text_as_a_whole(language_model: Writer) -> None:
    session = open_session(language_model())
    spec = InputSpec.from_session(session)
    tokens = np.array([[3, 4, 5, 6, 7, 8], [3, 9, 1, 2, 0, 11]])
    whole = run(session, ["logits"], spec.first_feeds(tokens))[0]
    decoder = Decoder(session, spec)
    for _ in range(2):
        decoder.start(2)
        pieces = [decoder.step(tokens[:, :3]), decoder.step(tokens[:, 3:4]), decoder.step(tokens[:, 4:])]
        assert decoder.length == 6
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-5)  # measured 3e-7


def test_samples_are_full_and_repeatable(language_model: Writer) -> None:
    path = language_model()
    rows = sample(path)
    assert rows.shape == (5, 20)
    assert rows.dtype == np.int64
    assert (rows[:, 0] == 3).all()
    assert len({tuple(row) for row in rows}) == 5
    np.testing.assert_array_equal(rows, sample(path, batch=2))
    assert (rows != sample(path, seed=1)).any()


def test_the_cache_does_not_change_the_text(language_model: Writer) -> None:
    np.testing.assert_array_equal(sample(language_model()), sample(language_model("plain", cache=False)))


def test_a_low_temperature_takes_the_most_likely_token(language_model: Writer) -> None:
    path = language_model()
    rows = sample(path, temperature=1e-3, seq_len=8)
    session = open_session(path)
    logits = run(session, ["logits"], InputSpec.from_session(session).first_feeds(rows))[0]
    np.testing.assert_array_equal(rows[:, 1:], logits[:, :-1].argmax(-1))


def test_draw_follows_the_distribution() -> None:
    probabilities = np.array([0.5, 0.0, 0.2, 0.3])
    uniforms = np.random.default_rng(0).random(20_000)
    with np.errstate(divide="ignore"):
        drawn = draw(np.tile(np.log(probabilities), (20_000, 1)), uniforms)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, probabilities, atol=0.01)  # measured 0.002
    assert draw(np.zeros((1, 4)), np.array([1.0])) == [3]


def test_models_that_cannot_write(language_model: Writer, encoder: Writer) -> None:
    with pytest.raises(CalibrationError, match="no key-value cache, so writing 65 tokens would take too long"):
        sample(language_model(cache=False), seq_len=65)
    with pytest.raises(CalibrationError, match="gives no logits"):
        sample(encoder())
    session = open_session(encoder())
    spec = InputSpec.from_session(session)
    with pytest.raises(CalibrationError, match="cannot be fed piece by piece"):
        Decoder(session, spec)


def test_a_model_that_overflows(language_model: Writer) -> None:
    with pytest.raises(CalibrationError, match="logits hold NaN or Inf at position 1"):
        sample(language_model(noise=np.inf))


def test_impossible_requests(language_model: Writer) -> None:
    for temperature, seq_len in ((0.0, 20), (np.nan, 20), (1.0, 1)):
        with pytest.raises(CalibrationError, match="cannot sample 5 texts"):
            sample(language_model(), temperature=temperature, seq_len=seq_len)


def test_the_output_that_continues_a_cache_input() -> None:
    assert present_name("past_key_values.3.key", {"present.3.key"}) == "present.3.key"
    assert present_name("past_key_values.3.key", {"present_key_values.3.key"}) == "present_key_values.3.key"
    with pytest.raises(CalibrationError, match=r"no output continues the cache input past_key_values\.3\.key"):
        present_name("past_key_values.3.key", {"present.2.key"})
