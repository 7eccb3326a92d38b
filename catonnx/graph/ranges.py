"""A copy of a model that tells how large its values become."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from catonnx.graph.edits import Names, add_constant
from catonnx.graph.element_types import FLOAT


def with_ranges(model: ir.Model, values: Iterable[str]) -> tuple[ir.Model, dict[str, str]]:
    """Return a copy of a model that computes the largest finite magnitude of each value and nothing else.

    Args:
        model: Stays as it is; tensors are shared, not copied.
        values: Names of float32 values of its main graph.

    Returns:
        The copy, and the name of its output, float32 [1], for each value: zero where there is nothing finite.
    """
    copy = ir.Model(model.graph.clone(), ir_version=model.ir_version, functions=list(model.functions.values()))
    graph = copy.graph
    known = {value.name: value for node in graph for value in node.outputs} | {
        value.name: value for value in graph.inputs
    }
    names = Names(graph)
    zero = add_constant(graph, names, "catonnx/zero", np.zeros(1, np.float32))
    last = add_constant(graph, names, "catonnx/largest", np.array([np.finfo(np.float32).max]))
    flat = add_constant(graph, names, "catonnx/flat", np.array([-1]))
    graph.outputs.clear()
    outputs = {}
    for name in values:
        value = known[name]

        def step(operator: str, *inputs: ir.Value, after: str = name, **attributes: int) -> ir.Value:
            label = names.new(f"{after}/range/{operator}")
            output = ir.Value(name=names.new(f"{label}_output"))
            graph.append(ir.node(operator, inputs, attributes=attributes, outputs=[output], name=label))
            return output

        size = step("Abs", value)
        finite = step("Where", step("LessOrEqual", size, last), size, zero)
        # Of no numbers at all there is no largest one.
        largest = step("ReduceMax", step("Concat", step("Reshape", finite, flat), zero, axis=0), keepdims=1)
        largest.type, largest.shape = ir.TensorType(FLOAT), ir.Shape([1])
        graph.outputs.append(largest)
        outputs[name] = str(largest.name)
    return copy, outputs
