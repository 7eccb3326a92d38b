"""The few ways in which passes change a graph: new constants, new nodes, new names.

Constants are changed lazily: a fold is a function in float64 that runs when the model is written, so that several folds
of one weight compose without rounding between them and no more than one weight is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from catonnx.errors import ModelError, VerificationError
from catonnx.graph.constants import constant_shape, constant_source, constant_type

Compute = Callable[[], np.ndarray]
RowMap = Callable[[np.ndarray], np.ndarray]
_FLOAT64 = "catonnx.float64"
_PIECE = 1 << 23
"""Numbers that are mapped at a time."""


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

    _set_lazy(graph, names, node, index, compute, realize, shape, dtype, wanted)


def set_mapped(graph: ir.Graph, names: Names, node: ir.Node, index: int, axis: int, rows: RowMap, wanted: str) -> None:
    """Give one input of a node a constant of its own whose rows along an axis are mapped.

    A constant that nobody has folded yet is mapped piece by piece: an embedding table in float64 may not fit.

    Args:
        graph: The graph that holds the node.
        names: Free names.
        node: The reader; other readers of the old constant keep it.
        index: Which input.
        axis: The axis that becomes the rows' last.
        rows: Maps rows (..., d) in float64 to rows of the same shape.
        wanted: Name for it.

    Raises:
        VerificationError: when it is needed, if it does not fit its type.
    """
    value, shape = node.inputs[index], constant_shape(node.inputs[index])
    assert value is not None, f"{node.name} has no input {index}"
    assert shape is not None, f"{value.name} is no constant"
    dtype, whole, read = constant_type(value), float64_of(value), _reader(value)

    def compute() -> np.ndarray:
        return _mapped(whole(), axis, rows)

    def realize() -> ir.TensorProtocol:
        array, result = read(), np.empty(shape, dtype.numpy())
        for piece in _pieces(shape, axis):
            exact = _mapped(array[piece].astype(np.float64), axis, rows)
            result[piece] = cast(exact, dtype, f"input {index} of {node.name}")
        return ir.Tensor(result, dtype=dtype)

    _set_lazy(graph, names, node, index, compute, realize, shape, dtype, wanted)


def retyped(value: ir.Value, dtype: ir.DataType) -> ir.TensorProtocol:
    """Return a constant in another type, computed when it is needed; folds go on from the numbers that it has now.

    Raises:
        ModelError: when it is needed, if the type does not hold one of its numbers.
    """
    shape = constant_shape(value)
    assert shape is not None, f"{value.name} is no constant"
    name, read = value.name, _reader(value)

    def realize() -> ir.TensorProtocol:
        exact = read()
        with np.errstate(over="ignore"):
            array = exact.astype(dtype.numpy())
        if not np.isfinite(array).all() and np.isfinite(exact).all():
            raise ModelError(
                f"its numbers reach {np.abs(exact).max():.1e} and overflow {dtype.name.lower()}",
                where=f"constant {name}",
                hint="keep the model's own type: --dtype source",
            )
        return ir.Tensor(array, dtype=dtype)

    tensor = ir.LazyTensor(realize, dtype=dtype, shape=ir.Shape(shape), name=name, cache=False)
    tensor.meta[_FLOAT64] = float64_of(value)
    return tensor


def weighted_sum(value: ir.Value, axis: int, weights: np.ndarray) -> np.ndarray:
    """Sum a constant matrix along an axis in float64, piece by piece as `set_mapped` maps it.

    Args:
        value: A constant with two axes.
        axis: The one that goes.
        weights: A weight for every index along it.
    """
    array = _reader(value)()
    pieces = (array[piece].astype(np.float64) for piece in _pieces(array.shape, axis))
    return np.concatenate([np.tensordot(weights, piece, (0, axis)) for piece in pieces])


def _reader(value: ir.Value) -> Compute:
    """Return what reads a constant as it is stored, mapped where it is; in float64 if folds are pending."""
    tensor, source = value.const_value, constant_source(value)
    pending = None if tensor is None else tensor.meta.get(_FLOAT64)
    assert source is not None, f"{value.name} is no constant"
    return source if pending is None else pending


def _mapped(array: np.ndarray, axis: int, rows: RowMap) -> np.ndarray:
    return np.moveaxis(rows(np.moveaxis(array, axis, -1)), -1, axis)


def _pieces(shape: Sequence[int], axis: int) -> Iterator[tuple[slice, ...]]:
    """Cut a constant along its longest axis but `axis`."""
    others = [other for other in range(len(shape)) if other != axis]
    along = max(others, key=lambda other: shape[other], default=axis)
    size = math.prod(shape)
    count = max(1, min(size // _PIECE, shape[along])) if others else 1
    bounds = np.linspace(0, shape[along], count + 1).astype(int)
    for start, stop in pairwise(bounds):
        yield (*(slice(None),) * along, slice(int(start), int(stop)))


def _set_lazy(
    graph: ir.Graph,
    names: Names,
    node: ir.Node,
    index: int,
    compute: Compute,
    realize: Callable[[], ir.TensorProtocol],
    shape: Sequence[int],
    dtype: ir.DataType,
    wanted: str,
) -> None:
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
        domain: That of the operator.
    """

    name: str
    operator: str
    inputs: tuple[ir.Value | None, ...]
    attributes: Mapping[str, Any]
    domain: str = ""


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
    return ir.node(
        step.operator,
        inputs,
        attributes=dict(step.attributes),
        domain=step.domain,
        outputs=[output],
        name=names.new(step.name),
    )
