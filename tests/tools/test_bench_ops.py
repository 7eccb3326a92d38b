"""`tools.bench_ops` on few rows: every operator is timed beside what it is compared with; its figures mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import bench_ops


def test_every_operator_is_timed(ops_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATONNX_OPS", str(ops_library))
    monkeypatch.setenv("CATONNX_ISA", "portable")
    file = tmp_path / "ops.json"
    assert bench_ops.main(["--rounds", "2", "--rows", "2", "1", "--json", str(file)]) in (0, 1)
    rows = json.loads(file.read_text())["rows"]
    groups = {row["group"] for row in rows}
    assert len(groups) == 20
    for group in groups:
        own = {row["what"]: row for row in rows if row["group"] == group}
        assert {"copy", "stock nodes", "portable"} <= own.keys()
        assert all(len(row["values"]["seconds"]) == 2 and min(row["values"]["seconds"]) > 0 for row in own.values())
    bounded = [row for row in rows if row["bound"]]
    assert {row["group"] for row in bounded} == {
        group for group in groups if "Hadamard" in group and "Quantize" not in group and "2 rows" in group
    }
    assert all(row["met"] == (row["values"]["ratio"] <= 1.5) for row in bounded)


def test_without_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("CATONNX_OPS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert bench_ops.main(["--json", str(tmp_path / "ops.json")]) == 8
    assert "python -m catonnx.ops build" in capsys.readouterr().err
