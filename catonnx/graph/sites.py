"""Linear layers and the activations that they read, found by structure alone.

A linear is a MatMul or Gemm by one constant float matrix, whatever node spells the constant. The matrix may be the left
operand, or have axes of length 1 before its own two; `passes.canonicalize` brings it to the right in two axes. All
linears that read one activation make one site, in the main graph and in each body of If, Loop and Scan. Everything that
looks like a linear but is none of ours is listed with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import onnx_ir as ir

from catonnx.graph.bodies import holders
from catonnx.graph.constants import constant_shape, constant_type
from catonnx.graph.shapes import Shapes

_ELEMENTWISE = frozenset(
    "Add Cast Clip Div Flatten Identity LogSoftmax Mul Reshape Sigmoid Slice Softmax Squeeze Sub Tanh Unsqueeze".split()
)
"""What may stand behind an output head or a router: no norm, no other matrix."""

_CHOICES = frozenset({"ArgMax", "TopK"})
"""What tells the largest numbers from the others."""

_ALREADY_QUANTIZED = frozenset(
    {"MatMulNBits", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
)

_OWN_WEIGHT = {"Attention": 1, "FusedMatMul": 1, "FusedGemm": 1, "MoE": 2}
"""Fused operators of ONNX Runtime -> which input is a weight, if it is constant: no 4-bit form takes their place."""

_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Types of weights that 4-bit forms take the place of."""

INSIDE = "inside the body of If, Loop or Scan"
"""Why nothing is known of what some linears read, and nothing before them changes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """y = x W (+ b) with a constant weight; y^T = x^T W where the graph has the constant on the left.

    Attributes:
        node: The MatMul or Gemm.
        inputs: K, rows of W.
        outputs: N, columns of W.
        dtype: Type of W.
        reason: Why it is not rounded to 4 bits; empty if it is.
        place: Which operand W is: 1 in the canonical form.
        axes: Axes of W: 2 in the canonical form.
        rank: Axes of x; None if they are not known.
    """

    node: ir.Node
    inputs: int
    outputs: int
    dtype: ir.DataType
    reason: str = ""
    place: Literal[0, 1] = 1
    axes: int = 2
    rank: int | None = None

    @property
    def name(self) -> str:
        """Name of the node."""
        return self.node.name or ""

    @property
    def selected(self) -> bool:
        """Whether the recipe wants this linear rounded."""
        return not self.reason


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One activation and all linears that read it.

    Attributes:
        value: The activation, channels on its last axis; on the axis before it where W is the left operand.
        width: Number of channels d.
        linears: Its readers with constant weights, in graph order; some may be left in float (`Linear.reason`).
        inside: They stand in a body of If, Loop or Scan, which no calibration looks into.
    """

    value: ir.Value
    width: int
    linears: tuple[Linear, ...]
    inside: bool = False

    @property
    def name(self) -> str:
        """Name of the activation, with a linear's where several bodies may read it; unique in the model."""
        return f"{self.value.name}/{self.linears[0].name}" if self.inside else self.value.name or ""

    @property
    def read(self) -> ir.Value:
        """What the linears read now: `value`, or what passes have put behind it."""
        value = self.linears[0].node.inputs[0]
        assert value is not None
        return value

    @property
    def dtype(self) -> ir.DataType:
        """Type of the activation."""
        return self.linears[0].dtype

    @property
    def selected(self) -> tuple[Linear, ...]:
        """The linears that are rounded."""
        return tuple(linear for linear in self.linears if linear.selected)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which linears the user wants.

    Attributes:
        include: Shell patterns of node names; only these, if any are given.
        exclude: Shell patterns of node names that are left in float.
        head: Also the output head (a language model's lm_head, a classifier).
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    head: bool = False

    def reason_against(self, name: str) -> str:
        """Return why a linear called `name` is left in float, or an empty text."""
        if self.include and not any(fnmatchcase(name, pattern) for pattern in self.include):
            return "not named by --include"
        matching = next((pattern for pattern in self.exclude if fnmatchcase(name, pattern)), None)
        return "" if matching is None else f"named by --exclude {matching}"


@dataclasses.dataclass(frozen=True)
class Found:
    """All sites of a graph, and what was passed over.

    Attributes:
        sites: In graph order; those without a selected linear included.
        passed_over: (node name, operator, reason) of matrix products that are no linear of ours.
    """

    sites: tuple[Site, ...]
    passed_over: tuple[tuple[str, str, str], ...]


def find_sites(graph: ir.Graph, selection: Selection | None = None) -> Found:
    """Find every site of a graph.

    Args:
        graph: A sorted graph.
        selection: Which linears to round; the default is all but output heads and routers.
    """
    selection = selection or Selection()
    shapes = functools.cache(lambda: Shapes(graph))  # few graphs need them
    inside = holders(graph)
    linears: list[Linear] = []
    passed_over: list[tuple[str, str, str]] = []
    for node in ir.traversal.RecursiveGraphIterator(graph):
        place = _place_of_weight(node)
        reason = _reason_against(node, place)
        if reason is None:
            linear = _linear(node, place, selection.reason_against(node.name or ""))
            if (place, linear.axes) != (1, 2):
                linear = dataclasses.replace(linear, rank=_rank(linear, shapes()))
                reason = _reason_against_form(linear)
            if not reason:
                linears.append(linear)
        if reason:
            passed_over.append((node.name or "", node.op_type, reason))
    if not selection.head:
        linears = _left(linears, lambda node: _leads_only_out(node, inside), "output head; --lm-head includes it")
    if not selection.include:
        linears = _left(linears, lambda node: _chooses(node, inside), "router; name it by --include to round it")
    by_value: dict[tuple[ir.Value, int, ir.Graph | ir.Function | None], list[Linear]] = {}
    for linear in linears:
        by_value.setdefault((_activation(linear), linear.place, linear.node.graph), []).append(linear)
    sites = (
        Site(value, readers[0].inputs, tuple(readers), part is not graph)
        for (value, _, part), readers in by_value.items()
    )
    return Found(tuple(sites), tuple(passed_over))


def _linear(node: ir.Node, place: Literal[0, 1], reason: str) -> Linear:
    """Return what a node multiplies by, (K, N) whatever the node's orientation."""
    shape = constant_shape(node.inputs[place]) or (0, 0)
    turned = node.op_type == "Gemm" and bool(node.attributes.get_int(("transA", "transB")[place], 0))
    rows, columns = shape[-2:]
    if turned != (place == 0):
        rows, columns = columns, rows
    return Linear(node, rows, columns, constant_type(node.inputs[place]), reason, place, len(shape))


def _activation(linear: Linear) -> ir.Value:
    value = linear.node.inputs[1 - linear.place]
    assert value is not None
    return value


def _rank(linear: Linear, shapes: Shapes) -> int | None:
    if linear.node.op_type == "Gemm":
        return 2
    value = _activation(linear)
    shape = shapes[value]
    if shape is None and value.shape is not None:  # of a body no more is known than it declares
        return len(value.shape)
    return None if shape is None else len(shape)


def _place_of_weight(node: ir.Node) -> Literal[0, 1]:
    left_only = len(node.inputs) > 1 and constant_shape(node.inputs[1]) is None
    return 0 if left_only and constant_shape(node.inputs[0]) is not None else 1


def _reason_against(node: ir.Node, place: Literal[0, 1]) -> str | None:
    """Return None for a linear, a reason for what a user might take for one, an empty text for anything else."""
    if node.op_type in _ALREADY_QUANTIZED:
        return "already quantized"
    if node.domain == "com.microsoft" and node.op_type in _OWN_WEIGHT:
        index = _OWN_WEIGHT[node.op_type]
        fused = len(node.inputs) > index and constant_shape(node.inputs[index]) is not None
        return f"the weight belongs to a fused {node.op_type}; give the model as it was before that fusion" * fused
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return ""
    weight, other = node.inputs[place], node.inputs[1 - place]
    shape = constant_shape(weight)
    if shape is None:
        return "already quantized" * any(map(_is_quantized, node.inputs[:2]))
    if constant_shape(other) is not None:
        return "both operands are constant"
    if 0 in shape:
        return f"the weight is empty: {list(shape)}"
    if len(shape) < 2:
        return "the weight has 1 axis, not 2"
    if math.prod(shape[:-2]) > 1:
        return f"the weight has {len(shape)} axes: it is {math.prod(shape[:-2])} matrices, and 4-bit products take one"
    dtype = constant_type(weight)
    if dtype not in _TYPES:
        return f"the weight is of type {dtype}, and no 4-bit kernel is"
    return None


def _reason_against_form(linear: Linear) -> str:
    """Return why a linear that is not in the canonical form cannot be brought there, or an empty text."""
    if linear.inputs == 1:  # positions times rotary frequencies, as a rule
        return "it is an outer product, and 4 bits make no single row smaller"
    return "" if linear.rank else "the rank of what it multiplies is not known"


def _is_quantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return (
        producer is not None
        and producer.op_type == "DequantizeLinear"
        and constant_shape(producer.inputs[0]) is not None
    )


def _left(linears: list[Linear], is_special: Callable[[ir.Node], bool], reason: str) -> list[Linear]:
    """Leave output heads, or routers, in float, unless there is nothing else."""
    special = {linear for linear in linears if is_special(linear.node)}
    if len(special) == len(linears):
        return linears
    return [
        dataclasses.replace(linear, reason=reason) if linear in special and linear.selected else linear
        for linear in linears
    ]


def _leads_only_out(node: ir.Node, inside: Mapping[ir.Graph, ir.Node]) -> bool:
    """Whether every way from a node leads to an output of the model, through element-wise operators and If only."""
    pending, seen, arrives = [node.outputs[0]], set(), False
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            holder = inside.get(value.graph) if value.graph is not None else None
            if holder is None:
                arrives = True
            elif holder.op_type == "If":
                assert value.graph is not None
                pending.append(holder.outputs[list(value.graph.outputs).index(value)])
            else:
                return False  # it comes round again, or is one of many
        for reader in value.consumers():
            if reader.op_type == "Shape" or reader in seen:
                continue
            if reader.op_type not in _ELEMENTWISE | _CHOICES:
                return False
            seen.add(reader)
            pending.extend(reader.outputs)
    return arrives


def _chooses(node: ir.Node, inside: Mapping[ir.Graph, ir.Node]) -> bool:
    """Whether a linear tells which experts are to run: what it gives out is compared, element by element till then."""
    if _leads_only_out(node, inside):
        return False
    pending, seen = [node.outputs[0]], set()
    while pending:
        for reader in pending.pop().consumers():
            if reader.op_type in _CHOICES:
                return True
            if reader.op_type in _ELEMENTWISE and reader not in seen:
                seen.add(reader)
                pending.extend(reader.outputs)
    return False
