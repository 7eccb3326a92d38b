"""All kernels once more, in a library that notes every wrong access and what the language leaves undefined."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from catonnx.ops.build import build, find_compiler
from tests.ops.compiler import keeping

HERE = Path(__file__).resolve().parent
TESTS = ("test_transforms.py", "test_quantized.py", "test_refusals.py")


def runtime(name: str) -> Path | None:
    """Return a library that the compiler links with, if it comes with it."""
    command = [*find_compiler(), f"-print-file-name={name}"]
    found = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return found if found.is_absolute() else None


@pytest.mark.skipif(platform.system() != "Linux", reason="puts the sanitizer in front of Python as Linux does")
@pytest.mark.skipif("CATONNX_TESTED_OPS" in os.environ, reason="another library is under test")
def test_under_sanitizers(ops_library: Path, tmp_path: Path) -> None:
    # Python was not linked with the sanitizer, so it has to come first; and the standard library, whose exceptions it
    # watches, right behind it.
    before = [runtime("libasan.so"), runtime("libstdc++.so")]
    if None in before:
        pytest.skip(f"{find_compiler()[0]} came without libasan.so")
    compiler = shlex.join(keeping(find_compiler()))
    sanitized = build(
        tmp_path / "sanitized.so", compiler=compiler, sanitize="address,undefined", flags=["-Werror"], cuda=False
    )
    surroundings = os.environ | {
        "LD_PRELOAD": " ".join(map(str, before)),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's and ONNX Runtime's, all of them
        "CATONNX_TESTED_OPS": str(sanitized),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path / "hypothesis"),
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-s",  # or what the sanitizer says is lost with the process
        "-p",
        "no:cacheprovider",
        *(str(HERE / name) for name in TESTS),
    ]
    done = subprocess.run(
        command, cwd=HERE.parent.parent, env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
