"""The walk over a residual stream: from one value to all that are in the same channels, backward and forward.

| what touches a value of the stream | what becomes of it |
| --- | --- |
| MatMul, Gemm, Conv, Gather of a table that write it | their constants turn |
| Add, Sub of an activation | the other side is in the stream too; a constant turns |
| Mul, Div by one number per row, or for all | passes |
| Mul by a constant vector | the scale of a norm, if linears read it (`residual_norms`); else in the way |
| norms as one operator | the same; one that adds two streams first hands out their sum |
| sums of squares over the channels | as they were |
| sums and means over the channels | as they were, for a rotation that keeps the mean |
| what moves rows (`moves`) | passes |
| MatMul, Gemm, Attention that read it | their weights turn |
| Shape, Size | as they were |
| anything else, and outputs of the graph | in the way |
"""

from __future__ import annotations

from collections import deque

import onnx_ir as ir

from catonnx.graph.absorb_rules import NORMS
from catonnx.graph.absorb_walk import BlockedError, reads_shape_only
from catonnx.graph.constants import FLOATS, constant_shape, constant_type
from catonnx.graph.moves import SUMS, moved_back, moved_forward, reduced_axes
from catonnx.graph.residual_norms import BehindNorm, is_linear, weight_rows
from catonnx.graph.residual_parts import Stream, Turn, all_equal, is_norm, is_square, stored_more_often
from catonnx.graph.shapes import Shapes

_SKIP_BIAS = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}
"""Norms that add two streams first -> which input is added as well."""

_ADDED = 3
"""The output of those that holds the sum."""

_CENTRED = frozenset({"LayerNormalization", "SkipLayerNormalization"})
_NORM_OF_ROWS = frozenset({"ReduceL2", "ReduceSumSquare"})


def _name(node: ir.Node) -> str:
    return f"{node.op_type} {node.name}"


class Flood:
    """Goes from one value to all that are in the same channels, and notes what turns with them.

    Attributes:
        axes: Every value that turns -> its channel axis.
        joins: Whether two activations are added somewhere: a stream, and not just a value that is normalized.
    """

    def __init__(self, graph: ir.Graph, shapes: Shapes, width: int) -> None:
        self._graph, self._shapes, self._width = graph, shapes, width
        self.axes: dict[ir.Value, int] = {}
        self.joins = False
        self._pending: deque[ir.Value] = deque()
        self._turns: dict[tuple[ir.Node, int, int], Turn] = {}
        self._scales: dict[tuple[ir.Node, int], None] = {}
        self._offsets: dict[tuple[ir.Node, int], None] = {}
        self._behind = BehindNorm(graph, shapes, width)
        self._keeps_mean = False
        self._reasons: list[str] = []

    def run(self, seed: ir.Value, axis: int) -> None:
        """Go everywhere; what is in the way is noted, and the others are still looked at."""
        self._add(seed, axis)
        while self._pending:
            value = self._pending.popleft()
            if value.is_graph_output():
                self._reasons.append(f"{value.name} is an output of the graph")
            try:
                self._made(value)
            except BlockedError as stop:
                self._reasons.append(str(stop))
            for reader, index in tuple(value.uses()):
                try:
                    self._read(reader, index, value)
                except BlockedError as stop:
                    self._reasons.append(str(stop))

    def stream(self, seed: ir.Value) -> Stream:
        """Return what was found."""
        return Stream(
            seed.name or "",
            self._width,
            (*self._turns.values(), *self._behind.turns),
            tuple(self._scales),
            (*self._offsets, *self._behind.offsets),
            tuple(self._behind.shifts),
            self._keeps_mean,
            tuple(self.axes),
            stored_more_often((*self._turns.values(), *self._behind.turns)),
            self._reasons[0] if self._reasons else "",
        )

    def _add(self, value: ir.Value | None, axis: int | None) -> None:
        """Add a value to the stream."""
        shape = None if value is None else self._shapes[value]
        if value is None or axis is None or shape is None or shape[axis].value != self._width:
            raise BlockedError(f"the channels of {value.name if value else 'an input'} cannot be followed")
        if value not in self.axes:
            self.axes[value] = axis
            self._pending.append(value)
        elif self.axes[value] != axis:
            raise BlockedError(f"{value.name} would turn on two axes")

    def _turn(self, node: ir.Node, index: int, axis: int) -> None:
        """Note a constant that turns."""
        value, shape = node.inputs[index], constant_shape(node.inputs[index])
        assert value is not None
        if shape is None or shape[axis] != self._width:
            raise BlockedError(f"the constant of {_name(node)} does not lie along the channels")
        if constant_type(value) not in FLOATS:
            raise BlockedError(f"the constant of {_name(node)} is of type {constant_type(value)}")
        self._turns.setdefault((node, index, axis), Turn(node, index, axis, value))

    def _rank(self, value: ir.Value | None) -> int:
        shape = None if value is None else self._shapes[value]
        if shape is None:
            raise BlockedError(f"the shape of {value.name if value else 'an input'} is not known")
        return len(shape)

    def _made(self, value: ir.Value) -> None:
        """Ask the producer of a value of the stream."""
        node, axis = value.producer(), self.axes[value]
        if node is None:
            raise BlockedError(
                f"{value.name} comes straight from " + ("a graph input" if value.is_graph_input() else "a constant")
            )
        if is_norm(node) and value in (node.outputs[0], *node.outputs[_ADDED:]):
            self._norm(node, writes=value is node.outputs[0])
        elif value is not node.outputs[0] or node.domain:
            raise BlockedError(f"{_name(node)} writes into the stream")
        elif node.op_type in ("MatMul", "Gemm"):
            self._written(node, axis)
        elif node.op_type == "Conv":
            self._convolved(node, axis)
        elif node.op_type in ("Add", "Sub"):
            self._sum(node, axis)
        elif node.op_type in ("Mul", "Div"):
            self._product(node, axis, writes=True)
        else:
            self._moved(node, axis)

    def _read(self, node: ir.Node, index: int, value: ir.Value) -> None:
        """Ask a reader of a value of the stream."""
        axis = self.axes[value]
        if reads_shape_only(node):
            return
        if node.graph is not self._graph:
            raise BlockedError(f"{value.name} is also read inside a body, by {_name(node)}")
        if is_norm(node) and index < (2 if node.op_type in _SKIP_BIAS else 1):
            self._norm(node, writes=False)
        elif is_linear(node, index):
            self._turn(node, 1, weight_rows(self._shapes, node, value, axis))
        elif node.domain:
            raise BlockedError(f"also read by {_name(node)}")
        elif is_square(node) and value is node.inputs[0]:
            self._squared(node, axis)
        elif node.op_type in ("Add", "Sub"):
            self._sum(node, axis + self._rank(node.outputs[0]) - self._rank(value))
        elif node.op_type in ("Mul", "Div"):
            self._product(node, axis + self._rank(node.outputs[0]) - self._rank(value), writes=False)
        elif not self._is_invariant(node, axis):
            self._moved(
                node, moved_forward(self._shapes, node, axis) if index == 0 or node.op_type == "Concat" else None
            )

    def _moved(self, node: ir.Node, axis: int | None) -> None:
        """Follow what moves rows, given the channel axis behind it."""
        before = None if axis is None else moved_back(self._shapes, node, axis)
        if axis is None or before is None:
            raise BlockedError(f"{_name(node)} does not turn with the stream")
        for index, data in enumerate(node.inputs if node.op_type == "Concat" else node.inputs[:1]):
            if constant_shape(data) is None:
                self._add(data, before)
            else:
                self._turn(node, index, before)
        self._add(node.outputs[0], axis)

    def _sum(self, node: ir.Node, axis: int) -> None:
        """Add and Sub: both sides turn; what is the same for all channels leaves a Q that keeps their mean."""
        sides = [index for index in (0, 1) if self._lies_along(node, index, axis)]
        self._keeps_mean |= len(sides) < 2
        for index in sides:
            operand = node.inputs[index]
            own = axis - self._rank(node.outputs[0]) + self._rank(operand)
            if constant_shape(operand) is None:
                self._add(operand, own)
            else:
                self._turn(node, index, own)
        self.joins |= sum(constant_shape(node.inputs[index]) is None for index in sides) > 1
        self._add(node.outputs[0], axis)

    def _product(self, node: ir.Node, axis: int, *, writes: bool) -> None:
        """Mul and Div: one number per row passes; a constant vector is the scale of a norm."""
        sides = [index for index in (0, 1) if self._lies_along(node, index, axis)]
        scales = [index for index in sides if constant_shape(node.inputs[index]) is not None]
        others = [index for index in sides if index not in scales]
        if len(others) != 1 or (node.op_type == "Div" and others == [1]):
            raise BlockedError(f"{_name(node)} treats channels one by one")
        if not scales or all_equal(node.inputs[scales[0]]):
            operand = node.inputs[others[0]]
            self._add(operand, axis - self._rank(node.outputs[0]) + self._rank(operand))
            self._add(node.outputs[0], axis)
            return
        if writes or node.op_type == "Div":
            raise BlockedError(f"the constant vector of {_name(node)} scales channels that go into the stream")
        self._scaled(node, scales[0], axis, None)

    def _lies_along(self, node: ir.Node, index: int, axis: int) -> bool:
        """Whether an operand has channels of its own, not one number for all of them."""
        operand = node.inputs[index]
        own = axis - self._rank(node.outputs[0]) + self._rank(operand)
        length = 1 if own < 0 else self._shapes[operand][own].value  # type: ignore[index]
        if length not in (1, self._width) or length is None:
            raise BlockedError(f"the channels of {operand.name if operand else 'an input'} cannot be followed")
        return length == self._width

    def _squared(self, node: ir.Node, axis: int) -> None:
        """Squares of channels must be summed up; the sum is that of the turned ones."""
        for reader in node.outputs[0].consumers():
            axes = reduced_axes(self._shapes, reader) if reader.op_type in SUMS and not reader.domain else None
            if axes is None or axis not in axes:
                raise BlockedError(f"the squares of {_name(node)} are also read by {_name(reader)}")
        if node.outputs[0].is_graph_output():
            raise BlockedError(f"{node.outputs[0].name} is an output of the graph")

    def _is_invariant(self, node: ir.Node, axis: int) -> bool:
        """Whether a node sums channels or squares of them: the same before and after."""
        if node.op_type not in SUMS | _NORM_OF_ROWS or axis not in (reduced_axes(self._shapes, node) or ()):
            return False
        self._keeps_mean |= node.op_type in SUMS
        return True

    def _norm(self, node: ir.Node, *, writes: bool) -> None:
        """A norm as one operator: its input and, of one that adds first, both inputs and the sum turn."""
        rank = self._rank(node.outputs[0])
        attribute = node.attributes.get("axis")
        if attribute is not None and attribute.as_int() % rank != rank - 1:
            raise BlockedError(f"{_name(node)} normalizes over more than the last axis")
        scale, *rest = (index for index in NORMS[node.op_type] if index < len(node.inputs) and node.inputs[index])
        if any(constant_shape(node.inputs[index]) != (self._width,) for index in (scale, *rest)):
            raise BlockedError(f"the scale of {_name(node)} is not a constant vector")
        plain = all_equal(node.inputs[scale])
        if writes and not plain:
            raise BlockedError(f"{_name(node)} scales channels that go into the stream")
        self._keeps_mean |= node.op_type in _CENTRED
        for operand in node.inputs[: 2 if node.op_type in _SKIP_BIAS else 1]:
            self._add(operand, self._rank(operand) - 1)
        bias = _SKIP_BIAS.get(node.op_type, len(node.inputs))
        if bias < len(node.inputs) and node.inputs[bias] is not None:
            self._turn(node, bias, 0)
        if node.op_type in _SKIP_BIAS:
            self.joins = True
            if len(node.outputs) > _ADDED:
                self._add(node.outputs[_ADDED], rank - 1)
        if plain:
            for index in rest:
                self._turn(node, index, 0)
            self._add(node.outputs[0], rank - 1)
            return
        self._offsets.update(dict.fromkeys((node, index) for index in rest))
        self._scaled(node, scale, rank - 1, node.inputs[rest[0]] if rest else None)

    def _scaled(self, node: ir.Node, index: int, axis: int, offset: ir.Value | None) -> None:
        """Note the scale of a norm, and what takes it up."""
        scale = node.inputs[index]
        assert scale is not None
        if (node, index) not in self._scales:
            self._scales[node, index] = None
            self._behind.follow(node.outputs[0], axis, scale, offset)

    def _written(self, node: ir.Node, axis: int) -> None:
        """A linear that writes into the stream."""
        shape = constant_shape(node.inputs[1])
        if shape is None or len(shape) < 2 or axis != self._rank(node.outputs[0]) - 1:
            raise BlockedError(f"{_name(node)} writes into the stream and has no constant weight")
        self._turn(node, 1, 0 if node.attributes.get_int("transB", 0) else len(shape) - 1)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = constant_shape(node.inputs[2])
            if not bias:
                raise BlockedError(f"the bias of {_name(node)} is no constant vector")
            self._turn(node, 2, len(bias) - 1)

    def _convolved(self, node: ir.Node, axis: int) -> None:
        """A convolution that writes into the stream, as that of patches of an image does."""
        if axis != 1 or node.attributes.get_int("group", 1) != 1:
            raise BlockedError(f"{_name(node)} writes into the stream in groups")
        for index in range(1, len(node.inputs)):
            self._turn(node, index, 0)
