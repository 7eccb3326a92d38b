"""Models of one of our nodes, and what the node should compute."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import scipy.linalg
from onnx import helper, numpy_helper

from catonnx.graph.operators import declare
from catonnx.ops import register

Arrays = Mapping[str, np.ndarray]


def node_model(
    op: str,
    inputs: Arrays,
    *,
    outputs: Sequence[str] = ("y",),
    fed: Sequence[str] = ("x",),
    attributes: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """Return a model of one node; what of its inputs is not `fed` is an initializer. Axes have names, not sizes."""
    node = helper.make_node(op, list(inputs), list(outputs), domain="catonnx", **(attributes or {}))
    values = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(inputs[name].dtype),
            [f"{name}{axis}" for axis in range(inputs[name].ndim)],
        )
        for name in fed
    ]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    tensors = [numpy_helper.from_array(value, name) for name, value in inputs.items() if name not in fed]
    graph = helper.make_graph([node], "node", values, results, tensors)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("catonnx", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def opened(model: onnx.ModelProto, isa: str | None = None, threads: int = 1) -> ort.InferenceSession:
    """Open a model with our library, which uses the instruction set `isa` from then on, or the best."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # sanitizers see what is allocated one by one
    options.log_severity_level = 4
    before = os.environ.pop("CATONNX_ISA", None)
    try:
        if isa is not None:
            os.environ["CATONNX_ISA"] = isa
        register(options)
    finally:
        os.environ.pop("CATONNX_ISA", None)
        if before is not None:
            os.environ["CATONNX_ISA"] = before
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, **feeds: np.ndarray) -> list[np.ndarray]:
    """Run a session without a line in the log if it fails."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    values: list[np.ndarray] = session.run(None, feeds, options)
    return values


def transformed(op: str, x: np.ndarray, scale: np.ndarray, *matrices: np.ndarray) -> np.ndarray:
    """Return in float64 what one of the three transforms makes of x."""
    exact = x.astype(np.float64) * scale.astype(np.float64)
    first, *others = (matrix.astype(np.float64) for matrix in matrices)
    if op == "BlockTransform":
        blocks, size, _ = first.shape
        runs = exact.reshape(*x.shape[:-1], blocks, 1, size)
        return (runs @ first).reshape(x.shape)
    second = others[0] if others else np.eye(1)
    if not others:
        first, second = second, first
    sizes = len(first), len(second)
    runs = exact.reshape(*x.shape[:-1], x.shape[-1] // (sizes[0] * sizes[1]), *sizes)
    return (first.T @ runs @ second).reshape(x.shape)


def tolerance(op: str, x: np.ndarray, scale: np.ndarray, *matrices: np.ndarray) -> np.ndarray:
    """Return how far a result may be from that: a few roundings of each term in float32, one of the result in its type.

    Measured over the cases of the tests: 0.3 of it in float32.
    """
    terms = transformed(op, np.abs(x), np.abs(scale), *map(np.abs, matrices))
    bound: np.ndarray = 1e-6 * terms + rounding(transformed(op, x, scale, *matrices), x.dtype)
    return bound


def rounding(wanted: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return how far numbers of a type may be from those wanted, which are float64; nothing for float32."""
    relative, absolute = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 0.0)}.get(dtype.name, (0.0, 0.0))
    bound: np.ndarray = relative * np.abs(wanted) + absolute
    return bound


def sylvester(size: int) -> np.ndarray:
    """Return Sylvester's Hadamard matrix, not normalized."""
    matrix: np.ndarray = scipy.linalg.hadamard(size).astype(np.float64)
    return matrix


def with_function(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return a model that holds the function of its operator."""
    opened_ = ir.from_proto(model)
    declare(opened_, name)
    return ir.to_proto(opened_)


def plain(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    """Run a model without the library."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values: list[np.ndarray] = session.run(None, feeds)
    return values
