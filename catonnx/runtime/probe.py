"""Whether ONNX Runtime and its execution providers work here: a tiny model says so, not a list of names."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from catonnx.errors import CatonnxError
from catonnx.runtime.sessions import open_session

_OPSET, _IR_VERSION = 17, 8
"""What every ONNX Runtime reads that catonnx works with."""


def why_not(provider: str) -> str:
    """Run one number through a provider and return why that fails; an empty text if it works.

    Args:
        provider: "cpu" or "cuda".
    """
    x, y = (ir.Value(name=name, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT)) for name in ("x", "y"))
    node = ir.node("Add", [x, x], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": _OPSET}, name="probe")
    with tempfile.TemporaryDirectory(prefix="catonnx-") as scratch:
        path = Path(scratch) / "probe.onnx"
        ir.save(ir.Model(graph, ir_version=_IR_VERSION), path)
        try:
            (result,) = open_session(path, provider=provider).run(None, {"x": np.array([2], np.float32)})
        except CatonnxError as error:
            return str(error)
    return "" if result.tolist() == [4] else f"2 + 2 is {result.tolist()} there"
