"""The library of our operators, in use."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime as ort
import pytest

import catonnx
from catonnx.errors import RuntimeUnavailableError
from catonnx.ops import register
from catonnx.recipe import Recipe
from models.casting import write_cast
from tests.ops.native import EMULATED, ISAS, Kernels, kernels


@pytest.fixture(scope="session")
def isas(ops_library: Path) -> tuple[str, ...]:
    """Every instruction set that this processor and the library have, the best one last; the library is in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CATONNX_OPS", str(ops_library))
        patch.setenv("CATONNX_ISA", "none such")
        with pytest.raises(RuntimeUnavailableError, match="CATONNX_ISA is 'none such'") as refused:
            register(ort.SessionOptions())
    listed = re.search(r"has: ([a-z0-9, ]+)", refused.value.what)
    assert listed is not None
    return tuple(listed[1].split(", "))


@pytest.fixture(scope="session")
def half_llama(tiny_llama: Path, ops_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float16 Llama in form op, its channels mixed by blocks; beside it the source, in `source`."""
    folder = tmp_path_factory.mktemp("half")
    write_cast(tiny_llama / "model.onnx", folder / "source", "float16")
    recipe = Recipe(
        samples=2, seq_len=16, form="op", transform="cat", block_size=16, scheme="w4a8", activation_range="symmetric"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CATONNX_OPS", str(ops_library))
        catonnx.optimize(folder / "source", folder / "out", recipe)
    return folder / "out" / "model.onnx"


@pytest.fixture(autouse=True)
def _in_use(ops_library: Path, all_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATONNX_OPS", str(ops_library))
    monkeypatch.delenv("CATONNX_ISA", raising=False)


@pytest.fixture(params=(*ISAS, *EMULATED))
def native(request: pytest.FixtureRequest) -> Kernels:
    """The kernels without ONNX Runtime, on every instruction set of this machine and of its emulators in turn."""
    return kernels(request.param)
