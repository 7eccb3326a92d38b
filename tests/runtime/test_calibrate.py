"""Moments are those of the activations that the model really has, and bad calibration is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from catonnx.errors import CalibrationError, ModelError
from catonnx.runtime.calibrate import MomentRequest, measure

Writer = Callable[..., Path]
DIAGONAL, FULL = MomentRequest("site", 4, 1), MomentRequest("site", 4, 4)


def samples(*rows: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"x": generator.normal(size=(count, 4)).astype(np.float32)} for count in rows]


def test_moments_of_two_sites_that_read_one_value(linear: Writer) -> None:
    feeds = samples(5, 7)
    steps: list[tuple[str, int, int]] = []
    moments = measure(
        linear(),
        {"narrow": DIAGONAL, "wide": FULL},
        feeds,
        progress=lambda step, done, total: steps.append((step, done, total)),
    )
    activation = np.maximum(np.concatenate([sample["x"] for sample in feeds]), 0).astype(np.float64)
    expected = activation.T @ activation / 12
    assert moments["narrow"].count == moments["wide"].count == 12
    np.testing.assert_allclose(moments["wide"].second_moment()[0], expected, rtol=1e-6)  # float32 products: 1e-7
    np.testing.assert_allclose(moments["narrow"].diagonal(), np.diag(expected), rtol=1e-6)
    np.testing.assert_allclose(moments["narrow"].maximum, activation.max(axis=0))
    assert steps == [("calibrate", 1, 2), ("calibrate", 2, 2)]


@pytest.mark.parametrize(("count", "wanted", "firsts"), [(4, 64, 4), (40, 64, 4), (5, 1, 1), (3, 0, 0)])
def test_first_rows_are_no_large_part_of_those_kept(linear: Writer, count: int, wanted: int, firsts: int) -> None:
    feeds = [{"x": np.abs(sample["x"])} for sample in samples(*[64] * count)]
    kept = measure(linear(), {"a": MomentRequest("site", 4, 1, wanted)}, feeds)["a"].rows
    assert wanted <= len(kept) <= 1.5 * wanted
    first_rows = {tuple(sample["x"][0]) for sample in feeds}
    assert sum(tuple(row) in first_rows for row in kept) == firsts


def test_nothing_is_asked(linear: Writer) -> None:
    assert measure(linear(), {}, []) == {}


def test_nothing_is_given(linear: Writer) -> None:
    with pytest.raises(CalibrationError, match="nothing to calibrate on"):
        measure(linear(), {"a": FULL}, [])


def test_one_row_is_no_statistic(linear: Writer) -> None:
    with pytest.raises(CalibrationError, match=r"saw 1 row\(s\).*site a"):
        measure(linear(), {"a": FULL}, samples(1))


def test_no_rows(linear: Writer) -> None:
    with pytest.raises(CalibrationError, match=r"saw 0 row\(s\).*site a"):
        measure(linear(), {"a": FULL}, samples(0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_overflows_is_named_by_site(linear: Writer, bad: float) -> None:
    path = linear("overflow", np.diag([1, 1, bad, 1]))
    with pytest.raises(
        CalibrationError, match=r"holds (nan|inf) at index \[0, \d\] .*site a, value y, calibration sample 1"
    ):
        measure(path, {"a": MomentRequest("y", 4, 1)}, samples(0, 3))


def test_feeds_that_do_not_fit(linear: Writer) -> None:
    with pytest.raises(CalibrationError, match=r"lacks x and adds z .*calibration sample 1"):
        measure(linear(), {"a": FULL}, [*samples(3), {"z": np.zeros((3, 4), np.float32)}])
    with pytest.raises(CalibrationError, match="float64 where the model takes float32"):
        measure(linear(), {"a": FULL}, [{"x": np.zeros((3, 4))}])
    with pytest.raises(CalibrationError, match=r"NaN or Inf .*sample 0, input x"):
        measure(linear(), {"a": FULL}, [{"x": np.full((3, 4), np.inf, np.float32)}])


def test_a_site_of_another_width(linear: Writer) -> None:
    with pytest.raises(CalibrationError, match=r"shape \[3, 4\] where 8 channels were planned .*site a"):
        measure(linear(), {"a": MomentRequest("site", 8, 1)}, samples(3))


def test_a_value_that_is_no_output(linear: Writer) -> None:
    with pytest.raises(ModelError, match="value hidden of site a is no graph output"):
        measure(linear(), {"a": MomentRequest("hidden", 4, 1)}, samples(3))
