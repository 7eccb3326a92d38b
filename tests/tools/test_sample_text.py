"""Greedy text with a cache is what the model finds likeliest without one."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tools import sample_text

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPT_IDS = [1, 17, 5, 80]


def test_greedy_follows_the_whole_text(tiny_llama: Path) -> None:
    session = onnxruntime.InferenceSession(tiny_llama / "model.onnx")
    written = list(islice(sample_text.greedy(session, PROMPT_IDS), 6))
    cache = {
        item.name: sample_text.empty_cache(item)
        for item in session.get_inputs()
        if item.name.startswith("past_key_values.")
    }
    ids = np.array([[*PROMPT_IDS, *written]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.size)[None]}
    wanted = {item.name for item in session.get_inputs()}
    (logits,) = session.run(["logits"], {name: array for name, array in feeds.items() if name in wanted} | cache)
    assert logits[0, len(PROMPT_IDS) - 1 : -1].argmax(axis=-1).tolist() == written


def test_two_models_beside_each_other(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sample_text", str(tiny_llama), str(tiny_llama), "--tokens", "5"])
    sample_text.main()
    printed = capsys.readouterr().out
    assert printed.startswith("prompt: ")
    assert printed.count(str(tiny_llama)) == 2
    assert printed.count("tokens are the source's") == 1


@pytest.mark.parametrize(("arguments", "told"), [(["."], "no model.onnx"), ([], "FOLDER")])
def test_wrong_arguments_are_told(arguments: list[str], told: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "sample_text.py"), *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert told in run.stderr


def test_how_long_two_texts_agree() -> None:
    source = sample_text.Continuation((1, 2, 3, 4), "", 1.0)
    assert sample_text.compared(source, None) == ""
    other = sample_text.Continuation((1, 2, 9), "", 1.0)
    assert sample_text.compared(other, source) == "; the first 2 of 4 tokens are the source's"
