"""What a residual stream is made of: constants that turn with it, and norms whose scale and offset move on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from catonnx.graph.absorb_rules import NORMS
from catonnx.graph.constants import constant_array, constant_root


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """A constant that turns: its rows along an axis become ``(rows * scale) Q``.

    Attributes:
        node: The node that reads it.
        index: Which of its inputs.
        axis: The axis of the constant that carries channels.
        constant: The constant.
        scale: A constant vector that is multiplied in before: the scale of the norm before; None for none.
    """

    node: ir.Node
    index: int
    axis: int
    constant: ir.Value
    scale: ir.Value | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Shift:
    """A linear behind a norm whose offset goes into what the linear gives out.

    Attributes:
        linear: The node; its weight is input 1.
        axis: The axis of the weight that carries channels.
        offset: The constant vector beta.
    """

    linear: ir.Node
    axis: int
    offset: ir.Value


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """All values in the channels of one residual stream, and what turns with them.

    Attributes:
        name: The first value that a norm reads.
        width: Number of channels d.
        turns: Constants that turn.
        scales: Scales of norms, (node, input): they become ones, having gone into the turned constants behind.
        offsets: Offsets of norms, (node, input): they go, into shifts.
        shifts: Where to.
        keeps_mean: Q has to leave the mean over channels as it is.
        values: What is in another basis afterwards, but for what norms with a scale give out.
        multiplied: Tensors that turn in several places, and in how many: each is stored so often afterwards.
        reason: Why it cannot be turned; empty if it can.
    """

    name: str
    width: int
    turns: tuple[Turn, ...]
    scales: tuple[tuple[ir.Node, int], ...]
    offsets: tuple[tuple[ir.Node, int], ...]
    shifts: tuple[Shift, ...]
    keeps_mean: bool
    values: tuple[ir.Value, ...]
    multiplied: tuple[tuple[str, int], ...] = ()
    reason: str = ""


def stored_more_often(turns: Sequence[Turn]) -> tuple[tuple[str, int], ...]:
    """Return tensors of the model that turn in several places, as a table of tied embeddings does, and in how many."""
    places = {(constant_root(turn.constant), turn.node, turn.index) for turn in turns}
    counts = Counter(root for root, _, _ in places)
    return tuple((root.name or "", count) for root, count in counts.items() if root is not None and count > 1)


def is_norm(node: ir.Node) -> bool:
    """Whether a node is a norm as one operator."""
    return node.op_type in NORMS and node.domain in ("", "com.microsoft")


def is_square(node: ir.Node) -> bool:
    """Whether a node squares its first input."""
    if node.domain or len(node.inputs) != 2:
        return False
    if node.op_type == "Pow":
        return all_equal(node.inputs[1], 2)
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def all_equal(value: ir.Value | None, number: float | None = None) -> bool:
    """Whether all numbers of a constant are one and the same, or this one."""
    array = constant_array(value)
    if array is None or not array.size:
        return False
    return bool((array == (array.flat[0] if number is None else number)).all())
