"""Whether anything runs on a provider."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from catonnx.errors import CatonnxError
from catonnx.runtime.sessions import open_session
from tools.llama_shape import IR_VERSION, OPSET

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def smallest_session(provider: str) -> InferenceSession:
    """Open a model of one Identity node.

    Raises:
        CatonnxError: nothing runs on that provider; the error says why, and what to do.
    """
    value = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Identity", [value])
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "y", value.shape, value.type
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": OPSET}, name="probe")
    with tempfile.TemporaryDirectory(prefix="catonnx-probe-") as scratch:
        path = Path(scratch) / "probe.onnx"
        ir.save(ir.Model(graph, ir_version=IR_VERSION), path)
        return open_session(path, provider=provider)


def why_not(provider: str) -> str:
    """Return why nothing can run on a provider, or an empty text if it can."""
    try:
        smallest_session(provider)
    except CatonnxError as error:
        return str(error)
    return ""
