"""Tensors that a model keeps in other files: which they are, and whether these hold what the model claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from catonnx.errors import ModelError
from catonnx.graph.save import is_inside


def external_locations(model: ir.Model) -> set[str]:
    """Return the external data files that a model names, relative to its folder."""
    return {str(Path(tensor.location)) for tensor in external_tensors(model)}


def external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    """Return the external tensors of a model, those of bodies and functions too."""
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    graphs = [graph for root in roots for graph in (root, *root.subgraphs())]
    initializers = (value.const_value for graph in graphs for value in graph.initializers.values())
    attributes = (
        attribute
        for root in roots
        for node in ir.traversal.RecursiveGraphIterator(root)
        for attribute in node.attributes.values()
        if not attribute.is_ref()
    )
    single = (item.value for item in attributes if item.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS))
    tensors = (tensor for value in single for tensor in (value if isinstance(value, Sequence) else (value,)))
    return [tensor for tensor in (*initializers, *tensors) if isinstance(tensor, ir.ExternalTensor)]


def check_external(tensor: ir.ExternalTensor, path: Path) -> None:
    """Refuse external data that is missing, too short, or outside the folder of the model.

    Args:
        tensor: Of a model.
        path: The model.

    Raises:
        ModelError: it is.
    """
    where = f"{path}, tensor {tensor.name!r}"
    location = Path(tensor.location)
    if location.is_absolute() or ".." in location.parts:
        raise ModelError(
            f"external data {str(location)!r} lies outside the model's folder",
            where=where,
            hint="such models are refused",
        )
    file = path.parent / location
    if not _is_file(file):
        raise ModelError(
            f"external data file {str(location)!r} is missing", where=where, hint=f"put it beside {path.name}"
        )
    if not is_inside(file, path):
        raise ModelError(
            f"external data {str(location)!r} is a link out of the model's folder",
            where=where,
            hint="copy the file there",
        )
    offset, length, size = tensor.offset or 0, tensor.length, file.stat().st_size
    expected = tensor.nbytes
    if length is not None and length != expected:
        raise ModelError(f"external data claims {length} bytes for a tensor of {expected}", where=where)
    if offset < 0 or offset + expected > size:
        raise ModelError(
            f"external data file {str(location)!r} has {size} bytes, the tensor needs {offset} to {offset + expected}",
            where=where,
            hint="the file is truncated; copy it again",
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no path at all: too long, say
        return False
