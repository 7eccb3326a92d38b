"""`tools.bench_speed` on a tiny model: every model is made, timed and compared; its figures mean nothing there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import bench_speed


def test_all_models_are_made_and_timed(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--rounds 1 --decoded 2 --row-tokens 16 --samples 2 --seq-len 16".split()
    places = ["--model", str(tiny_llama), "--keep", str(tmp_path / "kept"), "--json", str(tmp_path / "speed.json")]
    (tmp_path / "kept").mkdir()
    assert bench_speed.main([*sizes, *places]) in (0, 1)
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [row["group"] for row in rows] == ["tokens/s"] * 4 + ["prefill"] * 4
    assert all(row["values"]["ratio"] > 0 for row in rows[4:])
    assert all(row["met"] == (row["values"]["ratio"] >= 2.5) for row in rows[4:])
    made = capsys.readouterr().err.count("making: ")
    assert made == 3
    assert bench_speed.main([*sizes, *places]) in (0, 1)
    assert "making: " not in capsys.readouterr().err
