"""What every refusal has in common: one line of what, where and what to do, nothing left, the source as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.small_models import catonnx_, snapshot


def assert_refused(
    capfd: pytest.CaptureFixture[str],
    code: int,
    said: str,
    model: Path,
    out: Path,
    *options: object,
    keeps: bool = False,
) -> str:
    """Run `optimize` and check that it refuses.

    Args:
        capfd: What libraries write past Python's streams counts too.
        code: The exit code wanted.
        said: A part of the error line; the rest must name a place and, behind a semicolon, what to do.
        model: MODEL; everything in its folder must stay as it is.
        out: OUT; nothing may appear beside it.
        options: More of the command line.
        keeps: What was done must be kept beside OUT, and the line say so; then it is removed.

    Returns:
        The line.
    """
    folder = model if model.is_dir() else model.parent
    before = snapshot(folder), _below(out), sorted(folder.rglob("*"))
    capfd.readouterr()
    result = catonnx_("optimize", model, "-o", out, *options)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert said in result.stderr
    assert ".catonnx" not in result.stderr
    if keeps:
        assert result.stderr.endswith("; then the same command goes on\n")
        shutil.rmtree(out.with_name(f".{out.name}.catonnx"))
    assert not result.stdout
    assert capfd.readouterr() == ("", "")
    assert (snapshot(folder), _below(out), sorted(folder.rglob("*"))) == before
    return result.stderr


def _below(out: Path) -> list[Path]:
    parent = next((folder for folder in out.absolute().parents if folder.is_dir()), out)
    return sorted(parent.iterdir())
