"""Differences between two models are measured, and the first site that differs is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from catonnx.errors import CalibrationError, OutputError, VerificationError
from catonnx.runtime import running
from catonnx.runtime.compare import SitePair, compare_models, first_difference
from catonnx.runtime.divergence import log_softmax
from catonnx.runtime.feeds import InputSpec, token_feeds
from catonnx.runtime.recording import Recording
from catonnx.runtime.sessions import open_session, run

Writer = Callable[..., Path]
ROWS = np.array([[3, 4, 5, 6, 7], [3, 8, 9, 10, 11]])


def language_feeds(path: Path) -> list[dict[str, np.ndarray]]:
    return token_feeds(InputSpec.from_session(open_session(path)), ROWS)


def vectors(count: int = 3) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    return [{"x": generator.normal(size=(6, 4)).astype(np.float32)} for _ in range(count)]


def test_a_model_equals_itself(language_model: Writer) -> None:
    path = language_model()
    comparison = compare_models(path, path, language_feeds(path))
    assert list(comparison.outputs) == ["logits"]  # the cache is left out
    assert (comparison.relative_l2, comparison.kl_nats, comparison.top1_agreement) == (0.0, 0.0, 1.0)
    assert json.loads(json.dumps(comparison.to_json())) == {
        "outputs": {"logits": {"relative_l2": 0.0, "sqnr_db": None}},
        "finite": True,
        "kl_nats": 0.0,
        "top1_agreement": 1.0,
    }


def test_two_language_models(language_model: Writer) -> None:
    reference, candidate = language_model(), language_model("noisy", noise=0.3)
    feeds = language_feeds(reference)
    steps: list[tuple[str, int, int]] = []
    comparison = compare_models(reference, candidate, feeds, progress=lambda *step: steps.append(step))
    expected, actual = (
        np.concatenate([run(open_session(path), ["logits"], sample)[0] for sample in feeds])
        for path in (reference, candidate)
    )
    log_p, log_q = log_softmax(expected), log_softmax(actual)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    assert comparison.kl_nats == pytest.approx(kl.mean(), rel=1e-9)
    assert comparison.top1_agreement == (expected.argmax(-1) == actual.argmax(-1)).mean()
    relative = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert comparison.relative_l2 == pytest.approx(relative, rel=1e-6)
    assert steps == [("run the reference", 1, 2), ("run the reference", 2, 2), ("compare", 1, 2), ("compare", 2, 2)]


def test_models_without_logits(linear: Writer) -> None:
    comparison = compare_models(linear(), linear("scaled", 1.5 * np.eye(4)), vectors())
    assert comparison.kl_nats is None
    assert comparison.top1_agreement is None
    assert comparison.outputs["site"].relative_l2 == 0.0
    assert comparison.relative_l2 == comparison.outputs["y"].relative_l2 == pytest.approx(0.5)
    assert list(compare_models(linear(), linear(), vectors(), outputs=["y"]).outputs) == ["y"]


def test_two_sessions_are_never_open_at_once(linear: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[object] = []

    def counted(*arguments: object, **options: object) -> object:
        import weakref

        assert not any(reference() for reference in alive)  # type: ignore[operator]
        session = open_session(*arguments, **options)  # type: ignore[arg-type]
        alive.append(weakref.ref(session))
        return session

    monkeypatch.setattr(running, "open_session", counted)
    with Recording(linear(), vectors()) as recorded:
        for weight in (np.eye(4), 2 * np.eye(4)):
            recorded.compare(linear("candidate", weight))
    assert len(alive) == 3


def test_a_candidate_that_overflows(linear: Writer) -> None:
    comparison = compare_models(linear(), linear("broken", np.full((4, 4), np.nan)), vectors())
    assert not comparison.finite
    assert comparison.relative_l2 == np.inf
    assert comparison.to_json()["finite"] is False


def test_a_reference_that_overflows(linear: Writer) -> None:
    with pytest.raises(CalibrationError, match=r"reference model gives NaN or Inf .*y, sample 0"):
        compare_models(linear("broken", np.full((4, 4), np.nan)), linear(), vectors())


def test_bad_feeds(linear: Writer) -> None:
    with pytest.raises(CalibrationError, match="no inputs to compare on"):
        compare_models(linear(), linear(), [])
    with pytest.raises(CalibrationError, match=r"adds z .*sample 0"):
        compare_models(linear(), linear(), [{**vectors()[0], "z": np.zeros(1)}])


def test_candidates_of_another_form(linear: Writer, write_model: Writer) -> None:
    info: Callable[..., onnx.ValueInfoProto] = helper.make_tensor_value_info
    x = [info("x", TensorProto.FLOAT, ["rows", 4])]
    lacking = write_model("lacking", [helper.make_node("Relu", ["x"], ["y"])], x, [info("y", TensorProto.FLOAT, None)])
    with pytest.raises(VerificationError, match=r"lacks the output site .*lacking\.onnx"):
        compare_models(linear(), lacking, vectors())
    turned = write_model(
        "turned", [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])], x, [info("y", TensorProto.FLOAT, None)]
    )
    with pytest.raises(VerificationError, match=r"shape \[4, 6\] where the reference has \[6, 4\] .*y"):
        compare_models(linear(), turned, vectors(), outputs=["y"])


def test_no_place_for_the_reference(linear: Writer, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no temporary folder: No such file"):
        compare_models(linear(), linear(), vectors(), scratch=tmp_path / "absent")


def test_nothing_is_left_behind(linear: Writer, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    compare_models(linear(), linear(), vectors(), scratch=scratch)
    with pytest.raises(CalibrationError):
        compare_models(linear("broken", np.full((4, 4), np.nan)), linear(), vectors(), scratch=scratch)
    assert list(scratch.iterdir()) == []


def test_the_first_site_that_differs(linear: Writer) -> None:
    reference, candidate = linear(), linear("doubled", 2 * np.eye(4))
    same = SitePair("first", "site", "site")
    doubled = SitePair("second", "y", "y", expected=lambda value: 2 * value)
    wrong = SitePair("third", "y", "y")
    assert first_difference(reference, candidate, [same, doubled], vectors(), 1e-6) is None
    found = first_difference(reference, candidate, [same, wrong, doubled], vectors(), 1e-6)
    assert found is not None
    assert found.name == "third"
    assert found.relative_l2 == pytest.approx(1.0)


def test_a_site_that_is_nan_differs(linear: Writer) -> None:
    found = first_difference(
        linear(), linear("nan", np.full((4, 4), np.nan)), [SitePair("y", "y", "y")], vectors(), 1e-6
    )
    assert found is not None
    assert found.relative_l2 == np.inf
