"""The float32 twin of a bfloat16 model: the same graph with every bfloat16 in it float32.

ONNX Runtime has no bfloat16 products on the CPU, and numpy can neither feed nor take bfloat16. The twin has the same
weights, because float32 holds every bfloat16; what flows between its nodes is not rounded to 8 bits of precision. So it
shows what a model computes, not how far the kernels of bfloat16 are from that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from catonnx.graph.load import read
from catonnx.graph.save import write_model

_TYPE_ATTRIBUTES = frozenset(
    {"to", "dtype", "output_dtype", "output_datatype", "precision", "softmax_precision", "stash_type"}
)
"""Integer attributes of operators that name an element type."""


def needs_twin(path: Path) -> bool:
    """Whether a model holds a bfloat16 anywhere; a file that cannot be read does not."""
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError):
        return False  # whoever opens it will say why
    functions = (_elements_of_nodes(function.node) for function in model.functions)
    return any(onnx.TensorProto.BFLOAT16 in elements for elements in (_elements(model.graph), *functions))


def holds_bfloat16(model: ir.Model) -> bool:
    """Whether a value, a tensor or a Cast of a model is of that type, bodies included."""
    for graph in (model.graph, *model.graph.subgraphs()):
        values = (*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs))
        if any(value.type is not None and value.dtype == ir.DataType.BFLOAT16 for value in values):
            return True
        if any(node.attributes.get_int(name, 0) == ir.DataType.BFLOAT16 for node in graph for name in ("to", "dtype")):
            return True
    return False


def write_twin(path: Path, twin: Path) -> None:
    """Write the float32 twin of a model, reading and writing one tensor at a time.

    Args:
        path: The model.
        twin: A new file; its tensors go to a second one beside it.

    Raises:
        ModelError: if the model cannot be read.
        OutputError: if the twin cannot be written.
    """
    model = read(path)
    widen(model)
    write_model(model, twin)


def widen(model: ir.Model) -> None:
    """Make every bfloat16 in a model float32, in place, in bodies and functions too.

    Tensors are read when they are needed. What a clone of the model shares with it stays as it is.
    """
    functions = (part for function in model.functions.values() for part in (function.graph, *function.subgraphs()))
    for graph in (model.graph, *model.graph.subgraphs(), *functions):
        made = (value for node in graph for value in node.outputs)
        for value in {*graph.inputs, *graph.initializers.values(), *made}:
            if value.type is not None and value.dtype == ir.DataType.BFLOAT16:
                value.type = _widened_type(value.type)
            if value.const_value is not None and value.const_value.dtype == ir.DataType.BFLOAT16:
                value.const_value = _widened(value.const_value)
        for node in graph:
            _widen_attributes(node)


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        names_type = attribute.type == ir.AttributeType.INT and name in _TYPE_ATTRIBUTES
        if names_type and attribute.as_int() == ir.DataType.BFLOAT16:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.BFLOAT16:
            node.attributes[name] = ir.AttrTensor(name, _realized(attribute.as_tensor())())


def _widened_type(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        return type(kind)(_widened_type(kind.elem_type), denotation=kind.denotation)
    return ir.TensorType(ir.DataType.FLOAT, denotation=kind.denotation)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.LazyTensor(
        _realized(tensor), dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name, cache=False
    )


def _realized(tensor: ir.TensorProtocol) -> Callable[[], ir.TensorProtocol]:
    return lambda: ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _elements(graph: onnx.GraphProto) -> Iterator[int]:
    """Yield the element types from which all others in a graph follow."""
    yield from (value.type.tensor_type.elem_type for value in graph.input)
    yield from (tensor.data_type for tensor in graph.initializer)
    yield from _elements_of_nodes(graph.node)


def _elements_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[int]:
    for node in nodes:
        for attribute in node.attribute:
            kind = attribute.type
            if kind == onnx.AttributeProto.INT and attribute.name in _TYPE_ATTRIBUTES:
                yield attribute.i
            elif kind == onnx.AttributeProto.TENSOR:
                yield attribute.t.data_type
            elif kind == onnx.AttributeProto.GRAPH:
                yield from _elements(attribute.g)
            elif kind == onnx.AttributeProto.GRAPHS:
                for body in attribute.graphs:
                    yield from _elements(body)
