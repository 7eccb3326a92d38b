"""What lies behind the scale of a norm: the linears that take it up, with the offset, when the stream turns."""

from __future__ import annotations

import math

import onnx_ir as ir

from catonnx.graph.absorb_walk import BlockedError, reads_shape_only
from catonnx.graph.constants import constant_shape
from catonnx.graph.moves import SUMS, moved_forward
from catonnx.graph.residual_parts import Shift, Turn
from catonnx.graph.shapes import Shapes

_LINEARS = frozenset({("", "MatMul"), ("", "Gemm"), ("com.microsoft", "Attention")})
"""Operators that multiply their first input by a weight, the second."""

_PACKED_BIAS = 2
"""The input of ONNX Runtime's Attention that is added to its projections."""


class BehindNorm:
    """Takes scale and offset of norms on, over whatever moves rows, to the linears that read what they give out.

    Attributes:
        turns: Weights that turn, with the scale.
        shifts: Linears that take up an offset.
        offsets: Constants of Adds that go, (node, input).
    """

    def __init__(self, graph: ir.Graph, shapes: Shapes, width: int) -> None:
        self._graph, self._shapes, self._width = graph, shapes, width
        self.turns: list[Turn] = []
        self.shifts: list[Shift] = []
        self.offsets: list[tuple[ir.Node, int]] = []

    def follow(self, value: ir.Value, axis: int, scale: ir.Value, offset: ir.Value | None) -> None:
        """Go on from what is scaled, channels on `axis`.

        Raises:
            BlockedError: if anything but linears reads it.
        """
        if value.is_graph_output():
            raise BlockedError(f"{value.name} is an output of the graph")
        for reader, index in tuple(value.uses()):
            if reads_shape_only(reader):
                continue
            behind = self._moved(reader, index, axis)
            if reader.graph is self._graph and is_linear(reader, index):
                rows = weight_rows(self._shapes, reader, value, axis)
                self.turns.append(Turn(reader, 1, rows, reader.inputs[1], scale))  # type: ignore[arg-type]
                self._shift(reader, rows, offset)
            elif behind is not None:
                self.follow(reader.outputs[0], behind, scale, offset)
            elif offset is None and self._adds_vector(reader, index, axis):
                self.offsets.append((reader, 1 - index))
                self.follow(reader.outputs[0], axis, scale, reader.inputs[1 - index])
            elif offset is None and _is_scaled_by_number(reader, index):
                self.follow(reader.outputs[0], axis, scale, offset)
            else:
                raise BlockedError(
                    f"what the norm before {value.name} scales is also read by {reader.op_type} {reader.name}"
                )

    def _moved(self, node: ir.Node, index: int, axis: int) -> int | None:
        if index or node.graph is not self._graph or node.op_type in SUMS | {"Concat"}:
            return None
        return moved_forward(self._shapes, node, axis)

    def _shift(self, node: ir.Node, axis: int, offset: ir.Value | None) -> None:
        if offset is None:
            return
        shape = constant_shape(node.inputs[1]) or ()
        if len(shape) != 2 or (node.op_type == "Attention" and not any(map(constant_shape, _packed_bias(node)))):
            raise BlockedError(f"{node.op_type} {node.name} cannot take up the offset of the norm before it")
        self.shifts.append(Shift(node, axis, offset))

    def _adds_vector(self, node: ir.Node, index: int, axis: int) -> bool:
        """Whether a node adds one constant to each channel."""
        shape = constant_shape(node.inputs[1 - index]) if node.op_type == "Add" and not node.domain else None
        behind = self._shapes[node.outputs[0]]
        if shape is None or behind is None or len(shape) > len(behind):
            return False
        own = axis - len(behind) + len(shape)
        return own >= 0 and shape[own] == self._width == math.prod(shape)


def is_linear(node: ir.Node, index: int) -> bool:
    """Whether a node multiplies its first input by a constant weight, and `index` is the first."""
    known = (node.domain, node.op_type) in _LINEARS
    return known and index == 0 and len(node.inputs) > 1 and constant_shape(node.inputs[1]) is not None


def weight_rows(shapes: Shapes, node: ir.Node, value: ir.Value, axis: int) -> int:
    """Return the axis of a weight that the channels of its activation, on `axis`, are multiplied with.

    Raises:
        BlockedError: if they are not what is multiplied.
    """
    shape, activation = constant_shape(node.inputs[1]) or (), shapes[value]
    turned = node.attributes.get_int("transA", 0)
    if activation is None or axis != len(activation) - 1 or turned or len(shape) < 2:
        raise BlockedError(f"the channels are not the inputs of {node.op_type} {node.name}")
    return 1 if node.attributes.get_int("transB", 0) else len(shape) - 2


def _packed_bias(node: ir.Node) -> tuple[ir.Value | None, ...]:
    return tuple(node.inputs[_PACKED_BIAS : _PACKED_BIAS + 1])


def _is_scaled_by_number(node: ir.Node, index: int) -> bool:
    if node.domain or (node.op_type, index) not in (("Mul", 0), ("Mul", 1), ("Div", 0)):
        return False
    shape = constant_shape(node.inputs[1 - index])
    return shape is not None and len(shape) < 2 and math.prod(shape) == 1
