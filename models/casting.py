"""float32 exports in float16 or bfloat16, as exporters write models of these types.

Weights, values, casts and constants are narrowed, and so are inputs and outputs. In float32 stay what PyTorch's models
compute there whatever their type is: root mean squares of norms, and softmax.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

FLOAT = ir.DataType.FLOAT
_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def write_cast(source: Path, folder: Path, element: str) -> Path:
    """Write a narrower copy of a model, with everything that lies beside it.

    Args:
        source: An .onnx file without external data.
        folder: A new folder; `.npz` inputs are cast too, but stay float32 for bfloat16, which numpy cannot hold.
        element: `float16` or `bfloat16`.

    Returns:
        The copy.
    """
    folder.mkdir(parents=True)
    for file in source.parent.iterdir():
        if file.suffix == ".npz" and element == "float16":
            _cast_feeds(file, folder / file.name)
        elif file.suffix != ".onnx":
            shutil.copyfile(file, folder / file.name)
    model = ir.load(source)
    cast(model, _TYPES[element])
    ir.save(model, folder / source.name)
    return folder / source.name


def cast(model: ir.Model, dtype: ir.DataType) -> None:
    """Narrow every float32 of a model, in place and in bodies too, but for what exporters leave in float32."""
    graphs = [model.graph, *model.graph.subgraphs()]
    islands = [(graph, island) for graph in graphs for island in _islands(graph)]
    inside = {node for _, island in islands for node in island}
    for graph, island in islands:
        for node in island:
            _own_constants(graph, node)
    kept = {value for node in inside for value in (*node.inputs, *node.outputs) if value is not None}
    kept -= {value for value in kept if value.producer() not in inside and not value.is_initializer()}
    for graph in graphs:
        made = (value for node in graph for value in node.outputs)
        for value in {*graph.inputs, *graph.initializers.values(), *made} - kept:
            if value.dtype == FLOAT:
                value.dtype = dtype
            if value.const_value is not None and value.is_initializer():
                value.const_value = _narrowed(value.const_value, dtype)
        for node in graph:
            if node not in inside:
                _cast_attributes(node, dtype)
    for graph, island in islands:
        _wrap(graph, island, dtype)


def _islands(graph: ir.Graph) -> list[list[ir.Node]]:
    """Return the chains of nodes that exporters leave in float32; the first node reads what flows in."""
    return [*_root_mean_squares(graph), *([node] for node in graph if node.op_type == "Softmax")]


def _root_mean_squares(graph: ir.Graph) -> Iterator[list[ir.Node]]:
    """Yield the nodes from x ** 2 to the product or quotient that reads x again: ReduceMean, Add, Sqrt and so on."""
    for square in graph:
        if square.op_type != "Pow" or not any(use.node.op_type == "ReduceMean" for use in square.outputs[0].uses()):
            continue
        island = [square]
        while square.inputs[0] not in island[-1].inputs or island[-1] is square:
            (reader,) = {use.node for use in island[-1].outputs[0].uses()}
            island.append(reader)
        yield island


def _own_constants(graph: ir.Graph, node: ir.Node) -> None:
    """Give a node float32 constants that nobody else reads."""
    for index, value in enumerate(node.inputs):
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if value is None or tensor is None or tensor.dtype != FLOAT:
            continue
        own = ir.Value(
            name=f"{value.name}_of_{node.name}", type=ir.TensorType(FLOAT), shape=value.shape, const_value=tensor
        )
        graph.register_initializer(own)
        node.replace_input_with(index, own)


def _wrap(graph: ir.Graph, island: list[ir.Node], dtype: ir.DataType) -> None:
    """Cast what flows into a chain of nodes to float32, and what comes out of it back."""
    source, last = island[0].inputs[0], island[-1]
    assert source is not None
    wide = ir.node("Cast", [source], attributes={"to": FLOAT}, name=f"{island[0].name}/float32")
    wide.outputs[0].name, wide.outputs[0].type = f"{wide.name}_output", ir.TensorType(FLOAT)
    graph.insert_before(island[0], wide)
    for node in island:
        for index, value in enumerate(node.inputs):
            if value is source:
                node.replace_input_with(index, wide.outputs[0])
    result = last.outputs[0]
    back = ir.node("Cast", [result], attributes={"to": dtype}, name=f"{last.name}/narrow")
    narrow = back.outputs[0]
    narrow.name, narrow.type, narrow.shape = f"{back.name}_output", ir.TensorType(dtype), result.shape
    ir.convenience.replace_all_uses_with(result, narrow, replace_graph_outputs=True)
    back.replace_input_with(0, result)
    graph.insert_after(last, back)


def _cast_attributes(node: ir.Node, dtype: ir.DataType) -> None:
    for name, attribute in list(node.attributes.items()):
        if name in ("to", "dtype") and attribute.as_int() == FLOAT:
            node.attributes[name] = ir.AttrInt64(name, dtype)
        elif attribute.type == ir.AttributeType.TENSOR:
            node.attributes[name] = ir.AttrTensor(name, _narrowed(attribute.as_tensor(), dtype))


def _narrowed(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    """Return a tensor in another type, cut to its range: masks are often the most negative float32."""
    if tensor.dtype != FLOAT:
        return tensor
    kind = np.dtype(dtype.numpy()).type
    largest = float(np.nextafter(kind(np.inf), kind(0)))
    return ir.Tensor(tensor.numpy().clip(-largest, largest).astype(kind), dtype=dtype, name=tensor.name)


def _cast_feeds(source: Path, target: Path) -> None:
    with np.load(source) as archive:
        arrays = {key: archive[key] for key in archive.files}
    narrowed = {key: value.astype(np.float16) if value.dtype == np.float32 else value for key, value in arrays.items()}
    np.savez(target, allow_pickle=False, **narrowed)
