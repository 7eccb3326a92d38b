"""Which kernel runs each product with a constant weight, and why: read off the graph that ONNX Runtime really runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from catonnx.graph.load import read
from catonnx.graph.operators import DOMAIN
from catonnx.runtime.fusion import PRODUCTS, TRANSPARENT, optimized

_INTEGER_PRODUCTS = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")


@dataclass(frozen=True)
class Kernel:
    """How one linear runs.

    Attributes:
        linear: Name of its node; of its weight, where ONNX Runtime has left the node no name.
        inputs: K.
        outputs: N.
        operator: What runs it.
        weight: Type of the numbers that are multiplied: `4 bits, groups of 32`, `int8`, `float32`.
        activation: The same of the activation.
        why: What decided that.
    """

    linear: str
    inputs: int
    outputs: int
    operator: str
    weight: str
    activation: str
    why: str


def kernels(
    model: str | Path, provider: str = "cpu", *, config: Mapping[str, str] | None = None, folder: Path | None = None
) -> tuple[Kernel, ...]:
    """Load a model with ONNX Runtime's default optimization and say what runs its linears, in graph order.

    Args:
        model: The model.
        provider: "cpu" or "cuda".
        config: Session configuration entries.
        folder: Where the optimized model is written for a moment (as large as the model); the system's temporary folder
            unless given.

    Raises:
        ModelError: the model does not load.
        RuntimeUnavailableError: ONNX Runtime or the provider is not there.
    """
    names, transforms = _ours(read(Path(model)))
    with optimized(model, provider, config=config, folder=folder) as (path, on_cuda):
        nodes = ir.traversal.RecursiveGraphIterator(read(path).graph)
        found = (kernel for node in nodes if (kernel := _kernel(node, on_cuda, names)) is not None)
        return tuple(kernel for kernel in found if kernel.linear not in transforms)


def _ours(model: ir.Model) -> tuple[dict[str, str], set[str]]:
    """Return weights of products of our own with the names of these, and the matrices of our transforms."""
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain == DOMAIN]
    names = {
        str(value.name): str(node.name)
        for node in nodes
        if node.op_type == "QuantizedMatMul" and (value := node.inputs[2]) is not None
    }
    matrices = (value for node in nodes if "Transform" in node.op_type for value in node.inputs[2:])
    return names, {str(value.name) for value in matrices if value is not None}


def _kernel(node: ir.Node, on_cuda: bool, ours: Mapping[str, str]) -> Kernel | None:
    if node.op_type == "MatMulNBits":
        return _of_blocks(node, on_cuda, ours)
    if node.domain == DOMAIN and node.op_type == "QuantizedMatMul":
        weight = f"4 bits, groups of {node.attributes.get_int('block_size')}"
        sizes = node.attributes.get_int("K", 0), node.attributes.get_int("N", 0)
        return Kernel(_name(node, 2), *sizes, f"{DOMAIN}.QuantizedMatMul", weight, "int8", "the library is in use")
    if node.op_type in _INTEGER_PRODUCTS and _shape(node.inputs[1]):
        return _made(node, "int8", "int8 codes", "written as a product of integers")
    return _float_product(node) if node.op_type in PRODUCTS else None


def _of_blocks(node: ir.Node, on_cuda: bool, ours: Mapping[str, str]) -> Kernel:
    bits, level = node.attributes.get_int("bits", 4), node.attributes.get_int("accuracy_level", 0)
    scale = node.inputs[2]
    dtype = "float32" if scale is None or scale.dtype is None else _type(scale.dtype)
    activation, why = dtype, f"accuracy level {level}"
    if on_cuda:
        why = "on CUDA the weight alone has few bits, whatever the accuracy level"
    elif level == 4:
        activation, why = "int8 per block", f"{why}: ONNX Runtime rounds activations itself"
    elif bits == 8:
        why += ": slow, 8 bits are fast at level 4 only"
    name = _name(node, 1)
    if name in ours:
        name, why = ours[name], "a function of catonnx stands in: the library is not in use"
    weight = f"{bits} bits, groups of {node.attributes.get_int('block_size')}"
    sizes = node.attributes.get_int("K", 0), node.attributes.get_int("N", 0)
    return Kernel(name, *sizes, "MatMulNBits", weight, activation, why)


def _made(node: ir.Node, weight: str, activation: str, why: str) -> Kernel:
    rows, columns = _shape(node.inputs[1]) or (0, 0)
    if node.attributes.get_int("transB", 0):
        rows, columns = columns, rows
    return Kernel(_name(node, 1), rows, columns, node.op_type, weight, activation, why)


def _float_product(node: ir.Node) -> Kernel | None:
    """Return the kernel of a product in float; None if its second operand follows from no constant."""
    value = node.inputs[1]
    if value is not None and value.is_initializer():
        dtype, why = value.dtype, "its weight is in float"
    else:
        dequantizer = _dequantizer(value)
        if dequantizer is None or dequantizer.inputs[1] is None:
            return None
        dtype, why = dequantizer.inputs[1].dtype, "not fused: its weight is dequantized at every run"
    if dtype is None or not _shape(value):
        return None
    return _made(node, _type(dtype), _type(dtype), why)


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear of a constant that a value is, or is but for its layout."""
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "DequantizeLinear":
            codes = producer.inputs[0]
            return producer if codes is not None and codes.is_initializer() else None
        value = producer.inputs[0] if producer.op_type in TRANSPARENT else None
    return None


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """Return the shape of a constant matrix, or of what is dequantized to it; nothing if it is none."""
    dequantizer = _dequantizer(value)
    value = value if dequantizer is None else dequantizer.inputs[0]
    shape = None if value is None else value.shape
    if shape is None or len(shape) != 2 or not all(isinstance(dim, int) for dim in shape):
        return ()
    return tuple(shape.numpy())


def _name(node: ir.Node, weight: int) -> str:
    value = node.inputs[weight]
    return node.name or (value.name if value is not None else None) or "?"


def _type(dtype: ir.DataType) -> str:
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())
