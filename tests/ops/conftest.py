"""The library of our operators, in use."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime as ort
import pytest

from catonnx.errors import RuntimeUnavailableError
from catonnx.ops import register
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


@pytest.fixture(autouse=True)
def _in_use(ops_library: Path, all_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATONNX_OPS", str(ops_library))
    monkeypatch.delenv("CATONNX_ISA", raising=False)


@pytest.fixture(params=(*ISAS, *EMULATED))
def native(request: pytest.FixtureRequest) -> Kernels:
    """The kernels without ONNX Runtime, on every instruction set of this machine and of its emulators in turn."""
    return kernels(request.param)
