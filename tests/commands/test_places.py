"""Where commands write: JSON and tables on stdout, files at places that nothing else needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import Result

from tests.small_models import QUICK, catonnx_


@pytest.mark.parametrize(
    "arguments", [("inspect", "MODEL"), ("inspect", "MODEL", "--runtime"), ("optimize", "MODEL", "-o", "OUT", *QUICK)]
)
def test_json_to_stdout_stands_alone(arguments: tuple[str, ...], tiny_llama: Path, tmp_path: Path) -> None:
    places = {"MODEL": tiny_llama, "OUT": tmp_path / "out"}
    result = catonnx_(*(places.get(argument, argument) for argument in arguments), "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)
    assert not (Path.cwd() / "-").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "OUT", "--json", "OUT/model.onnx"),
        ("report", "OUT", "--html", "OUT/model.onnx"),
        ("report", "OUT", "--json", "OUT/model.onnx_data"),
        ("evaluate", "OUT", "--text", "TEXT", "--json", "OUT/config.json"),
        ("evaluate", "OUT", "--text", "TEXT", "--json", "TEXT"),
        ("compare", "MODEL", "OUT", "--text", "TEXT", "--json", "OUT/tokenizer.json"),
    ],
)
def test_nothing_that_is_read_is_replaced(
    arguments: tuple[str, ...], optimized: tuple[Path, Result], tiny_llama: Path, text: Path
) -> None:
    places = {"MODEL": tiny_llama, "OUT": optimized[0] / "out", "TEXT": text}

    def spelled(argument: str) -> str:
        first, slash, rest = argument.partition("/")
        return f"{places.get(first, first)}{slash}{rest}"

    before = {path: path.read_bytes() for path in (text, *places["OUT"].iterdir())}
    result = catonnx_(*map(spelled, arguments))
    assert result.exit_code == 6, result.output
    assert "would replace a file of what is read" in result.stderr
    assert {path: path.read_bytes() for path in (text, *places["OUT"].iterdir())} == before


@pytest.mark.parametrize("option", ["--save-plan", "--report-html"])
def test_only_json_goes_to_stdout(option: str, tiny_llama: Path, tmp_path: Path) -> None:
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", option, "-")
    assert (result.exit_code, (tmp_path / "out").exists()) == (6, False)
    assert "only JSON can go to stdout" in result.stderr


def test_two_files_have_two_places(tiny_llama: Path, tmp_path: Path) -> None:
    same = tmp_path / "one"
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--json", same, "--save-plan", same)
    assert (result.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert "two files" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_stdout_that_takes_nothing_is_an_error_of_output(tiny_llama: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "catonnx", "inspect", str(tiny_llama)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert done.stderr.startswith("error: nothing can be written to stdout")


def test_a_reader_that_has_seen_enough_is_no_error(tiny_llama: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "catonnx", "inspect", str(tiny_llama)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
