"""The table of all tiny models: what it counts, and that what misses a bound shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import bench_dialects


def test_a_model_in_every_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dialects.json"
    assert bench_dialects.main(["--only", "tiny-bert", "--out", str(out)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [(row["group"], row["what"]) for row in rows] == [
        (element, what) for element in bench_dialects.BOUNDS for what in ("tiny-bert", "all 1 files")
    ]
    for row in rows[::2]:
        assert row["values"] == row["values"] | {"constants": 12, "rounded": 12, "heads": 0, "reasons": {}}
        assert row["values"]["same_types"]
    errors = [row["values"]["relative_l2"] for row in rows[::2]]
    assert errors[:3] == sorted(errors[:3])  # measured: 4e-7, 7e-4, 2e-3
    assert errors[0] < errors[3] < errors[2]  # float32 that became float16: 1e-3
    assert "12 of 12 linears (100.0%)" in capsys.readouterr().out


def test_what_misses_a_bound_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench_dialects.BOUNDS, "float16", 1e-6)
    arguments = ["--only", "tiny-bert", "--type", "float16", "--out", str(tmp_path / "dialects.json")]
    assert bench_dialects.main(arguments) == 1
    assert "MISSED" in capsys.readouterr().out


def test_linears_that_are_left_count() -> None:
    result = bench_dialects.Result(10, 8, 1, {"too odd": 1}, 1e-7, True)
    (row,) = bench_dialects.totals("float32", {"a": result})
    assert (row.met, row.values["wanted"], row.values["share"]) == (False, 9, 8 / 9)
    assert result.explained
    assert not bench_dialects.Result(10, 8, 1, {}, 1e-7, True).explained
