"""The few ways in which passes change a graph: new constants, new nodes, new names.

Constants are changed lazily: a fold is a function in float64 that runs when the model is written, so that several folds
of one weight compose without rounding between them and no more than one weight is in memory at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from catonnx.errors import VerificationError
from catonnx.graph.constants import constant_source

Compute = Callable[[], np.ndarray]
_FLOAT64 = "catonnx.float64"


def float64_of(value: ir.Value) -> Compute:
    """Return the function that computes a constant in float64, pending folds included."""
    tensor = value.const_value
    pending = None if tensor is None else tensor.meta.get(_FLOAT64)
    if pending is not None:
        return pending  # type: ignore[no-any-return]

    source = constant_source(value)
    assert source is not None, f"{value.name} is no constant"
    return lambda: source().astype(np.float64)


class Names:
    """Names that no value of a graph has yet.

    Args:
        graph: The graph, subgraphs included.
    """

    def __init__(self, graph: ir.Graph) -> None:
        graphs = (graph, *graph.subgraphs())
        self._taken = {value.name for part in graphs for value in (*part.inputs, *part.initializers.values())}
        for node in ir.traversal.RecursiveGraphIterator(graph):
            self._taken.add(node.name)
            self._taken.update(value.name for value in node.outputs)

    def new(self, wanted: str) -> str:
        """Return `wanted`, or `wanted_2`, `wanted_3` ... if it is taken."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


def dequantizer(linear: str) -> str:
    """Return the name of the node that expands the rounded weight of a linear."""
    return f"{linear}/dequantize"


def add_constant(graph: ir.Graph, names: Names, wanted: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """Add an initializer under a free name."""
    name = names.new(wanted)
    tensor = ir.tensor(array, name=name) if isinstance(array, np.ndarray) else array
    tensor.name = name
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
    )
    graph.register_initializer(value)
    return value


def set_folded(
    graph: ir.Graph,
    names: Names,
    node: ir.Node,
    index: int,
    compute: Compute,
    shape: Sequence[int],
    dtype: ir.DataType,
    wanted: str,
) -> None:
    """Give one input of a node a constant of its own that is computed when it is needed.

    Args:
        graph: The graph that holds the node.
        names: Free names.
        node: The reader; other readers of the old constant keep it.
        index: Which input.
        compute: Returns the new constant in float64.
        shape: Its shape.
        dtype: Its type in the file; the one rounding of all folds.
        wanted: Name for it.

    Raises:
        VerificationError: when it is needed, if it does not fit its type.
    """

    def realize() -> ir.TensorProtocol:
        return ir.Tensor(cast(compute(), dtype, f"input {index} of {node.name}"), dtype=dtype)

    tensor = ir.LazyTensor(realize, dtype=dtype, shape=ir.Shape(shape), cache=False)
    tensor.meta[_FLOAT64] = compute
    node.replace_input_with(index, add_constant(graph, names, wanted, tensor))


def cast(exact: np.ndarray, dtype: ir.DataType, where: str) -> np.ndarray:
    """Round numbers of a new basis to the type that stores them.

    Raises:
        VerificationError: if one of them overflows.
    """
    with np.errstate(over="ignore"):
        array: np.ndarray = exact.astype(dtype.numpy())
    if not np.isfinite(array).all() and np.isfinite(exact).all():
        raise VerificationError(
            f"numbers of the new basis reach {np.abs(exact).max():.1e} and overflow {dtype.name.lower()}",
            where=where,
            hint="leave the layer out with --exclude, choose another --transform, or take a float32 model",
        )
    return array


@dataclasses.dataclass(frozen=True)
class Step:
    """One node of a chain.

    Attributes:
        name: Name wanted for the node.
        operator: ONNX operator.
        inputs: Its inputs; None stands for the chain's value so far.
        attributes: Its attributes.
    """

    name: str
    operator: str
    inputs: tuple[ir.Value | None, ...]
    attributes: Mapping[str, Any]


def insert_before(
    graph: ir.Graph, names: Names, readers: Sequence[ir.Node], value: ir.Value, steps: Sequence[Step]
) -> None:
    """Insert a chain of nodes between a value and some of its readers.

    Args:
        graph: The graph that holds them, sorted.
        names: Free names.
        readers: Nodes whose first input is `value`, and the chain's result from now on, in graph order.
        value: Where the chain begins; it has the shape that it ends with.
        steps: The nodes.
    """
    current = value
    for step in steps:
        output = ir.Value(name=names.new(f"{step.name}_output"), type=value.type)
        graph.insert_before(readers[0], _node_of(names, step, current, output))
        current = output
    current.shape = value.shape
    for reader in readers:
        reader.replace_input_with(0, current)


def insert_behind(names: Names, node: ir.Node, steps: Sequence[Step]) -> None:
    """Insert a chain of nodes between a node and whatever reads its first output, an output of its graph included.

    Args:
        names: Free names.
        node: Where the chain begins; its result takes over name, type and shape of this node's output.
        steps: The nodes, one at least.
    """
    graph, old = node.graph, node.outputs[0]
    assert graph is not None
    result = ir.Value(name=old.name, type=old.type, shape=old.shape)
    old.name, old.shape = names.new(f"{node.name}/product_output"), None
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    last, current = node, old
    for step in steps:
        output = result if step is steps[-1] else ir.Value(name=names.new(f"{step.name}_output"), type=old.type)
        new = _node_of(names, step, current, output)
        graph.insert_after(last, new)
        last, current = new, output


def _node_of(names: Names, step: Step, value: ir.Value, output: ir.Value) -> ir.Node:
    inputs = [value if operand is None else operand for operand in step.inputs]
    return ir.node(step.operator, inputs, attributes=dict(step.attributes), outputs=[output], name=names.new(step.name))
