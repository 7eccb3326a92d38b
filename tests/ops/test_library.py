"""The library is found, built and registered, or an error says what to do; models run without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

import catonnx
from catonnx.errors import ModelError, OutputError, RuntimeUnavailableError
from catonnx.ops import __main__ as command
from catonnx.ops import library, register
from catonnx.ops.build import build, find_compiler
from catonnx.ops.place import SOURCE, default_place, digest, sources
from tests.ops.running import node_model, opened, run, transformed

INPUTS = {
    "x": np.arange(16, dtype=np.float32).reshape(2, 8),
    "scale": np.full(1, 2, np.float32),
    "matrix": np.arange(16, dtype=np.float32).reshape(4, 4),
}
EXPECTED = transformed("SharedTransform", *INPUTS.values())


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder and no named library."""
    monkeypatch.delenv("CATONNX_OPS")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write(path: Path, *, body: bool = True, factor: float = 1.0, dtype: int = onnx.TensorProto.FLOAT) -> Path:
    """Write a model of one SharedTransform; the body of the function computes x times `factor` instead."""
    model = node_model("SharedTransform", INPUTS)
    if body:
        nodes = [
            helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", dtype, [1], [factor])),
            helper.make_node("Mul", ["X", "c"], ["Y"]),
        ]
        imports = [helper.make_opsetid("", 21)]
        function = helper.make_function("catonnx", "SharedTransform", ["X", "scale", "matrix"], ["Y"], nodes, imports)
        model.functions.append(function)
    onnx.save(model, path)
    return path


def tiny_source(folder: Path, text: str) -> Path:
    """Write sources of one file."""
    folder.mkdir()
    (folder / "one.cpp").write_text(text)
    return folder


def test_finding(ops_library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert library() == ops_library
    monkeypatch.setenv("CATONNX_OPS", str(tmp_path / "none.so"))
    with pytest.raises(RuntimeUnavailableError, match=r"CATONNX_OPS .*none\.so\).* build --output .*none\.so"):
        library()
    monkeypatch.delenv("CATONNX_OPS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert library() is None
    place = default_place()
    assert place is not None
    assert place.is_relative_to(tmp_path)
    place.parent.mkdir(parents=True)
    place.touch()
    assert library() == place


def test_a_library_belongs_to_its_sources(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(SOURCE, tmp_path / "source"))
    assert digest(copy) == digest()
    (copy / "onnxruntime" / "README.md").write_text("no part of the library")
    assert digest(copy) == digest()
    with (copy / "cpu.h").open("a") as header:
        header.write("\n")
    assert digest(copy) != digest()


def test_sources_of_each_kind_of_machine() -> None:
    names = {
        machine: {file.stem for file in sources(machine=machine)}
        for machine in ("x86_64", "aarch64", "arm64", "riscv64")
    }
    assert {"library", "transform_portable", "transform_avx2", "transform_avx512"} <= names["x86_64"]
    assert not [name for name in names["aarch64"] | names["riscv64"] if "avx" in name]
    assert {"transform_neon", "product_stream_neondot"} <= names["aarch64"] == names["arm64"]
    assert "library" in names["riscv64"]
    assert not [name for name in names["x86_64"] | names["riscv64"] if "neon" in name]
    flags = {file.stem: flags for file, flags in sources(machine="x86_64").items()}
    assert "-mavx512f" in flags["transform_avx512"]
    assert not [flag for flag in flags["transform_portable"] if flag.startswith("-m")]


def test_building_where_it_is_looked_for(nothing_built: Path) -> None:
    source = tiny_source(nothing_built / "source", 'extern "C" int answer() { return 42; }\n')
    place = build(source=source)
    assert place == default_place() == library()
    assert [file.name for file in place.parent.iterdir()] == [place.name]


def test_a_user_without_a_home(nothing_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert library() is None
    with pytest.raises(OutputError, match=r"no home.*give --output"):
        build(source=tiny_source(nothing_built / "source", "int x;"))


@pytest.mark.parametrize("command", ["'", " ", "no-such-compiler"])
def test_a_compiler_that_is_none(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", command)
    with pytest.raises(RuntimeUnavailableError, match="there is no compiler"):
        find_compiler()


def test_a_compiler_that_writes_nothing(nothing_built: Path) -> None:
    source = tiny_source(nothing_built / "source", "int x;")
    with pytest.raises(RuntimeUnavailableError, match="wrote nothing"):
        build(source=source, compiler="true")


def test_a_compiler_that_fails(nothing_built: Path) -> None:
    source = tiny_source(nothing_built / "source", "int broken( {\n")
    with pytest.raises(RuntimeUnavailableError, match=r"compiler failed with code 1[\s\S]*one\.cpp.*error"):
        build(nothing_built / "out.so", source=source)
    assert sorted(file.name for file in nothing_built.iterdir()) == ["source"]


def test_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "none-such -m64")
    with pytest.raises(RuntimeUnavailableError, match="no compiler none-such; install a C"):
        find_compiler()
    assert find_compiler(f"{sys.executable} -x") == [sys.executable, "-x"]
    monkeypatch.setenv("CXX", f"{sys.executable} -O9")
    assert find_compiler() == [sys.executable, "-O9"]
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailableError, match=r"no C\+\+ compiler: none of g\+\+, clang\+\+"):
        find_compiler()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written.*nowhere.*choose another --output"):
        build(tmp_path / "nowhere" / "out.so", source=tiny_source(tmp_path / "source", "int x;\n"))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tiny_source(tmp_path / "source", "int x;\n"), tmp_path / "out.so"
    monkeypatch.setattr(command, "build", lambda *given, **named: build(*given, source=source, **named))
    assert command.main(["build", "--output", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.stat().st_size > 1000
    assert command.main(["build", "--output", str(out), "--compiler", "none-such"]) == 8
    assert capsys.readouterr().err.startswith("error: there is no compiler none-such; install")
    assert command.main(["build", "--output", str(tmp_path / "nowhere" / "out.so")]) == 6
    with pytest.raises(SystemExit, match="2"):
        command.main([])


def test_registering_before_it_is_built(nothing_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"is not built; build it: python -m catonnx\.ops build"):
        register(ort.SessionOptions())
    monkeypatch.setenv("PATH", str(nothing_built))
    with pytest.raises(
        RuntimeUnavailableError, match=r"is not built; install a C.*; then: python -m catonnx\.ops build"
    ):
        register(ort.SessionOptions())


def test_registering_again_and_again() -> None:
    options = ort.SessionOptions()
    model = node_model("SharedTransform", INPUTS).SerializeToString()
    for _ in range(2):
        register(options)
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(run(session, x=INPUTS["x"])[0], EXPECTED, rtol=1e-6)
    other = opened(node_model("SharedTransform", INPUTS))
    np.testing.assert_allclose(run(other, x=INPUTS["x"])[0], run(session, x=INPUTS["x"])[0])


def test_an_instruction_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATONNX_ISA", "avx1024")
    with pytest.raises(
        RuntimeUnavailableError,
        match=r"^CATONNX_ISA is 'avx1024', and this processor has: portable.*; unset CATONNX_ISA",
    ):
        register(ort.SessionOptions())


def test_a_file_that_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.so").write_text("hello")
    monkeypatch.setenv("CATONNX_OPS", str(tmp_path / "text.so"))
    with pytest.raises(RuntimeUnavailableError, match=r"cannot be loaded.*text\.so.*build it again: python -m"):
        register(ort.SessionOptions())


def test_a_library_for_another_version_of_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library.cpp, with a header of the future and nothing behind it."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("library.cpp", "cpu.cpp", "cpu.h", "nodes.h", "ort.h", "transform.h"):
        shutil.copy(SOURCE / name, source)
    shutil.copytree(SOURCE / "onnxruntime", source / "onnxruntime")
    header = source / "onnxruntime" / "onnxruntime_c_api.h"
    text = header.read_text(encoding="utf-8")
    assert text.count("#define ORT_API_VERSION 23") == 1
    header.write_text(text.replace("#define ORT_API_VERSION 23", "#define ORT_API_VERSION 999"), encoding="utf-8")
    (source / "rest.cpp").write_text(
        '#include "nodes.h"\nnamespace catonnx {\nconst OrtApi* api;\nvoid check(OrtStatus*) {}\n'
        "OrtStatus* guarded(const std::function<void()>&) noexcept { return nullptr; }\n"
        "std::vector<const OrtCustomOp*> transform_ops() { return {}; }\n"
        "std::vector<const OrtCustomOp*> quantized_ops() { return {}; }\n}\n"
    )
    monkeypatch.setenv("CATONNX_OPS", str(build(tmp_path / "future.so", source=source, flags=["-O0"])))
    with pytest.raises(
        RuntimeUnavailableError,
        match=rf"^this library was built for version 999 of the API .* ONNX Runtime {ort.__version__} .*upgrade onnxr",
    ):
        register(ort.SessionOptions())


def test_a_session_with_the_library_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.onnx", factor=3)
    for given in (path, str(path), tmp_path):
        (y,) = run(catonnx.session(given), x=INPUTS["x"])
        np.testing.assert_allclose(y, EXPECTED, rtol=1e-6)
    monkeypatch.delenv("CATONNX_OPS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (y,) = run(catonnx.session(path), x=INPUTS["x"])
    np.testing.assert_array_equal(y, 3 * INPUTS["x"])


def test_a_session_takes_configuration(tmp_path: Path) -> None:
    key = "session.qdq_matmulnbits_accuracy_level"
    session = catonnx.session(write(tmp_path / "model.onnx"), config={key: "1"})
    assert session.get_session_options().get_session_config_entry(key) == "1"


def test_a_model_without_our_operators_does_not_ask_for_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.so").write_text("hello")
    monkeypatch.setenv("CATONNX_OPS", str(tmp_path / "text.so"))
    model = node_model("SharedTransform", INPUTS)
    model.graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["y"]))
    del model.opset_import[1:]
    onnx.save(model, tmp_path / "model.onnx")
    np.testing.assert_array_equal(run(catonnx.session(tmp_path), x=INPUTS["x"])[0], INPUTS["x"])


def test_a_library_that_cannot_be_used_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.onnx", factor=3)
    (tmp_path / "text.so").write_text("hello")
    monkeypatch.setenv("CATONNX_OPS", str(tmp_path / "text.so"))
    with pytest.warns(UserWarning, match="runs without the library .* cannot be loaded"):
        session = catonnx.session(path)
    np.testing.assert_array_equal(run(session, x=INPUTS["x"])[0], 3 * INPUTS["x"])


def test_types_without_a_kernel_run_as_functions(tmp_path: Path) -> None:
    model = onnx.load(write(tmp_path / "model.onnx", factor=3, dtype=onnx.TensorProto.DOUBLE))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.warns(UserWarning, match="runs without the library"):
        session = catonnx.session(tmp_path)
    x = INPUTS["x"].astype(np.float64)
    np.testing.assert_array_equal(run(session, x=x)[0], 3 * x)


def test_a_session_that_cannot_be_opened(tmp_path: Path, nothing_built: Path) -> None:
    with pytest.raises(ModelError, match="there is no such model"):
        catonnx.session(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"hello world")
    with pytest.raises(ModelError, match="not an ONNX model"):
        catonnx.session(tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match="does not know the operator"):
        catonnx.session(write(tmp_path / "model.onnx", body=False))


def test_importing_compiles_and_loads_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, catonnx.ops; catonnx.ops.library()\n"
        "print(sorted({'onnxruntime', 'onnx', 'numpy', 'subprocess'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
