"""The benchmark of large models, on a small one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import bench_scale


def test_a_tiny_model_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scale.json"
    arguments = ["--size", "tiny", "--samples", "2", "--seq-len", "16", "--rounding", "nearest"]
    assert bench_scale.main([*arguments, "--work", str(tmp_path), "--out", str(out)]) == 0
    rows = {row["what"]: row for row in json.loads(out.read_text())["rows"]}
    assert 0 < rows["peak memory"]["values"]["peak_bytes"] <= rows["peak memory"]["values"]["bound_bytes"]
    assert rows["transformed against source, relative L2"]["values"]["fused"] == 14
    assert rows["most of the disk"]["values"]["disk_bytes"] > 0
    assert "peak memory" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["scale.json"]
