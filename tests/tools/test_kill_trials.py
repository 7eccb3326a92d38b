"""The command that kills runs: it finds nothing where nothing is lost, and something where something is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.small_models import write_feeds, write_mlp
from tools import kill_trials


def _main(tmp_path: Path) -> int:
    source = tmp_path / "source"
    source.mkdir()
    write_mlp(source / "model.onnx")
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 64)
    arguments = ["--model", str(source), "--calibration", str(feeds), "--trials", "1"]
    return kill_trials.main([*arguments, "--work", str(tmp_path), "--out", str(tmp_path / "kills.json")])


def test_nothing_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(tmp_path) == 0
    (row,) = json.loads((tmp_path / "kills.json").read_text())["rows"]
    assert row["values"]["failures"] == []
    assert row["values"]["kills"] >= 1
    assert "0 of 1" in capsys.readouterr().out


def test_what_is_lost_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = iter(["right", "wrong", "wrong", "wrong", "wrong", "wrong"])
    monkeypatch.setattr(kill_trials, "_model", lambda _: [next(digests)])
    assert _main(tmp_path) == 1
    (row,) = json.loads((tmp_path / "kills.json").read_text())["rows"]
    assert "differs" in row["values"]["failures"][0] or "not whole" in row["values"]["failures"][0]
