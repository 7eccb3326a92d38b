"""The measures agree with their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from catonnx.runtime import divergence
from catonnx.runtime.divergence import (
    LogitDifference,
    ValueDifference,
    json_number,
    log_softmax,
    mean_cosine,
    negative_log_likelihood,
)


def test_relative_l2_over_several_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_ELEMENTS", 7)  # several pieces
    generator = np.random.default_rng(0)
    reference, noise = generator.normal(size=(4, 5, 6)), 0.01 * generator.normal(size=(4, 5, 6))
    difference = ValueDifference()
    for part in range(4):
        difference.add(reference[part], reference[part] + noise[part])
    expected = np.linalg.norm(noise) / np.linalg.norm(reference)
    assert difference.relative_l2 == pytest.approx(expected, rel=1e-12)
    assert difference.sqnr_db == pytest.approx(-20 * math.log10(expected), rel=1e-12)
    assert difference.finite


def test_relative_l2_at_its_ends() -> None:
    equal, broken, from_zero, nothing = (ValueDifference() for _ in range(4))
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    equal.add(ones, ones)
    broken.add(ones, ones * np.nan)
    from_zero.add(zeros, ones)
    nothing.add(zeros, zeros)
    assert (equal.relative_l2, equal.sqnr_db) == (0.0, math.inf)
    assert (broken.finite, broken.relative_l2, broken.sqnr_db) == (False, math.inf, -math.inf)
    assert (from_zero.relative_l2, nothing.relative_l2) == (math.inf, 0.0)


def test_integer_outputs_are_compared_by_value() -> None:
    difference = ValueDifference()
    difference.add(np.array([3, 4]), np.array([3, 9]))
    assert difference.relative_l2 == 1.0


def test_kl_and_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_POSITIONS", 3)
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    reference = np.log(np.tile(p, (2, 4, 1))) + 5  # logits are free up to a constant
    candidate = np.log(np.tile(p, (2, 4, 1)))
    candidate[0, 0] = np.log(q)
    difference = LogitDifference()
    difference.add(reference, candidate)
    assert difference.positions == 8
    assert difference.kl_nats == pytest.approx((p * np.log(p / q)).sum() / 8, rel=1e-12)
    assert difference.top1_agreement == 7 / 8


def test_surprise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_POSITIONS", 2)
    probabilities = np.array([[0.5, 0.5], [0.9, 0.1], [0.25, 0.75]])
    surprise = negative_log_likelihood(np.log(probabilities), np.array([0, 1, 1]))
    assert surprise == pytest.approx(-math.log(0.5 * 0.1 * 0.75), rel=1e-12)
    np.testing.assert_allclose(np.exp(log_softmax(np.array([[1e4, 1e4]], np.float32))), 0.5)


def test_mean_cosine() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    candidate = np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    assert mean_cosine(reference, candidate) == pytest.approx(1 / 3)


def test_json_numbers() -> None:
    assert [json_number(value) for value in (1.5, math.inf, math.nan, None)] == [1.5, None, None, None]
