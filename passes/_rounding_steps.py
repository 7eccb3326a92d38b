"""What both forms of rounded activations share: nodes of one site, and the scale and offset of its tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from catonnx.graph.edits import Names, add_constant
from catonnx.math.activations import SMALLEST_SCALE, ActivationGrid

FLOAT = ir.DataType.FLOAT


@dataclasses.dataclass(frozen=True, eq=False)
class Constants:
    """Small initializers that all sites of a model share."""

    graph: ir.Graph
    names: Names
    _known: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = dataclasses.field(default_factory=dict)

    def __call__(self, array: Any, wanted: str = "number") -> ir.Value:
        """Return the initializer that holds an array; bare numbers become float32."""
        data = np.asarray(array, np.float32) if isinstance(array, float) else np.asarray(array)
        key = (data.dtype.name, data.shape, data.tobytes())
        if key not in self._known:
            self._known[key] = add_constant(self.graph, self.names, f"catonnx/{wanted}", data)
        return self._known[key]


@dataclasses.dataclass(frozen=True, eq=False)
class Nodes:
    """Writes nodes before one node.

    Attributes:
        constants: Of the model.
        before: The node, at the top level of the graph.
        prefix: Begins the names of all nodes.
    """

    constants: Constants
    before: ir.Node
    prefix: str

    def __call__(
        self,
        what: str,
        operator: str,
        *inputs: ir.Value,
        dtype: ir.DataType = FLOAT,
        shape: ir.Shape | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Add a node called `what` and return its output, of a type and a shape, if that is known."""
        names = self.constants.names
        name = names.new(f"{self.prefix}/{what}")
        output = ir.Value(name=names.new(f"{name}_output"), type=ir.TensorType(dtype), shape=shape)
        node = ir.node(operator, inputs, attributes=attributes, domain=domain, outputs=[output], name=name)
        self.constants.graph.insert_before(self.before, node)
        return output


def widened(nodes: Nodes, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Return an activation in float32: float16 would turn scales of small tokens into zeros."""
    return value if dtype == FLOAT else nodes("float32", "Cast", value, shape=value.shape, to=FLOAT)


def scale_and_offset(
    nodes: Nodes, rows: ir.Value, grid: ActivationGrid, axis: int = -1
) -> tuple[ir.Value, ir.Value | None]:
    """Compute scale and offset over the last axis, as `ActivationGrid` does.

        Abs, ReduceMax, Mul, Max                        symmetric
        ReduceMax, ReduceMin, Sub, Mul, Max             asymmetric; Mul, Mul, Add for the offset of a clipped range

    Args:
        nodes: Where to.
        rows: float32 [..., channels that share a scale].
        grid: Of the site.
        axis: The last one; of no rows at all ONNX Runtime returns [0, 1] only if it is counted from the front.

    Returns:
        Scale [..., 1] or, if it is fixed, []; the offset likewise, None if there is none.
    """
    constant = nodes.constants
    if grid.fixed is not None:
        scale, offset = grid.fixed
        return constant(float(scale), "scale"), constant(float(offset), "offset") if offset else None
    last = constant(np.array([axis]), "last_axis")
    shape = None if rows.shape is None else ir.Shape([*rows.shape[:-1], 1])
    if grid.symmetric:
        magnitude = nodes("magnitude", "Abs", rows, shape=rows.shape)
        extent = nodes("largest", "ReduceMax", magnitude, last, shape=shape, keepdims=1)
        offset_value = None
    else:
        high = nodes("largest", "ReduceMax", rows, last, shape=shape, keepdims=1)
        low = nodes("smallest", "ReduceMin", rows, last, shape=shape, keepdims=1)
        extent = nodes("range", "Sub", high, low, shape=shape)
        offset_value = _offset(nodes, high, low, grid)
    scaled = nodes("steps", "Mul", extent, constant(grid.scale_factor, "scale_factor"), shape=shape)
    return nodes("scale", "Max", scaled, constant(SMALLEST_SCALE, "smallest_scale"), shape=shape), offset_value


def _offset(nodes: Nodes, high: ir.Value, low: ir.Value, grid: ActivationGrid) -> ir.Value:
    if grid.clip == 1:
        return low
    of_high, of_low = (nodes.constants(factor, "offset_factor") for factor in grid.offset_factors)
    return nodes(
        "offset",
        "Add",
        nodes("high_part", "Mul", high, of_high, shape=high.shape),
        nodes("low_part", "Mul", low, of_low, shape=low.shape),
        shape=low.shape,
    )
