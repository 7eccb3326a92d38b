"""`tools.bench_products` on one small shape: all that it names is timed, against floors that are measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tools import bench_products, operator_timing
from tools.operator_cases import nbits_products, product, quantized_products
from tools.peaks import Peaks


def test_products_are_timed_beside_those_of_onnxruntime(
    ops_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CATONNX_OPS", str(ops_library))
    file = tmp_path / "products.json"
    arguments = ["--rounds", "2", "--rows", "1", "17", "--shape", "SmolLM2 q, o", "--cold-bytes", "1000000"]
    assert bench_products.main([*arguments, "--json", str(file)]) == 0
    data = json.loads(file.read_text())
    assert data["instruction"]
    for count in (1, 17):
        rows = {row["what"]: row for row in data["rows"] if row["group"] == f"SmolLM2 q, o: 576 x 576, {count} rows"}
        theirs = {"floor: read", "floor: multiply", "MatMul, fp32", "MatMulNBits, exact", "MatMulNBits, level 4"}
        assert theirs < rows.keys()
        ours = rows.keys() - theirs
        assert {name.partition(", ")[2] for name in ours} == {"groups of 32", "a scale per channel"}
        assert ("portable, groups of 32" in ours) == (count == 1)
        assert all("over_rounded" in rows[name]["values"] for name in ours)
        read, add = (rows[f"floor: {kind}"]["values"]["seconds"] for kind in ("read", "multiply"))
        peaks = [
            rows[f"floor: {kind}"]["values"]["per_second"] * np.median(each)
            for kind, each in (("read", read), ("multiply", add))
        ]  # what one run of each does, in billions
        exact = rows["MatMulNBits, exact"]["values"]
        assert exact["copies"] == (-(-1000000 // (576 * 18 * 20)) if count == 1 else 1)
        floors = [
            max(576 * 18 * 20 / 1e9 / peaks[0] * first, count * 576**2 / 1e9 / peaks[1] * second)
            for first, second in zip(read, add, strict=True)
        ]
        expected = np.median([own / floor for own, floor in zip(exact["seconds"], floors, strict=True)])
        assert exact["ratio"] == pytest.approx(expected)


def test_what_is_compared_computes_the_same(ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATONNX_OPS", str(ops_library))
    case = product(np.random.default_rng(0), 1, 96, 33, 32, np.float32)
    a = np.random.default_rng(1).integers(-127, 128, (5, 96)).astype(np.int8)
    nibbles = np.stack([case.inputs["b"] % 16, case.inputs["b"] // 16], axis=-1).reshape(33, 3, 32) - 8.0
    expected = 0.5 * a @ (nibbles * case.inputs["b_scale"][..., None]).reshape(33, 96).T
    ours: dict[str, np.ndarray] = {"a": a, "a_scale": np.full((5, 1), 0.5, np.float32)}
    for model, feeds in (
        (quantized_products(96, 33, 32, 2, np.float32), ours),
        (nbits_products(96, 33, 32, 2, 0), {"x": 0.5 * a.astype(np.float32)}),
    ):
        chosen = operator_timing.session_options(operator_timing.known_instruction_sets()[-1], 1)
        _, (first, second) = operator_timing.opened(model, feeds, chosen)
        np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-3)
        assert not np.array_equal(first, second)  # another weight


def test_floors_are_of_all_threads() -> None:
    peaks = Peaks(2, 1 << 20)
    assert peaks.buffer_bytes == 1 << 20
    assert peaks.multiply_adds == 2 * Peaks(1, 8).multiply_adds > 0
    peaks.read()


def test_without_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("CATONNX_OPS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert bench_products.main(["--json", str(tmp_path / "products.json")]) == 8
    assert "python -m catonnx.ops build" in capsys.readouterr().err
    assert not (tmp_path / "products.json").exists()
