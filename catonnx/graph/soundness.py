"""What a file that claims to be an ONNX model may not hold; checked before anything is built from it.

A model is data from anywhere. Nothing here allocates by what the model claims, or follows it deeper than it was parsed:
protobuf itself refuses messages of more than 100 levels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir
from google.protobuf.message import Message
from onnx import TensorProto

from catonnx.errors import ModelError

MOST_NODES = 1_000_000
"""Nodes of a model, with every call of a function replaced by the function: a language model of 70 B has 10 000."""

_LARGEST = 1 << 62
"""Bytes of a tensor: more overflow somewhere in the libraries below us."""

_Key: TypeAlias = tuple[str, str, str]

_FIELDS: dict[str, tuple[int, ...]] = {
    "float_data": (TensorProto.FLOAT, TensorProto.COMPLEX64),
    "double_data": (TensorProto.DOUBLE, TensorProto.COMPLEX128),
    "int64_data": (TensorProto.INT64,),
    "uint64_data": (TensorProto.UINT32, TensorProto.UINT64),
    "string_data": (TensorProto.STRING,),
}
"""Where a tensor without raw data keeps its numbers, by type; all others in int32_data."""


def check_sound(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model with names that are no text, tensors that do not hold what they claim or functions without end.

    Args:
        model: As it was parsed; external data is not looked at.
        path: Its file.

    Raises:
        ModelError: naming the text, the tensor or the function.
    """
    _check_text(model, path)
    graphs = [model.graph, *(function for function in model.functions)]
    for tensor in _tensors(graphs):
        _check_tensor(tensor, path)
    _check_functions(model, path)


def _check_text(message: Message, path: Path) -> None:
    """Refuse strings that are not UTF-8: protobuf gives them as bytes, and takes them back from nobody."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for part in (value,) if isinstance(value, (str, bytes, Message)) else value:
            if isinstance(part, bytes):
                raise ModelError(f"{field.full_name} {part!r} is not UTF-8", where=path, hint="export the model again")
            if isinstance(part, Message):
                _check_text(part, path)


def _tensors(graphs: Sequence[onnx.GraphProto | onnx.FunctionProto]) -> Iterator[TensorProto]:
    """Yield every tensor in graphs, functions and all bodies below them."""
    for graph in graphs:
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t
        yield from _tensors(list(_bodies(graph)))


def _bodies(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _check_tensor(tensor: TensorProto, path: Path) -> None:
    """Refuse a tensor of no known type, of no possible shape, or with more or fewer numbers than its shape has."""
    where, hint = f"{path}, tensor {tensor.name!r}", "export it again"
    if tensor.data_type not in _TYPES:
        raise ModelError(f"a tensor has the unknown type {tensor.data_type}", where=where, hint=hint)
    shape, count = list(tensor.dims), math.prod(tensor.dims)
    dtype = ir.DataType(tensor.data_type)
    if any(dim < 0 for dim in shape) or count * 16 > _LARGEST:
        raise ModelError(f"a tensor has the impossible shape {shape}", where=where, hint=hint)
    if tensor.data_location == TensorProto.EXTERNAL:
        if dtype == ir.DataType.STRING:
            raise ModelError("a tensor of texts lies in another file", where=where, hint=hint)
        return
    if dtype != ir.DataType.STRING and (tensor.HasField("raw_data") or not count):
        held, wanted, unit = len(tensor.raw_data), -(-count * dtype.bitwidth // 8), "bytes"
    else:
        field = next((name for name, types in _FIELDS.items() if tensor.data_type in types), "int32_data")
        packed = 8 // dtype.bitwidth if field == "int32_data" and dtype.bitwidth < 8 else 1
        held, unit = len(getattr(tensor, field)), "numbers"
        wanted = -(-count // packed) * (2 if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128) else 1)
    if held != wanted:
        raise ModelError(
            f"a tensor of shape {shape} and type {dtype.name} needs {wanted} {unit} and holds {held}",
            where=where,
            hint=hint,
        )


_TYPES = {int(dtype) for dtype in ir.DataType} - {TensorProto.UNDEFINED}


def _check_functions(model: onnx.ModelProto, path: Path) -> None:
    """Refuse functions that call themselves, are too many nodes together, or crash ONNX Runtime."""
    functions = {(item.domain, item.name, item.overload): item for item in model.functions}
    calls = {key: _calls(function) for key, function in functions.items()}
    sizes: dict[_Key, int] = {}
    for key in functions:
        _measure(key, calls, sizes, path)
    total = sum(number * sizes.get(key, 1) for key, number in _calls(model.graph).items())
    if total > MOST_NODES:
        raise ModelError(
            f"the model is {total:.2g} nodes with its functions written out, and {MOST_NODES} is the most",
            where=path,
            hint="export it again without functions",
        )
    for key, function in functions.items():
        for domain, operator, _ in calls[key]:
            # ONNX Runtime 1.31 ends with a segmentation fault on its own operators of ONNX's domain there.
            if domain in ("", "ai.onnx") and not _is_known(operator):
                raise ModelError(
                    f"the function {function.name!r} uses the operator {operator!r}, which ONNX does not have",
                    where=path,
                    hint="export it again without functions",
                )


def _is_known(operator: str) -> bool:
    return onnx.defs.has(operator)


def _calls(graph: onnx.GraphProto | onnx.FunctionProto) -> Counter[_Key]:
    """Count the nodes in a graph and all bodies in it, by domain, operator and overload."""
    counted = Counter((node.domain, node.op_type, node.overload) for node in graph.node)
    for body in _bodies(graph):
        counted += _calls(body)
    return counted


def _measure(start: _Key, calls: dict[_Key, Counter[_Key]], sizes: dict[_Key, int], path: Path) -> None:
    """Find out how many nodes a function is with all that it calls; a stack of our own, since calls may be deep."""
    active: list[_Key] = [start]
    while active:
        key = active[-1]
        missing = next((called for called in calls[key] if called in calls and called not in sizes), None)
        if missing is None:
            sizes[key] = sum(number * sizes.get(called, 1) for called, number in calls[key].items())
            active.pop()
        elif missing in active:
            raise ModelError(f"the function {missing[1]!r} calls itself", where=path, hint="export it again")
        else:
            active.append(missing)
