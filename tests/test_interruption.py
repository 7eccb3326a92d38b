"""Ctrl-C and SIGTERM in the middle of a run: exit code 130, nothing left behind, the source as it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

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
    ("number", "milestone"),
    [
        (signal.SIGINT, ".out.*.partial"),
        (signal.SIGINT, ".out.*.partial/.work/calibrate.onnx"),
        (signal.SIGINT, ".out.*.partial/.work/transformed.onnx"),
        (signal.SIGTERM, ".out.*.partial/.work/source.onnx"),
    ],
)
@pytest.mark.parametrize("stands", [False, True])
def test_an_interruption_leaves_nothing(
    number: signal.Signals, milestone: str, stands: bool, tiny_llama: Path, tmp_path: Path
) -> None:
    source, place, scratch = tmp_path / "source", tmp_path / "place", tmp_path / "scratch"
    shutil.copytree(tiny_llama, source)
    place.mkdir()
    scratch.mkdir()
    if stands:
        (place / "out").mkdir()
        (place / "out" / "old.txt").write_text("old")
    before, standing = _contents(source), _contents(place)
    command = [sys.executable, "-m", "catonnx", "optimize", str(source), "-o", str(place / "out"), "--force"]
    extra = ["--save-plan", str(place / "plan.npz"), "--report-json", str(place / "report.json")]
    process = subprocess.Popen(
        [*command, "--samples", "64", "--seq-len", "64", *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(scratch)},
        preexec_fn=_default_interrupt,
    )
    try:
        _wait_for(milestone, place, process)
        process.send_signal(number)
        if number == signal.SIGINT:
            process.send_signal(number)  # as from an impatient user, or from `make` that passes it on
        shown, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert said == "error: interrupted\n"
    assert not shown
    assert _contents(place) == standing
    assert [path.name for path in place.iterdir()] == (["out"] if stands else [])
    assert not any(scratch.iterdir())
    assert _contents(source) == before
