"""Rules for producers that compute number by number: products, sums, and functions of one activation.

A scaling passes what is linear in the activation; a permutation passes anything that treats all channels alike.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from catonnx.graph.absorb_walk import BlockedError, End, Walk, is_square
from catonnx.graph.constants import constant_array, constant_shape
from catonnx.graph.layout import Layout
from catonnx.graph.writers import Writer

POINTWISE = frozenset(
    (
        "Abs Add Clip Cos Div Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Log Max Min Mul Neg Pow PRelu "
        "Reciprocal Relu Sigmoid Sin Softplus Sqrt Sub Swish Tanh"
    ).split()
)
"""Operators that treat every number of their operands, broadcast against each other, alike."""

CONTRIB_POINTWISE = frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu"})
"""The same among ONNX Runtime's own."""


def product_or_quotient(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """Mul and Div: a constant vector takes a scaling, one number lets everything pass, two activations are a gate.

    Two activations that are one make a square.
    """
    constant = _constant_operand(node)
    if is_square(node):
        return _root(walk, node, layout, 2.0)
    if constant is None:
        return _gate(walk, node, layout)
    if node.op_type == "Div" and constant == 0:
        raise BlockedError(f"{node.name} divides by the activation")
    writer = _writer(walk, node, constant, layout, divides=node.op_type == "Div")
    if writer is not None:
        return End((writer,), layout.only_scale())
    _check_same_channels(walk, node, 1 - constant, layout)
    return walk.into(node, 1 - constant, _moved_rank(walk, node, 1 - constant, layout))


def power(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """Pow by one constant number: what makes its first operand takes a root of the scaling."""
    exponent = constant_array(node.inputs[1])
    if exponent is None or exponent.size != 1 or not exponent.all():
        raise BlockedError(f"the exponent of {node.name} is not one constant number")
    _check_same_channels(walk, node, 0, layout)
    return _root(walk, node, _moved_rank(walk, node, 0, layout), float(exponent.reshape(())))


def _root(walk: Walk, node: ir.Node, layout: Layout, exponent: float) -> End:
    """(s x)^p = s^p x^p for s > 0, and the scales of CAT are positive."""
    end = walk.into(node, 0, layout.only_scale())
    writers = (dataclasses.replace(writer, power=writer.power / exponent) for writer in end.writers)
    return dataclasses.replace(end, writers=tuple(writers))


def _gate(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """A product of two activations: a scaling of one branch scales the product."""
    reasons = []
    branches = (1, 0) if node.op_type == "Mul" else (0,)
    for index in branches:
        length = len(walk.path)
        try:
            _check_same_channels(walk, node, index, layout)
            end = walk.into(node, index, _moved_rank(walk, node, index, layout).only_scale())
        except BlockedError as stop:
            reasons.append(str(stop))
            del walk.path[length:]
        else:
            return end
    raise BlockedError(f"no branch of {node.op_type} {node.name} takes a scaling: " + "; ".join(reasons))


def sum_or_difference(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """Add and Sub: a constant takes what the activation takes, and so do both of two activations."""
    constant = _constant_operand(node)
    if constant is not None:
        writer = _writer(walk, node, constant, layout)
        if writer is None:
            raise BlockedError(f"{node.op_type} {node.name} adds one number to all channels")
        _check_same_channels(walk, node, 1 - constant, layout)
        end = walk.into(node, 1 - constant, _moved_rank(walk, node, 1 - constant, layout))
        return dataclasses.replace(end, writers=(*end.writers, writer))
    ends = []
    for index in (0, 1):
        _check_same_channels(walk, node, index, layout)
        ends.append(walk.into(node, index, _moved_rank(walk, node, index, layout)))
    return join(node, ends)


def positive_function(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """Relu(s x) = s Relu(x) for s > 0, and the scales of CAT are positive."""
    return walk.into(node, 0, layout.only_scale())


def any_function(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """A permutation passes whatever treats all channels alike, and goes into every operand that has channels."""
    ends: list[End] = []
    writers: list[Writer] = []
    for index, value in enumerate(node.inputs):
        if value is None or _is_broadcast(walk, node, index, layout):
            continue
        if constant_shape(value) is None:
            _check_same_channels(walk, node, index, layout)
            ends.append(walk.into(node, index, _moved_rank(walk, node, index, layout)))
        elif (writer := _writer(walk, node, index, layout)) is not None:
            writers.append(writer)
    if not ends:
        raise BlockedError(f"{node.op_type} {node.name} computes with constants only")
    end = join(node, ends)
    return dataclasses.replace(end, writers=(*end.writers, *writers))


def join(node: ir.Node, ends: list[End]) -> End:
    """Branches that must all take up the same factor."""
    first = ends[0].layout
    diagonal = any(end.layout.diagonal for end in ends)
    for end in ends[1:]:
        same_mixing = diagonal or np.array_equal(first.mixing, end.layout.mixing)
        if not same_mixing or not np.array_equal(first.ties, end.layout.ties):
            raise BlockedError(f"the branches of {node.op_type} {node.name} ask for different ties")
    writers = tuple(writer for end in ends for writer in end.writers)
    caches = tuple(dict.fromkeys(name for end in ends for name in end.caches))
    return End(writers, dataclasses.replace(first, diagonal=diagonal), caches)


def _writer(walk: Walk, node: ir.Node, index: int, layout: Layout, *, divides: bool = False) -> Writer | None:
    """Return the writer for a broadcast constant operand, None if no carried axis varies in it."""
    shape = constant_shape(node.inputs[index]) or ()
    shift = walk.rank(node.outputs[0]) - len(shape)
    axes = tuple(axis - shift for axis in layout.axes)
    if all(axis < 0 or shape[axis] == 1 for axis in axes):
        return None
    if any(axis < 0 or shape[axis] not in (1, size) for axis, size in zip(axes, layout.sizes, strict=True)):
        raise BlockedError(f"the constant of {node.op_type} {node.name} does not lie along the channels")
    return Writer(node, index, axes, layout.sizes, layout.position, -1.0 if divides else 1.0)


def _constant_operand(node: ir.Node) -> int | None:
    return next((index for index in (1, 0) if constant_shape(node.inputs[index]) is not None), None)


def _check_same_channels(walk: Walk, node: ir.Node, index: int, layout: Layout) -> None:
    """The operand must hold every channel itself, not be broadcast along them."""
    value = node.inputs[index]
    shape = None if value is None else walk.shapes[value]
    shift = walk.rank(node.outputs[0]) - walk.rank(value)
    for axis, size in zip(layout.axes, layout.sizes, strict=True):
        if shape is None or axis < shift or shape[axis - shift].value not in (size, None):
            raise BlockedError(f"{node.op_type} {node.name} broadcasts along the channels")


def _is_broadcast(walk: Walk, node: ir.Node, index: int, layout: Layout) -> bool:
    """Whether an operand holds one number for all channels."""
    value = node.inputs[index]
    shape = None if value is None else walk.shapes[value]
    if shape is None:
        return False
    shift = walk.rank(node.outputs[0]) - len(shape)
    return all(axis < shift or shape[axis - shift].value == 1 for axis in layout.axes)


def _moved_rank(walk: Walk, node: ir.Node, index: int, layout: Layout) -> Layout:
    """Renumber the axes for an operand of lower rank."""
    shift = walk.rank(node.outputs[0]) - walk.rank(node.inputs[index])
    return dataclasses.replace(layout, axes=tuple(axis - shift for axis in layout.axes))
