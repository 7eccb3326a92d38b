"""Ctrl-C, SIGTERM and SIGKILL in the middle of a run: no output, the source as it was, and the same command goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from catonnx.commands.terminal import guarded
from catonnx.errors import INTERRUPTED

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals of POSIX"),
    pytest.mark.usefixtures("all_cores"),  # what is interrupted may be in any of several threads
]

PATIENCE = 60.0


def _wait_for(pattern: str, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _default_interrupt() -> None:
    # A test run in the background of a shell inherits an ignored SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("number", "milestone", "stands"),
    [
        (signal.SIGINT, ".out.catonnx", False),
        (signal.SIGINT, ".out.catonnx/source/catonnx-*.onnx", False),
        (signal.SIGINT, ".out.catonnx/source/catonnx-*/0-0.npy", True),
        (signal.SIGTERM, ".out.catonnx/source/source.onnx", True),
        (signal.SIGKILL, ".out.catonnx/kept/moments-*.npz", False),
        (signal.SIGKILL, ".out.catonnx/result/model.onnx", True),
    ],
)
def test_a_run_that_is_cut_off(
    number: signal.Signals, milestone: str, stands: bool, tiny_llama: Path, tmp_path: Path
) -> None:
    source, place, scratch = tmp_path / "source", tmp_path / "place", tmp_path / "scratch"
    shutil.copytree(tiny_llama, source)
    place.mkdir()
    scratch.mkdir()
    if stands:
        (place / "out").mkdir()
        (place / "out" / "old.txt").write_text("old")
        (place / "out" / "catonnx.json").write_text("{}")
    before, standing = _contents(source), _contents(place)
    command = [sys.executable, "-m", "catonnx", "optimize", str(source), "-o", str(place / "out"), "--force"]
    extra = ["--save-plan", str(place / "plan.npz"), "--report-json", str(place / "report.json")]
    command += ["--samples", "64", "--seq-len", "64", *extra]
    environment = os.environ | {"TMPDIR": str(scratch)}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=_default_interrupt,
    )
    try:
        _wait_for(milestone, place, process)
        process.send_signal(number)
        shown, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == (-number if number == signal.SIGKILL else 130), said
    kept = (place / ".out.catonnx").exists()
    told = f": the same command goes on from {place / '.out.catonnx'}" if kept else ""
    assert said == ("" if number == signal.SIGKILL else f"error: interrupted{told}\n")
    assert not shown
    assert {name: text for name, text in _contents(place).items() if not name.startswith(".out.catonnx/")} == standing
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert sorted(path.name for path in place.iterdir()) == ["out", "plan.npz", "report.json"]
    assert json.loads((place / "report.json").read_text())["verification"]["fused"]
    # `.ses` is a session number that onnxruntime itself keeps in the folder for temporary files.
    assert {path.name for path in scratch.iterdir()} <= {".ses"}
    assert _contents(source) == before


INTERRUPTING = """
import importlib.abc, os, signal, sys

class Interrupter(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
sys.argv[1:] = ["--version"]
signal.signal(signal.SIGINT, signal.{handler})
from catonnx.cli import main
main()
"""


def _interrupted_at(module: str, handler: str) -> subprocess.CompletedProcess[str]:
    """Run `catonnx --version`, with Ctrl-C at the import of a module."""
    code = INTERRUPTING.format(module=module, handler=handler)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["catonnx.commands.app", "typer", "rich.console", "catonnx.recipe"])
def test_an_interruption_while_the_command_line_is_loaded_says_no_more_than_later_ones(module: str) -> None:
    ended = _interrupted_at(module, "default_int_handler")
    assert (ended.returncode, ended.stdout, ended.stderr) == (INTERRUPTED, "", "error: interrupted\n")


def test_an_ignored_signal_is_ignored_while_the_command_line_is_loaded() -> None:
    ended = _interrupted_at("typer", "SIG_IGN")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_interruption_after_the_command_cuts_no_clean_up_short() -> None:
    code = """
import atexit, os, signal, sys
atexit.register(print, "cleaned up")
atexit.register(os.kill, os.getpid(), signal.SIGINT)  # the last one to be registered runs first
sys.argv[1:] = ["--version"]
signal.signal(signal.SIGINT, signal.default_int_handler)
from catonnx.cli import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr, ended.stdout.splitlines()[-1]) == (0, "", "cleaned up")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put signal handlers back: after an interruption the command line leaves its own, for its process ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_same_key_again_does_not_cut_the_clean_up_short(number: signal.Signals) -> None:
    cleaned: list[bool] = []
    with pytest.raises(typer.Exit) as ended:
        _interrupted_twice(number, cleaned)
    assert cleaned
    assert ended.value.exit_code == 130


def _interrupted_twice(number: signal.Signals, cleaned: list[bool]) -> None:
    with guarded():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)
            cleaned.append(True)


@pytest.mark.usefixtures("handlers")
def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with guarded():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("handlers")
def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with guarded():
        signal.raise_signal(signal.SIGINT)
