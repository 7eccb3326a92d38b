"""Linear layers and the activations that they read, found by structure alone.

A linear is a MatMul or Gemm whose right operand is a constant 2-D float weight, whatever node spells the constant. All
linears that read one activation make one site. Everything that looks like a linear but is none of ours is listed with
the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from catonnx.graph.constants import constant_shape, constant_type

_AFTER_HEAD = frozenset(
    "Add Cast Clip Div Identity LogSoftmax Mul Reshape Sigmoid Slice Softmax Squeeze Sub Tanh Unsqueeze Flatten".split()
)
"""What may stand between an output head and the graph's output: no norm, no other matrix."""

_ALREADY_QUANTIZED = frozenset(
    {"MatMulNBits", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
)

_OWN_WEIGHT = {"Attention": 1, "FusedMatMul": 1, "FusedGemm": 1, "MoE": 2}
"""Fused operators of ONNX Runtime -> which input is a weight, if it is constant: no 4-bit form takes their place."""

INSIDE = "inside the body of If, Loop or Scan"
"""Why linears of a merged decoder are left alone."""


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """y = x W (+ b) with a constant weight.

    Attributes:
        node: The MatMul or Gemm.
        inputs: K, rows of W.
        outputs: N, columns of W.
        dtype: Type of W.
        reason: Why it is not rounded to 4 bits; empty if it is.
    """

    node: ir.Node
    inputs: int
    outputs: int
    dtype: ir.DataType
    reason: str = ""

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
        value: The activation, channels on its last axis.
        width: Number of channels d.
        linears: Its readers with constant weights, in graph order; some may be left in float (`Linear.reason`).
        name: Name of the activation when it was found, unique in the graph; a pass may rename the value later.
    """

    value: ir.Value
    width: int
    linears: tuple[Linear, ...]
    name: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.value.name or "")

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
        selection: Which linears to round; the default is all but the output head.
    """
    selection = selection or Selection()
    linears: list[Linear] = []
    passed_over: list[tuple[str, str, str]] = []
    for node, inner in _all_nodes(graph):
        reason = _reason_against(node, inner)
        if reason is None:
            rows, columns = _weight_shape(node)
            dtype = constant_type(node.inputs[1])
            linears.append(Linear(node, rows, columns, dtype, selection.reason_against(node.name or "")))
        elif reason:
            passed_over.append((node.name or "", node.op_type, reason))
    if not selection.head:
        linears = _leave_heads(linears)
    by_value: dict[ir.Value, list[Linear]] = {}
    for linear in linears:
        value = linear.node.inputs[0]
        assert value is not None
        by_value.setdefault(value, []).append(linear)
    sites = tuple(Site(value, readers[0].inputs, tuple(readers)) for value, readers in by_value.items())
    return Found(sites, tuple(passed_over))


def _all_nodes(graph: ir.Graph) -> Iterator[tuple[ir.Node, bool]]:
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield node, node.graph is not graph


def _weight_shape(node: ir.Node) -> tuple[int, int]:
    """Return (K, N) whatever the node's orientation."""
    shape = constant_shape(node.inputs[1]) or (0, 0)
    turned = node.op_type == "Gemm" and node.attributes.get("transB") is not None and node.attributes["transB"].as_int()
    return (shape[1], shape[0]) if turned else (shape[0], shape[1])


def _reason_against(node: ir.Node, inner: bool) -> str | None:
    """Return None for a linear, a reason for what a user might take for one, an empty text for anything else."""
    if node.op_type in _ALREADY_QUANTIZED:
        return "already quantized"
    if node.domain == "com.microsoft" and node.op_type in _OWN_WEIGHT:
        place = _OWN_WEIGHT[node.op_type]
        fused = len(node.inputs) > place and constant_shape(node.inputs[place]) is not None
        return f"the weight belongs to a fused {node.op_type}; give the model as it was before that fusion" * fused
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return ""
    left, right = node.inputs[0], node.inputs[1]
    shape = constant_shape(right)
    if shape is None:
        producer = None if right is None else right.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            return "already quantized"
        return "the constant is the left operand" if constant_shape(left) is not None else ""
    if constant_shape(left) is not None:
        return "both operands are constant"
    if inner:
        return INSIDE
    if len(shape) != 2:
        return f"the weight has {len(shape)} axes, not 2"
    if 0 in shape:
        return f"the weight is empty: {list(shape)}"
    dtype = constant_type(right)
    if dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"the weight is of type {dtype}, and no 4-bit kernel is"
    return None


def _leave_heads(linears: list[Linear]) -> list[Linear]:
    """Leave output heads in float, unless there is nothing else."""
    heads = {linear for linear in linears if _leads_only_out(linear.node)}
    if len(heads) == len(linears):
        return linears
    return [
        dataclasses.replace(linear, reason="output head; --lm-head includes it")
        if linear in heads and linear.selected
        else linear
        for linear in linears
    ]


def _leads_only_out(node: ir.Node) -> bool:
    """Whether every way from a node leads to a graph output, through element-wise operators only."""
    pending, seen, arrives = [node.outputs[0]], set(), False
    while pending:
        value = pending.pop()
        arrives |= value.is_graph_output()
        for reader in value.consumers():
            if reader.op_type == "Shape" or reader in seen:
                continue
            if reader.op_type not in _AFTER_HEAD:
                return False
            seen.add(reader)
            pending.extend(reader.outputs)
    return arrives
