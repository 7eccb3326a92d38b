"""Values that are known before the model runs, whatever node spells them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""Types in which a product of numbers is that product, up to rounding."""

_TRANSPARENT = frozenset({"Identity", "Transpose", "Cast"})


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or a Constant node, None for anything else."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        return value.const_value if value.is_initializer() else None
    if producer.op_type != "Constant" or producer.domain:
        return None
    return ir.convenience.get_const_tensor(value)


def tensor_array(tensor: ir.TensorProtocol) -> np.ndarray:
    """Return the numbers of a tensor; those in a file are read, not mapped: mappings stay, and count as memory."""
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < 8 or not tensor.size:
        return tensor.numpy()
    dtype = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
    array = np.fromfile(tensor.path, dtype, count=tensor.size, offset=tensor.offset or 0)
    return array.reshape(tensor.shape.numpy())


def constant_source(value: ir.Value | None) -> Callable[[], np.ndarray] | None:
    """Return what reads a constant, seen through Identity, Transpose and Cast to a float type; None if it is none.

    The function holds on to the tensor, not to the graph: it still works when the nodes are gone.
    """
    steps: list[Callable[[np.ndarray], np.ndarray]] = []
    while value is not None and (producer := value.producer()) is not None and _is_transparent(producer):
        steps.append(_step(producer))
        value = producer.inputs[0]
    tensor = constant_tensor(value)
    if tensor is None:
        return None

    def read() -> np.ndarray:
        array = tensor_array(tensor)
        for step in reversed(steps):
            array = step(array)
        return array

    return read


def _is_transparent(node: ir.Node) -> bool:
    return node.op_type in _TRANSPARENT and not node.domain


def _step(node: ir.Node) -> Callable[[np.ndarray], np.ndarray]:
    if node.op_type == "Transpose":
        order = node.attributes.get("perm")
        axes = None if order is None else order.as_ints()
        return lambda array: array.transpose(axes)
    if node.op_type == "Cast":
        dtype = ir.DataType(node.attributes["to"].as_int()).numpy()
        return lambda array: array.astype(dtype)
    return lambda array: array


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """Return the numbers of a constant, as `constant_source` reads them; None if it is none."""
    source = constant_source(value)
    return None if source is None else source()


def constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of what `constant_array` would return, without reading the numbers."""
    turns: list[ir.Node] = []
    while value is not None and (producer := value.producer()) is not None and _is_transparent(producer):
        turns += [producer] if producer.op_type == "Transpose" else []
        value = producer.inputs[0]
    tensor = constant_tensor(value)
    if tensor is None:
        return None
    shape = tuple(tensor.shape.numpy())
    for turn in reversed(turns):
        order = turn.attributes.get("perm")
        shape = shape[::-1] if order is None else tuple(shape[axis] for axis in order.as_ints())
    return shape


def constant_type(value: ir.Value | None) -> ir.DataType:
    """Return the element type of a constant; a Constant node may know it in its attribute only."""
    assert value is not None
    if value.dtype is not None:
        return value.dtype
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast":
        return ir.DataType(producer.attributes["to"].as_int())
    if producer is not None and producer.op_type in _TRANSPARENT and producer.inputs[0] is not None:
        return constant_type(producer.inputs[0])
    tensor = constant_tensor(value)
    assert tensor is not None, f"{value.name} is no constant"
    return tensor.dtype
