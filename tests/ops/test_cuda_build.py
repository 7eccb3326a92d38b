"""Building the library with CUDA kernels: what nvcc compiles, and what is said where it does not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from catonnx.errors import RuntimeUnavailableError
from catonnx.ops import __main__ as command
from catonnx.ops import library, register
from catonnx.ops.build import build
from catonnx.ops.nvcc import find_nvcc, require_nvcc
from catonnx.ops.place import ARCHITECTURES, cuda_sources, default_place, has_cuda, sources
from catonnx.runtime import library as runtime_library
from tests.ops.native import run as shell
from tests.ops.running import node_model, opened, run, sylvester
from tests.ops.test_library import write

KNOWN = " ".join(f"sm_{number}" for number in ARCHITECTURES)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit whose nvcc is a script that says what `says` holds and fails."""
    home = tmp_path / "toolkit"
    (home / "bin").mkdir(parents=True)
    monkeypatch.setenv("CUDA_HOME", str(home))
    return home / "bin" / "nvcc"


def script(nvcc: Path, codes: str, says: str) -> None:
    """Write an nvcc that knows `codes` and fails at everything else."""
    nvcc.write_text(f'#!/bin/sh\ncase "$1" in --list*) echo "{codes}";; *) echo "{says}" >&2; exit 1;; esac\n')
    nvcc.chmod(0o755)


@pytest.mark.skipif(find_nvcc() is None, reason="there is no nvcc")
def test_the_library_with_cuda_loads_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every architecture compiles; nothing of CUDA is linked with; the operators of the CPU are there as before."""
    path = build(tmp_path / "library.so", cuda=True, flags=["-O1"])
    assert has_cuda(path)
    needed = re.findall(r"NEEDED.*\[(\S+)\]", shell(["readelf", "-d", str(path)]))
    assert needed
    assert not [name for name in needed if name.startswith(("libcu", "libnv"))]
    exported = [line.split()[-1] for line in shell(["nm", "-D", "--defined-only", str(path)]).splitlines()]
    assert {name for name in exported if not name.startswith("_")} == {"RegisterCustomOps", "catonnx_instruction_set"}
    dump = shutil.which("cuobjdump") or str(Path(str(find_nvcc())).resolve().with_name("cuobjdump"))
    if Path(dump).exists():
        listed = shell([dump, "--list-elf", "--list-ptx", str(path)])
        assert set(re.findall(r"sm_(\d+)\.cubin", listed)) == set(ARCHITECTURES)
        assert set(re.findall(r"sm_(\d+)\.ptx", listed)) == {ARCHITECTURES[-1]}

    monkeypatch.setenv("CATONNX_OPS", str(path))
    x, matrix = np.arange(8, dtype=np.float32).reshape(1, 8), sylvester(4).astype(np.float32)
    session = opened(node_model("SharedTransform", {"x": x, "scale": np.ones(1, np.float32), "matrix": matrix}))
    np.testing.assert_array_equal(run(session, x=x)[0], (x.reshape(2, 4) @ matrix).reshape(1, 8))


def test_the_library_without_cuda_has_none(ops_library: Path) -> None:
    assert not has_cuda(ops_library)


def test_a_cpu_library_is_not_taken_for_one_with_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a place of its own; the one with CUDA is the one that is used."""
    monkeypatch.delenv("CATONNX_OPS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    places = default_place(), default_place(cuda=True)
    assert places[0] != places[1]
    for place in places:
        assert place is not None
        place.parent.mkdir(parents=True)
        place.touch()
        assert library() == place


def test_sources_of_cuda() -> None:
    names = {file.name for file in sources()}
    assert {file.name for file in sources(cuda=True)} - names == {"nodes_cuda.cpp"}
    assert {file.name for file in cuda_sources()} == {"product_cuda.cu", "transform_cuda.cu"}
    assert not [flags for flags in sources().values() if "-DCATONNX_CUDA" in flags]


def test_no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CXX", str(shutil.which("g++") or shutil.which("c++")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert find_nvcc() is None
    assert command.main(["build", "--cuda", "--output", str(tmp_path / "out.so")]) == 8
    said = capsys.readouterr().err
    assert "there is no CUDA compiler nvcc; install NVIDIA's CUDA toolkit" in said
    assert "--no-cuda" in said
    assert not (tmp_path / "out.so").exists()


def test_an_nvcc_that_is_too_old(fake: Path) -> None:
    script(fake, "sm_70 sm_80 sm_86", "")
    with pytest.raises(RuntimeUnavailableError, match=r"does not know sm_89, sm_90 .*nvcc\); install NVIDIA"):
        require_nvcc()


def test_an_nvcc_that_says_nothing(fake: Path) -> None:
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(RuntimeUnavailableError, match="does not say for which GPUs it compiles"):
        require_nvcc()


def test_a_host_compiler_that_nvcc_refuses(fake: Path, tmp_path: Path) -> None:
    script(fake, KNOWN, "error: #error -- unsupported GNU version! gcc versions later than 12 are not supported!")
    source = tmp_path / "source"
    source.mkdir()
    (source / "one.cu").write_text("int x;")
    with pytest.raises(RuntimeUnavailableError, match=r"nvcc refuses the C\+\+ compiler[\s\S]*--compiler g\+\+-13"):
        build(tmp_path / "out.so", source=source)


def test_kernels_that_do_not_compile(fake: Path, tmp_path: Path) -> None:
    script(fake, KNOWN, "one.cu(1): error: expected a declaration")
    source = tmp_path / "source"
    source.mkdir()
    (source / "one.cu").write_text("int x")
    with pytest.raises(RuntimeUnavailableError, match=r"compiler failed with code 1[\s\S]*expected a declaration"):
        build(tmp_path / "out.so", source=source)
    assert build(tmp_path / "out.so", source=source_of_cpu(tmp_path), cuda=False).is_file()


def source_of_cpu(folder: Path) -> Path:
    source = folder / "cpu"
    source.mkdir()
    (source / "one.cpp").write_text("int x;")
    return source


def test_a_cuda_session_takes_only_a_library_with_cuda(
    ops_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With kernels for the CPU alone each node would run there, between two copies: functions do better."""
    opened_with: list[dict[str, object]] = []
    monkeypatch.setattr(runtime_library, "open_session", lambda _, **named: opened_with.append(named))
    monkeypatch.setenv("CATONNX_OPS", str(ops_library))
    path = write(tmp_path / "model.onnx")
    with pytest.warns(UserWarning, match=r"no kernels for CUDA .*; build it anew: python -m catonnx\.ops build --cuda"):
        runtime_library.open_model(path, provider="cuda")
    assert opened_with.pop() == {"provider": "cuda"}
    monkeypatch.setattr(runtime_library, "has_cuda", lambda _: True)
    runtime_library.open_model(path, provider="cuda")
    assert opened_with == [{"provider": "cuda", "prepare": register}]
