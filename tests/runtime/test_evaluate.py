"""Perplexity, divergence, speed and size of small models against direct computations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from catonnx.errors import CalibrationError, ModelError
from catonnx.runtime.divergence import log_softmax
from catonnx.runtime.evaluate import MismatchError, disk_bytes, evaluate, reference
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.sessions import open_session, run

Writer = Callable[..., Path]
ROWS = np.array([[3, 4, 5, 6, 7, 8, 9, 10], [3, 11, 0, 1, 2, 4, 6, 8]])


def direct_perplexity(path: Path) -> float:
    session = open_session(path)
    logits = run(session, ["logits"], InputSpec.from_session(session).first_feeds(ROWS))[0]
    chosen = np.take_along_axis(log_softmax(logits)[:, :-1], ROWS[:, 1:, None], axis=-1)
    return math.exp(-float(chosen.mean()))


def test_a_language_model_against_another(language_model: Writer) -> None:
    reference, candidate = language_model(), language_model("noisy", noise=0.3)
    steps: list[tuple[str, int, int]] = []
    result = evaluate(candidate, ROWS, against=reference, progress=lambda *step: steps.append(step))
    assert result.perplexity == pytest.approx(direct_perplexity(candidate), rel=1e-6)
    assert result.against_perplexity == pytest.approx(direct_perplexity(reference), rel=1e-6)
    assert result.kl_nats is not None
    assert result.kl_nats > 0.01
    assert result.top1_agreement is not None
    assert 0 < result.top1_agreement < 1
    assert result.cosine is None
    assert result.prefill_tokens_per_second is not None
    assert result.decode_tokens_per_second is not None
    assert result.disk_bytes == candidate.stat().st_size
    assert steps == [("evaluate", done, 4) for done in (1, 2, 3, 4)]
    assert json.loads(json.dumps(result.to_json()))["rows"] == 2


def test_a_reference_that_is_kept_is_the_reference(language_model: Writer) -> None:
    source, candidate = language_model(), language_model("noisy", noise=0.3)
    steps: list[tuple[str, int, int]] = []
    with reference(source, ROWS) as kept:
        results = [
            evaluate(path, ROWS, against=kept, speed=False, progress=lambda *step: steps.append(step))
            for path in (candidate, source)
        ]
    assert results[0] == evaluate(candidate, ROWS, against=source, speed=False)
    assert results[1].kl_nats == pytest.approx(0, abs=1e-12)
    assert results[1].top1_agreement == 1
    assert steps == [("evaluate", 1, 2), ("evaluate", 2, 2)] * 2


def test_rows_may_have_any_length(language_model: Writer) -> None:
    path, lengths = language_model(), (3, 8)
    rows = [row[:length] for row, length in zip(ROWS, lengths, strict=True)]
    alone = [evaluate(path, [row], speed=False).perplexity or 0 for row in rows]
    mean = sum(math.log(value) * (length - 1) for value, length in zip(alone, lengths, strict=True)) / 9
    assert evaluate(path, rows, speed=False).perplexity == pytest.approx(math.exp(mean), rel=1e-6)
    with pytest.raises(CalibrationError, match="token rows of shape"):
        evaluate(path, [ROWS[0], ROWS[0, :1]])


def test_a_language_model_alone(language_model: Writer) -> None:
    result = evaluate(language_model(), ROWS, speed=False)
    assert result.perplexity is not None
    assert (result.against_perplexity, result.kl_nats, result.top1_agreement) == (None, None, None)
    assert (result.prefill_tokens_per_second, result.decode_tokens_per_second) == (None, None)


def test_without_a_cache_only_a_causal_model_has_a_perplexity(language_model: Writer) -> None:
    causal = evaluate(language_model(cache=False), ROWS)
    assert causal.perplexity == pytest.approx(direct_perplexity(language_model()), rel=1e-6)
    assert causal.prefill_tokens_per_second is not None
    assert causal.decode_tokens_per_second is None
    masked = evaluate(
        language_model("masked", cache=False, bidirectional=True), ROWS, against=language_model(cache=False)
    )
    assert masked.perplexity is None
    assert masked.kl_nats is not None


def test_encoders_are_compared_by_cosine(encoder: Writer) -> None:
    result = evaluate(encoder("noisy", 0.1), ROWS, against=encoder())
    assert result.perplexity is None
    assert result.kl_nats is None
    assert result.cosine is not None
    assert 0.9 < result.cosine["last_hidden_state"] < 1
    same = evaluate(encoder(), ROWS, against=encoder()).cosine
    assert same is not None
    assert same["last_hidden_state"] == pytest.approx(1.0)


def test_a_model_that_overflows_has_no_number_in_json(language_model: Writer) -> None:
    result = evaluate(language_model(noise=np.inf), ROWS, speed=False)
    assert result.perplexity is not None
    assert math.isnan(result.perplexity)
    assert result.to_json()["perplexity"] is None


def test_models_that_do_not_match(language_model: Writer, encoder: Writer) -> None:
    with pytest.raises(MismatchError, match="models give different outputs: logits and last_hidden_state"):
        evaluate(language_model(), ROWS, against=encoder())


@pytest.mark.parametrize("rows", [np.zeros((0, 8), np.int64), np.zeros((2, 1), np.int64), np.zeros(8, np.int64)])
def test_nothing_to_evaluate_on(language_model: Writer, rows: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="cannot evaluate on token rows of shape"):
        evaluate(language_model(), rows)


def test_a_model_that_text_does_not_feed(linear: Writer) -> None:
    with pytest.raises(CalibrationError, match="no input_ids"):
        evaluate(linear(), ROWS)


def test_disk_bytes_count_external_data(linear: Writer, tmp_path: Path) -> None:
    path = linear(external=True)
    data = tmp_path / "linear.data"
    (tmp_path / "other.data").write_bytes(b"not of this model")
    assert disk_bytes(path) == path.stat().st_size + data.stat().st_size
    data.unlink()
    with pytest.raises(ModelError, match=r"external data is missing: .*linear\.data"):
        disk_bytes(path)
    path.write_bytes(b"text")
    with pytest.raises(ModelError, match="cannot be read"):
        disk_bytes(path)
