"""The compiler that keeps objects makes the same ones, and keeps none that failed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from catonnx.ops.build import find_compiler
from tests import workers
from tests.ops.compiler import keeping


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to compile, in a run that has compiled nothing yet."""
    (tmp_path / "kept").mkdir()
    monkeypatch.setenv(workers.FOLDER, str(tmp_path / "kept"))
    (tmp_path / "one.cpp").write_text("int f(int x) { return x VALUE; }\n")
    return tmp_path / "one.cpp"


def compiled(command: list[str], source: Path, name: str, *flags: str) -> tuple[int, bytes]:
    target = source.with_name(name)
    call = [*command, *flags, "-c", str(source), "-o", str(target)]
    done = subprocess.run(call, cwd=source.parent, capture_output=True, check=False)
    return done.returncode, target.read_bytes() if target.exists() else b""


def test_each_command_has_its_object(source: Path) -> None:
    plain = find_compiler()
    for flag in ("-DVALUE=+1", "-DVALUE=+2"):
        expected = compiled(plain, source, "a.o", flag)
        assert expected[0] == 0
        assert compiled(keeping(plain), source, "b.o", flag) == expected
        assert compiled(keeping(plain), source, "c.o", flag) == expected
    assert len(list((source.parent / "kept").iterdir())) == 2
    source.write_text("broken(")
    assert compiled(keeping(plain), source, "d.o", "-DVALUE=+1")[0] == 0  # not compiled again


def test_a_failure_is_not_kept(source: Path) -> None:
    assert compiled(keeping(find_compiler()), source, "a.o", "-DVALUE=?") == (1, b"")
    assert list((source.parent / "kept").iterdir()) == []


def test_what_makes_no_object_is_run_as_it_is(source: Path) -> None:
    shown = subprocess.run([*keeping(find_compiler()), "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == subprocess.run([*find_compiler(), "--version"], capture_output=True, text=True).stdout
    probe = [*keeping(find_compiler()), "-x", "c++", "-c", "-", "-o", str(source.with_name("a.o"))]
    for text, code in (("int x;", 0), ("broken(", 1)):
        assert subprocess.run(probe, input=text, capture_output=True, text=True, check=False).returncode == code
