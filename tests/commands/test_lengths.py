"""Texts that are longer than a model can see: every command says so, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from catonnx.errors import CalibrationError, ModelError
from catonnx.runtime.lengths import blaming_length
from catonnx.runtime.sessions import RunError, open_session, run
from tests.small_models import catonnx_

TOO_LONG = ("--samples", "2", "--seq-len", "600")
COMMANDS = {
    "evaluate": ("evaluate", "MODEL", "--text", "TEXT"),
    "evaluate against": ("evaluate", "MODEL", "--text", "TEXT", "--against", "MODEL"),
    "compare": ("compare", "MODEL", "--text", "TEXT"),
    "inspect": ("inspect", "MODEL", "--calibration", "TEXT"),
    "optimize": ("optimize", "MODEL", "-o", "OUT", "--calibration", "TEXT"),
    "optimize on its own text": ("optimize", "MODEL", "-o", "OUT"),
}
PLACES = [(command, model) for command in COMMANDS for model in ("tiny_gpt2", "tiny_bert")]
PLACES.remove(("optimize on its own text", "tiny_bert"))  # it writes none


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 120, encoding="utf-8")
    return path


@pytest.mark.parametrize(("command", "name"), PLACES)
def test_every_command_says_how_long_texts_may_be(
    command: str, name: str, text: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(name)
    places = {"MODEL": str(model), "TEXT": str(text), "OUT": str(tmp_path / "out")}
    result = catonnx_(*(places.get(word, word) for word in COMMANDS[command]), *TOO_LONG)
    assert result.exit_code == CalibrationError.exit_code, result.output
    assert "and its configuration allows 512" in result.stderr
    assert str(model) in result.stderr
    assert "take a --seq-len of 512 or less" in result.stderr
    assert "Non-zero status code" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_longest_text_that_fits_is_taken(tiny_gpt2: Path, text: Path) -> None:
    result = catonnx_("compare", tiny_gpt2, "--text", text, "--samples", "1", "--seq-len", "512")
    assert result.exit_code == 0, result.output


def test_a_prompt_and_what_is_written_after_it_count_together(tiny_gpt2: Path, text: Path) -> None:
    short = ("--samples", "1", "--seq-len", "16")
    result = catonnx_("compare", tiny_gpt2, "--text", text, *short, "--prompt", "Fox", "--tokens", "600")
    assert result.exit_code == CalibrationError.exit_code
    assert "take shorter prompts or fewer tokens: 512 in all" in result.stderr


def _failure(model: Path, tokens: int) -> RunError:
    session = open_session(model / "model.onnx")
    ids = np.full((1, tokens), 1 << 40)  # no vocabulary is as large
    feeds = {node.name: ids if node.name == "input_ids" else np.zeros_like(ids) for node in session.get_inputs()}
    with pytest.raises(ModelError) as caught:
        run(session, ["last_hidden_state"], feeds)
    assert isinstance(caught.value, RunError)
    return caught.value


@pytest.mark.parametrize("said", [{"max_position_embeddings": 16}, {"max_position_embeddings": "many"}, {}])
def test_a_failure_on_a_text_that_may_be_so_long_stays_what_it_is(
    said: dict[str, object], tiny_bert: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(said), encoding="utf-8")
    failure = _failure(tiny_bert, 16)
    with pytest.raises(RunError) as caught, blaming_length(tmp_path):
        raise failure
    assert caught.value is failure


@pytest.mark.parametrize("told", ["CUDA out of memory", "Failed to allocate memory for requested buffer of size 8"])
def test_want_of_memory_is_not_the_length(told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 16}', encoding="utf-8")
    failure = RunError(told)
    failure.tokens = 17
    with pytest.raises(RunError) as caught, blaming_length(tmp_path):
        raise failure
    assert caught.value is failure


def test_an_unreadable_configuration_hides_no_failure(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    failure = RunError("a node failed")
    failure.tokens = 17
    with pytest.raises(RunError) as caught, blaming_length(tmp_path):
        raise failure
    assert caught.value is failure


def test_of_two_models_the_shorter_one_is_named(tmp_path: Path) -> None:
    for name, length in (("long", 16), ("short", 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"max_position_embeddings": length}), encoding="utf-8")
    failure = RunError("a node failed")
    failure.tokens = 17
    with (
        pytest.raises(CalibrationError, match=r"allows 8 \(.*short"),
        blaming_length(tmp_path / "long", tmp_path / "short"),
    ):
        raise failure


def test_a_failure_keeps_its_length_wherever_it_is_told_from(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 16}', encoding="utf-8")
    failure = _failure(tiny_bert, 17)
    for told in (failure, failure.within("a.onnx"), failure.moved("a", "b")):
        with (
            pytest.raises(CalibrationError, match="17 tokens, and its configuration allows 16"),
            blaming_length(tmp_path),
        ):
            raise told
