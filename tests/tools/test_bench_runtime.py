"""`tools.bench_runtime` on a tiny model: every model is made, timed and compared; its figures mean nothing there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import bench_runtime


def test_all_models_are_made_and_timed(
    tiny_llama: Path,
    ops_library: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CATONNX_OPS", str(ops_library))
    sizes = "--rounds 1 --decoded 2 --row-tokens 16 --samples 2 --seq-len 16 --batch 1 2".split()
    places = ["--model", str(tiny_llama), "--keep", str(tmp_path / "kept"), "--json", str(tmp_path / "runtime.json")]
    only = ["--only", "op w4a8, *", "--only", "integer w4a8, none"]
    (tmp_path / "kept").mkdir()
    assert bench_runtime.main([*sizes, *places, *only]) in (0, 1)
    rows = json.loads((tmp_path / "runtime.json").read_text())["rows"]
    names = [row["what"] for row in rows if row["group"] == "tokens/s"]
    ours = ["op w4a8, none", "op w4a8, scale + hadamard", "op w4a8, cat 128", "integer w4a8, none"]
    assert sorted(names) == sorted(["fp32", "onnxruntime int8", *bench_runtime.PEERS, *ours])
    assert all(row["values"].keys() == {"prefill", "decode 1", "decode 2"} for row in rows[: len(names)])
    ratios = [row for row in rows if "ratio" in row["values"]]
    assert [row["group"] for row in ratios] == ["decode 1", "prefill", "prefill"]
    assert all(row["met"] == (row["values"]["ratio"] >= float(row["bound"].split()[1])) for row in ratios)
    costs = [row for row in rows if row["group"] == "cost"]
    assert [row["what"] for row in costs] == [
        "decode 1, scale + hadamard in op w4a8",
        "prefill, scale + hadamard in op w4a8",
    ]
    assert capsys.readouterr().err.count("making: ") == 7
    assert bench_runtime.main([*sizes, *places, *only]) in (0, 1)
    assert "making: " not in capsys.readouterr().err


def test_without_the_library_functions_are_not_timed_in_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CATONNX_OPS", raising=False)
    assert bench_runtime.main([]) == 2
    assert "python -m catonnx.ops build" in capsys.readouterr().err


def test_without_more_words_only_what_has_bounds_is_made() -> None:
    chosen = bench_runtime._wanted(bench_runtime._parser().parse_args([]))
    assert sorted(chosen) == sorted(bench_runtime.BOUNDED)
    assert len(bench_runtime._wanted(bench_runtime._parser().parse_args(["--all"]))) == 27
