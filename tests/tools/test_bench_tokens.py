"""The benchmark of greedy tokens, on a small model; and what it says of tokens that differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import catonnx
from tools import bench_tokens
from tools.greedy import plain, until_end


def test_a_tiny_model_is_measured(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Optimum loads torch, whose warnings are no business of this process; tests/hub runs it in one of its own.
    monkeypatch.setattr(bench_tokens, "WAYS", {"again": plain, "broken": _broken})
    catonnx.optimize(tiny_llama, tmp_path / "out", catonnx.Recipe(samples=2, seq_len=16), genai=True)
    arguments = ["--optimized", str(tmp_path / "out"), "--tokens", "6", "--json", str(tmp_path / "tokens.json")]
    assert bench_tokens.main(arguments) == 1
    told = json.loads((tmp_path / "tokens.json").read_text())
    rows = {row["group"]: row for row in told["rows"]}
    assert told["recipe"]["samples"] == 2
    assert len(told["rows"]) == len(bench_tokens.PROMPTS) + 1
    assert rows["again"]["met"]
    assert rows["broken"]["failed"]
    assert "ModuleNotFoundError: nothing there" in capsys.readouterr().out


def test_the_first_token_that_differs_is_found() -> None:
    wanted = [[1, 2, 3]] * len(bench_tokens.PROMPTS)
    rows = bench_tokens.compared("other", wanted, [[1, 2, 3], [1, 5, 3], [1, 2], [], [1, 2, 3, 4]])
    assert [row.met for row in rows] == [True, False, False, False, False]
    assert [row.measured.split(" tokens")[0] for row in rows] == ["3 of 3", "1 of 3", "2 of 3", "0 of 3", "3 of 4"]


def test_texts_end_at_the_end() -> None:
    assert until_end([5, 6, 2, 7], frozenset({2, 9})) == [5, 6]
    assert until_end([5, 6], frozenset({2})) == [5, 6]


def _broken(folder: Path, prompts: object, tokens: int) -> list[list[int]]:
    raise ModuleNotFoundError("nothing there")
