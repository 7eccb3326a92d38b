"""`tools.bench_start`: what it times really runs, and what does not is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tools import bench_start


def test_all_starts_are_timed(tmp_path: Path) -> None:
    file = tmp_path / "start.json"
    assert bench_start.main(["--rounds", "1", "--json", str(file)]) in (0, 1)
    rows = {row["what"]: row for row in json.loads(file.read_text())["rows"]}
    assert {name: row["bound"] for name, row in rows.items()} == {
        "python alone": "",
        "import catonnx": "<= 0.3 s",
        "catonnx --help": "<= 0.5 s",
        "catonnx optimize --help": "",
    }
    (taken,) = rows["catonnx --help"]["values"]["seconds"]
    assert rows["catonnx --help"]["met"] == (taken <= 0.5)
    assert not any(row["failed"] for row in rows.values())


def test_a_command_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    false = tmp_path / "python"
    false.write_text("#!/bin/sh\nexit 3\n")
    false.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(false))
    file = tmp_path / "start.json"
    assert bench_start.main(["--rounds", "1", "--json", str(file)]) == 1
    (row,) = json.loads(file.read_text())["rows"]
    assert row["failed"]
    assert "exit status 3" in row["measured"]
