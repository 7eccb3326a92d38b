"""A real onnxruntime-gpu with stub CUDA libraries, and our kernels emulated: where nodes run, and what they compute.

Skipped unless CATONNX_ONNXRUNTIME_GPU names a folder that onnxruntime-gpu was installed into:

    pip install --no-deps --target FOLDER onnxruntime-gpu
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import catonnx
from catonnx import Recipe
from catonnx.ops.build import build, find_compiler
from catonnx.ops.place import SOURCE
from tests.ops.emulated import EMULATION
from tests.ops.native import run
from tests.ops.stubs import write_stubs

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = os.environ.get("CATONNX_ONNXRUNTIME_GPU")

pytestmark = pytest.mark.skipif(FOLDER is None, reason="CATONNX_ONNXRUNTIME_GPU names no onnxruntime-gpu")

OPERATORS = {
    *("SharedTransform", "BlockTransform", "KroneckerTransform", "DynamicQuantize", "QuantizedMatMul"),
    *("SharedTransformQuantize", "BlockTransformQuantize", "KroneckerTransformQuantize"),
}


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, ops_library: Path, tiny_llama: Path, half_llama: Path
) -> dict[str, Any]:
    """What tests/ops/placing.py says of every model."""
    find_compiler()
    folder = tmp_path_factory.mktemp("stubs")
    narrowed = folder / "narrowed"
    catonnx.optimize(tiny_llama, narrowed, Recipe(samples=2, seq_len=16, form="nbits", dtype="float16"))
    write_stubs(Path(str(FOLDER)) / "onnxruntime" / "capi", folder)
    library = build(
        folder / "library.so", source=emulated_source(folder / "source"), cuda=False, flags=emulated_flags()
    )
    source = half_llama.parent.parent / "source" / "model.onnx"
    models = [str(path) for path in (source, half_llama, tiny_llama / "model.onnx", narrowed / "model.onnx")]
    printed = run(
        [sys.executable, "-m", "tests.ops.placing", str(library), str(ops_library), *models],
        LD_LIBRARY_PATH=str(folder),
        PYTHONPATH=os.pathsep.join([str(FOLDER), str(ROOT)]),
    )
    said: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return said


def emulated_flags() -> list[str]:
    return ["-DCATONNX_CUDA", f"-I{EMULATION}", "-Wno-unknown-pragmas", "-O1"]


def emulated_source(folder: Path) -> Path:
    """Link our sources into a folder, those of CUDA under names by which they are plain C++."""
    folder.mkdir()
    for file in (*SOURCE.iterdir(), EMULATION / "emulation.cpp"):
        plain = file.suffix == ".cu" or (file.stem.endswith("_cuda") and file.suffix == ".cpp")
        (folder / (f"{file.stem}_{file.suffix[1:]}_emulated.cpp" if plain else file.name)).symlink_to(file)
    return folder


def test_the_session_is_one_of_cuda(found: dict[str, Any]) -> None:
    assert found["version"].startswith("1.")
    assert "CUDAExecutionProvider" in found["providers"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_nodes_run_on_cuda(found: dict[str, Any], dtype: str) -> None:
    placed = found["placement"][dtype]
    ours = {name: where for name, where in placed.items() if name in OPERATORS}
    assert ours == {key: ["CUDAExecutionProvider"] for key in OPERATORS}
    assert not [name for name in placed if name.startswith("Memcpy")]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_cuda_graph_can_capture_our_operators(found: dict[str, Any], dtype: str) -> None:
    """While one runs nothing is copied to the host, and CUDA is asked for no memory; results are right."""
    said = found["captured"][dtype]
    assert {key: value for key, value in said.items() if key.startswith("alloc")} == {
        "allocations, graph 1": 0,
        "allocations, graph 0": 0,
    }
    assert max(said["error, graph 1"], said["error, graph 0"]) <= 1


def test_a_float16_language_model_runs_on_cuda(found: dict[str, Any]) -> None:
    """All of it, but for arithmetic on shapes; and our operators themselves, not their functions."""
    source, model, *_ = found["models"]
    assert model["strangers"] == []
    assert model["copies"] == source["copies"]
    ours = {name: where for name, where in model["operators"].items() if name in OPERATORS}
    assert {"BlockTransform", "SharedTransformQuantize", "QuantizedMatMul"} <= ours.keys()
    assert set(map(tuple, ours.values())) == {("CUDAExecutionProvider",)}
    assert "MatMulNBits" not in model["operators"]


def test_a_float32_model_that_became_float16_runs_there_as_before(found: dict[str, Any]) -> None:
    """Norms are one node each, Casts are few, and nothing is copied that the source does not copy."""
    *_, source, model = found["models"]
    assert model["strangers"] == []
    assert model["copies"] == source["copies"]
    assert model["operators"]["SimplifiedLayerNormalization"] == ["CUDAExecutionProvider"]
    assert model["operators"].keys() - source["operators"].keys() == {"MatMulNBits"}


def test_every_operator_computes_what_it_should(found: dict[str, Any]) -> None:
    """Constants and shapes, streams and scratch on ONNX Runtime's side; largest error over what is allowed."""
    assert len(found["errors"]) >= 30
    assert not {case: error for case, error in found["errors"].items() if not error <= 1}


@pytest.mark.parametrize(("dtype", "named"), [("float32", "float"), ("float16", "float16")])
def test_shapes_and_types_are_known_before_anything_runs(found: dict[str, Any], dtype: str, named: str) -> None:
    axes = ["x0", "x1"]
    for op in OPERATORS:
        plain = [[f"tensor({named})", [*axes, 33 if op == "QuantizedMatMul" else "x2"]]]
        rounded = [["tensor(int8)", [*axes, "x2"]], ["tensor(float)", [*axes, 1]]]
        assert found["outputs"][f"{op} {dtype}"] == (rounded if op.endswith("Quantize") else plain), op


def test_a_hadamard_matrix_is_recognized(found: dict[str, Any]) -> None:
    """A Walsh-Hadamard transform adds in another order than a product: the two differ in the last bits."""
    assert found["recognized"] == {"constant": True, "fed": False}


def test_what_does_not_fit_is_refused(found: dict[str, Any]) -> None:
    assert "X has 10 channels, which is no multiple of 4" in found["refused"]


def test_a_library_without_cuda_is_left_out_with_a_warning(found: dict[str, Any]) -> None:
    assert "python -m catonnx.ops build --cuda" in found["cpu_only"]["warning"]
    assert found["cpu_only"]["nodes"] == ["Mul"]


def test_a_library_without_cuda_that_is_registered_runs_on_the_cpu(found: dict[str, Any]) -> None:
    """So that a CUDA session still works, if slowly: between copies."""
    placed = found["registered"]
    assert placed["SharedTransform"] == ["CPUExecutionProvider"]
    assert {"MemcpyToHost", "MemcpyFromHost"} <= placed.keys()


def test_a_library_with_cuda_is_used(found: dict[str, Any]) -> None:
    assert found["with_cuda"] == {"warning": "", "nodes": ["SharedTransform"]}
