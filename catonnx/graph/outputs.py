"""Models with other outputs: what calibration and the search for a difference run."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def with_outputs(model: ir.Model, values: Mapping[str, ir.DataType]) -> ir.Model:
    """Return a copy of a model that computes the named values and nothing else; tensors are shared, not copied.

    Args:
        model: Stays as it is.
        values: Names of values of its main graph, and the type of each where the graph does not say.

    Raises:
        KeyError: if the graph has no such value.
    """
    copy = ir.Model(model.graph.clone(), ir_version=model.ir_version, functions=list(model.functions.values()))
    graph = copy.graph
    known = {value.name: value for node in graph for value in node.outputs} | {
        value.name: value for value in graph.inputs
    }
    graph.outputs.clear()
    graph.outputs.extend(known[name] for name in values)
    for value in graph.outputs:
        if value.type is None:
            value.type = ir.TensorType(values[str(value.name)])
    RemoveUnusedNodesPass()(copy)
    return copy
