"""Moments are those of the activations that the model really has, and bad calibration is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catonnx.errors import CalibrationError
from catonnx.graph.segments import cut
from catonnx.graph.sites import Selection, find_sites
from catonnx.runtime.calibrate import MomentRequest, measure
from tests.graph.builder import Net
from tests.runtime.streaming import Chain, feeds

FULL = {name: MomentRequest(4) for name in "abc"}


def test_moments_are_those_of_all_activations(tmp_path: Path) -> None:
    chain, samples = Chain(), feeds(5, 7)
    steps: list[tuple[str, int, int]] = []
    moments = measure(
        chain.stages,
        {"a": MomentRequest(1), "b": MomentRequest(4), "c": MomentRequest(2)},
        samples,
        scratch=tmp_path,
        progress=lambda *step: steps.append(step),
    )
    assert list(moments) == ["a", "b", "c"]
    rows = chain.expected(np.concatenate([sample["x"] for sample in samples]))
    for (name, total), activation in zip(moments.items(), rows, strict=True):
        expected = activation.T @ activation / 12
        found = total.second_moment()
        size = total.block
        assert (total.count, len(total.rows)) == (12, 0)
        for block, corner in enumerate(range(0, 4, size)):
            inside = slice(corner, corner + size)
            np.testing.assert_allclose(found[block], expected[inside, inside], rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(total.maximum, np.abs(activation).max(axis=0), rtol=1e-5)
    assert steps[-1] == ("calibrate", 4, 4)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "wanted", "firsts"), [(4, 64, 4), (40, 64, 4), (5, 1, 1), (3, 0, 0)])
def test_first_rows_are_no_large_part_of_those_kept(count: int, wanted: int, firsts: int, tmp_path: Path) -> None:
    samples = [{"x": np.abs(sample["x"])} for sample in feeds(*[64] * count)]
    requests = {name: MomentRequest(4, wanted) for name in "abc"}
    kept = measure(Chain().stages, requests, samples, scratch=tmp_path)["a"].rows
    assert wanted <= len(kept) <= 1.5 * wanted
    first_rows = {tuple(sample["x"][0]) for sample in samples}
    assert sum(tuple(row) in first_rows for row in kept) == firsts


def test_nothing_is_asked(tmp_path: Path) -> None:
    assert measure((), {}, feeds(3), scratch=tmp_path) == {}


def test_nothing_is_given(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="nothing to calibrate on"):
        measure(Chain().stages, FULL, [], scratch=tmp_path)


def test_one_row_is_no_statistic(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"saw 1 row\(s\).*site a"):
        measure(Chain().stages, FULL, feeds(1), scratch=tmp_path)


def test_what_no_row_reaches_is_taken_as_alike(tmp_path: Path) -> None:
    net = Net()
    site = net.op("Relu", net.input("x", ["rows", 4]), result="a")
    none = net.op("Slice", site, net.constant([0]), net.constant([0]), net.constant([0]), result="b")
    for value in (site, none):
        net.output(net.op("MatMul", value, net.normal(4, 4)))
    model = net.model()
    stages = cut(model, find_sites(model.graph, Selection(head=True)).sites)
    moments = measure(stages, {"a": MomentRequest(4, 8), "b": MomentRequest(2, 8)}, feeds(5, 7), scratch=tmp_path)
    assert (moments["a"].count, moments["a"].assumed) == (12, False)
    assert moments["b"].assumed
    np.testing.assert_array_equal(moments["b"].second_moment(), [np.eye(2)] * 2)
    assert moments["b"].rows.shape == (8, 4)


def test_a_model_that_overflows_is_named_by_site(tmp_path: Path) -> None:
    samples = feeds(3, 3)
    samples[1]["x"][1] = 3e38
    with pytest.raises(CalibrationError, match=r"holds NaN or Inf \(site b, .*calibration sample 1\)"):
        measure(Chain().stages, FULL, samples, scratch=tmp_path)
