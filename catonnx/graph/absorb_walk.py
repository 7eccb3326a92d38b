"""The walk back from a site: whom it asks, what forbids a change, and what it arrives with.

Two kinds of walk go over the same nodes with different rules (`absorb_rules`). One looks for a place for a scaling or a
mixing of channels: it needs a single way back, so a value that anything else reads ends it. The other looks for the
places of a permutation: it may need many ways that part and meet again, so its readers are checked at the end.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from catonnx.graph.layout import Layout
from catonnx.graph.shapes import Shapes
from catonnx.graph.windows import windows
from catonnx.graph.writers import Writer

_SHAPE_READERS = frozenset({"Shape", "Size"})
_MIXERS = frozenset({"MatMul", "Gemm", "Attention"})
"""Operators that sum over all channels of their first input."""

_MOVERS = frozenset("Cast Flatten Identity MatMul Reshape Squeeze Transpose Unsqueeze".split())
"""Operators that may be crossed where one axis holds both rows and channels."""

_PARTS = frozenset({"Split", "Slice", "Gather"})
"""Operators that may leave some channels of their first input to others."""

PAST_VALUES = {
    ("com.microsoft", "GroupQueryAttention"): 4,
    ("com.microsoft", "MultiHeadAttention"): 7,
    ("", "Attention"): 5,
}
"""Attention operators that join new rows to an input: which."""

PRESENT_VALUES = 2
"""Their output that holds the joined rows."""

_LONGEST_PATH = 100
"""Nodes on a way back; a longer one is given up before Python's stack is."""


class BlockedError(Exception):
    """The walk ends here; the text says why."""


@dataclasses.dataclass(frozen=True)
class End:
    """A branch of the walk that arrived: what it writes, the layout it arrived with, and the caches on the way."""

    writers: tuple[Writer, ...]
    layout: Layout
    caches: tuple[str, ...] = ()


Rule: TypeAlias = "Callable[[Walk, ir.Node, Layout], End]"


@dataclasses.dataclass
class Walk:
    """One way, or one tree of ways, back from a site.

    Attributes:
        shapes: Shapes of the graph.
        change_caches: Whether attention caches may change their basis.
        rule_of: Returns the rule for a node, asked for one of its outputs; None if it takes up nothing.
        path: Operators that were met.
    """

    shapes: Shapes
    change_caches: bool
    rule_of: Callable[[ir.Node, ir.Value], Rule | None]
    path: list[str] = dataclasses.field(default_factory=list)

    def into(self, node: ir.Node, index: int, layout: Layout | None) -> End:
        """Go on into one input of `node`."""
        value = node.inputs[index]
        if value is None or layout is None:
            raise BlockedError(f"the channels cannot be followed through {node.op_type} {node.name}")
        return self._enter(node, index, value, layout)

    def _enter(self, node: ir.Node, index: int, value: ir.Value, layout: Layout) -> End:  # noqa: ARG002
        self.check_readers(value, frozenset({node}), layout)
        return self.back(value, layout)

    def back(self, value: ir.Value, layout: Layout) -> End:
        """Ask the producer of `value`."""
        node = value.producer()
        if node is None:
            raise BlockedError("comes straight from " + ("a graph input" if value.is_graph_input() else "a constant"))
        self.path.append(node.op_type)
        if len(self.path) > _LONGEST_PATH:
            raise BlockedError(f"the way back is longer than {_LONGEST_PATH} nodes")
        rule = self.rule_of(node, value)
        if rule is None:
            raise BlockedError(f"{node.op_type} takes up nothing")
        if layout.merged and node.op_type not in _MOVERS:
            raise BlockedError(f"rows are merged with channels at {node.op_type} {node.name}")
        return rule(self, node, layout)

    def check_readers(self, value: ir.Value, allowed: frozenset[ir.Node], layout: Layout) -> None:
        """Refuse to change a value that anybody but `allowed` reads, or that leaves the graph."""
        self._check_output(value, layout)
        for reader in value.consumers():
            if reads_shape_only(reader):
                continue
            if reader not in allowed and not self.reads_other_channels(reader, value, layout):
                raise BlockedError(f"also read by {reader.op_type} {reader.name}")
            if sum(operand is value for operand in reader.inputs) > 1 and not is_square(reader):
                raise BlockedError(f"{reader.op_type} {reader.name} reads the value twice")

    def reads_other_channels(self, reader: ir.Node, value: ir.Value, layout: Layout) -> bool:
        """Whether a reader takes only such parts of a value that hold none of the channels of a layout."""
        parts = windows(self.shapes, reader) if reader.inputs[0] is value else None
        if parts is None:
            return False
        return not any(layout.meets(window) for part, window in parts if part.is_graph_output() or part.uses())

    def _check_output(self, value: ir.Value, layout: Layout) -> None:
        if value.is_graph_output() and not (self.change_caches and layout.attended and is_cache(value)):
            raise BlockedError(f"{value.name} is also an output of the graph")

    def rank(self, value: ir.Value | None) -> int:
        """Return the number of axes of a value."""
        shape = None if value is None else self.shapes[value]
        if shape is None:
            raise BlockedError(f"the shape of {value.name if value else 'an input'} is not known")
        return len(shape)


@dataclasses.dataclass
class PermutingWalk(Walk):
    """A walk on which every way into a node is taken, and a value may be met again.

    Attributes:
        met: For every value that would change, the layouts that it was met with and how the walk went on from there.
        crossed: The operands (reader, index) through which the walk came, and with which layouts.
        promising: Values whose readers may all turn out to lie on the way.
    """

    met: dict[ir.Value, list[tuple[Layout, End]]] = dataclasses.field(default_factory=dict)
    crossed: dict[tuple[ir.Node, int], list[Layout]] = dataclasses.field(default_factory=dict)
    promising: set[ir.Value] = dataclasses.field(default_factory=set)

    def start(self, site: ir.Value, layout: Layout) -> End:
        """Walk back from a site, whose own readers have been checked."""
        self.promising.add(site)
        end = self.back(site, layout)
        self._check_all_readers()
        return end

    def _enter(self, node: ir.Node, index: int, value: ir.Value, layout: Layout) -> End:
        self._look_ahead(value)
        self.crossed.setdefault((node, index), []).append(layout)
        before = self.met.setdefault(value, [])
        for known, end in before:
            if known.is_same(layout):
                return end
            if (known.axes, known.merged) != (layout.axes, layout.merged) or np.intersect1d(
                known.position, layout.position
            ).size:
                raise BlockedError(f"{value.name} would be permuted in two ways")
        end = self.back(value, layout)
        before.append((layout, end))
        return end

    def _look_ahead(self, value: ir.Value) -> None:
        """Stop early where a value flows on to what takes up no permutation, as a residual stream does."""
        values = deque([value])  # the nearest first: its name goes into the reason
        while values:
            value = values.popleft()
            if value in self.promising:
                continue
            self.promising.add(value)
            for reader, index in value.uses():
                if reads_shape_only(reader):
                    continue
                if self.rule_of(reader, reader.outputs[0]) is None or (reader.op_type in _MIXERS and index == 0):
                    raise BlockedError(f"also read by {reader.op_type} {reader.name}")
                if reader.op_type not in _PARTS:  # the other parts may be anybody's
                    values.append(reader.outputs[0])

    def _check_all_readers(self) -> None:
        """Refuse if anybody reads a changed value on a way that the walk did not come."""
        for value, layouts in self.met.items():
            for layout, _ in layouts:
                self._check_output(value, layout)
                for reader, index in value.uses():
                    if not reads_shape_only(reader) and not self._is_compensated(reader, index, value, layout):
                        raise BlockedError(f"also read by {reader.op_type} {reader.name}")

    def _is_compensated(self, reader: ir.Node, index: int, value: ir.Value, layout: Layout) -> bool:
        """Whether the walk came through an operand for the sake of these channels, or it takes none of them."""
        crossed = self.crossed.get((reader, index), ())
        return any(known.is_same(layout) for known in crossed) or self.reads_other_channels(reader, value, layout)


def reads_shape_only(reader: ir.Node) -> bool:
    """Whether a node sees nothing of the numbers."""
    return reader.op_type in _SHAPE_READERS and not reader.domain


def is_square(node: ir.Node) -> bool:
    """Whether a node multiplies a value by itself."""
    return node.op_type == "Mul" and not node.domain and node.inputs[0] is node.inputs[1]


def is_cache(value: ir.Value) -> bool:
    """Whether a graph output is a graph input with new rows joined to it, and the input is used for nothing else."""
    state = continued_input(value)
    node = value.producer()
    return state is not None and all(reader is node or reads_shape_only(reader) for reader in state.consumers())


def continued_input(value: ir.Value) -> ir.Value | None:
    """Return the graph input that a value is the continuation of: itself with new rows joined to it."""
    node = value.producer()
    if node is None:
        return None
    states = [operand for operand in node.inputs if operand is not None and operand.is_graph_input()]
    if node.op_type == "Concat" and not node.domain:
        return states[0] if len(states) == 1 else None
    index = PAST_VALUES.get((node.domain, node.op_type))
    if index is None or index >= len(node.inputs) or list(node.outputs).index(value) != PRESENT_VALUES:
        return None
    past = node.inputs[index]
    return past if past is not None and states.count(past) == 1 else None
