"""Which producer takes what, and how: the table of what the graph before a site can absorb.

A rule knows one kind of producer. It either ends the walk by naming the constants into which a factor can be written,
or hands on to the producer's inputs with the layout moved across, or stops with a reason. A new architecture needs a
row here, not a new pass.

| producer | scaling, mixing (`RULES`) | permutation |
| --- | --- | --- |
| MatMul, Gemm with a constant weight | any, ends here | the same |
| norms | a scaling, ends in their scale | none: the residual stream would have to follow |
| product or quotient of two activations | a scaling, into one branch | into all branches |
| any other function of each number | Relu and LeakyRelu a positive scaling, powers its root | any |
| heads, probabilities times values, joins and parts | moved across, within a head | the same |
| attention as one operator | moved across to V, within a head, tied where heads share values | the same |
"""

from __future__ import annotations

import dataclasses
from functools import partial

import onnx_ir as ir

from catonnx.graph.absorb_attention import attention, projecting_attention
from catonnx.graph.absorb_parts import concat, gather, slice_, split
from catonnx.graph.absorb_pointwise import (
    CONTRIB_POINTWISE,
    POINTWISE,
    any_function,
    positive_function,
    power,
    product_or_quotient,
    sum_or_difference,
)
from catonnx.graph.absorb_walk import BlockedError, End, Rule, Walk
from catonnx.graph.constants import FLOATS, constant_shape
from catonnx.graph.layout import Layout, through_expand, through_product, through_reshape, through_transpose
from catonnx.graph.writers import Writer

NORMS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
"""Norms with a scale along the last axis: the inputs that a scaling multiplies."""


def _norm(walk: Walk, node: ir.Node, layout: Layout) -> End:
    attribute = node.attributes.get("axis")
    rank = walk.rank(node.outputs[0])
    if attribute is not None and attribute.as_int() % rank != rank - 1:
        raise BlockedError(f"{node.op_type} {node.name} normalizes over more than the last axis")
    if layout.axes != (rank - 1,):
        raise BlockedError(f"the channels are not the normalized axis of {node.op_type} {node.name}")
    present = [i for i in NORMS[node.op_type] if i < len(node.inputs) and node.inputs[i] is not None]
    if any(constant_shape(node.inputs[index]) != layout.sizes for index in present):
        raise BlockedError(f"the scale of {node.op_type} {node.name} is not a constant vector")
    writers = (Writer(node, index, (0,), layout.sizes, layout.position) for index in present)
    return End(tuple(writers), layout.only_scale())


def _linear(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """A constant weight takes any factor, and so does the bias of a Gemm; else this is probabilities times values."""
    shape = constant_shape(node.inputs[1])
    if shape is None or len(shape) != 2:
        return _product(walk, node, layout)
    attribute = node.attributes.get("transB")
    axis = 0 if attribute is not None and attribute.as_int() else 1
    if layout.axes != (walk.rank(node.outputs[0]) - 1,) or layout.sizes != (shape[axis],):
        raise BlockedError(f"the channels are not the outputs of {node.op_type} {node.name}")
    writers = [Writer(node, 1, (axis,), layout.sizes, layout.position)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant_shape(node.inputs[2])
        if bias is None:
            raise BlockedError(f"the bias of {node.name} is not constant")
        if bias and bias[-1] == layout.sizes[0]:
            writers.append(Writer(node, 2, (len(bias) - 1,), layout.sizes, layout.position))
        else:
            raise BlockedError(f"the bias of {node.name} is broadcast along the channels")
    return End(tuple(writers), layout)


def _product(walk: Walk, node: ir.Node, layout: Layout) -> End:
    if node.op_type != "MatMul" or constant_shape(node.inputs[1]) is not None:
        raise BlockedError(f"{node.op_type} {node.name} has no constant 2-D weight")
    rank = walk.rank(node.outputs[0])
    moved = through_product(layout, rank)
    before, after = walk.shapes[node.inputs[1]], walk.shapes[node.outputs[0]]  # type: ignore[index]
    if moved is None or before is None or after is None or not 2 <= len(before) <= len(after):
        raise BlockedError(f"the channels are not the columns of the right operand of {node.name}")
    # The row axis differs (query against key length) but carries no channels, so only the others matter here.
    return walk.into(node, 1, through_expand(moved, before, after))


def _same(walk: Walk, node: ir.Node, layout: Layout) -> End:
    return walk.into(node, 0, layout)


def _cast(walk: Walk, node: ir.Node, layout: Layout) -> End:
    if ir.DataType(node.attributes["to"].as_int()) not in FLOATS:
        raise BlockedError(f"{node.name} casts to a type that cannot be scaled")
    return walk.into(node, 0, layout)


def _transpose(walk: Walk, node: ir.Node, layout: Layout) -> End:
    rank = walk.rank(node.outputs[0])
    attribute = node.attributes.get("perm")
    order = list(reversed(range(rank))) if attribute is None else list(attribute.as_ints())
    return walk.into(node, 0, through_transpose(layout, order))


def _reshape(walk: Walk, node: ir.Node, layout: Layout) -> End:
    before, after = walk.shapes[node.inputs[0]], walk.shapes[node.outputs[0]]  # type: ignore[index]
    if before is None or after is None:
        raise BlockedError(f"the shapes around {node.op_type} {node.name} are not known")
    known = list(after)
    for axis, size in zip(layout.axes, layout.sizes, strict=True):
        if axis not in layout.merged:
            known[axis] = dataclasses.replace(known[axis], coefficient=size, symbols=())
    return walk.into(node, 0, through_reshape(layout, before, tuple(known)))


def _expand(walk: Walk, node: ir.Node, layout: Layout) -> End:
    before, after = walk.shapes[node.inputs[0]], walk.shapes[node.outputs[0]]  # type: ignore[index]
    if before is None or after is None:
        raise BlockedError(f"the shapes around {node.op_type} {node.name} are not known")
    return walk.into(node, 0, through_expand(layout, before, after))


RULES: dict[str, Rule] = {
    "MatMul": _linear,
    "Gemm": _linear,
    "Mul": product_or_quotient,
    "Div": product_or_quotient,
    "Add": sum_or_difference,
    "Sub": sum_or_difference,
    "Pow": power,
    "Relu": positive_function,
    "LeakyRelu": positive_function,
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Unsqueeze": _reshape,
    "Squeeze": _reshape,
    "Expand": _expand,
    "Concat": concat,
    "Slice": slice_,
    "Gather": gather,
    "Attention": attention,
}
"""The producers of the ONNX domain, asked for their first output; norms and Split are beside it."""

CONTRIB_RULES: dict[str, Rule] = {
    "GroupQueryAttention": attention,
    "MultiHeadAttention": attention,
    "Attention": projecting_attention,
}
"""The same of ONNX Runtime's own."""


def mixing_rule(node: ir.Node, value: ir.Value) -> Rule | None:
    """Return what a scaling or a mixing of channels has to obey at the producer of a value."""
    is_first = value is node.outputs[0]
    if node.op_type in NORMS and node.domain in ("", "com.microsoft"):
        return _norm if is_first else None
    return _moving_rule(node, value)


def permuting_rule(node: ir.Node, value: ir.Value) -> Rule | None:
    """Return what a permutation has to obey at the producer of a value."""
    known = {"": POINTWISE, "com.microsoft": CONTRIB_POINTWISE}.get(node.domain, frozenset())
    return any_function if node.op_type in known else _moving_rule(node, value)


def _moving_rule(node: ir.Node, value: ir.Value) -> Rule | None:
    if node.op_type == "Split" and not node.domain:
        return partial(split, part=list(node.outputs).index(value))
    rules = {"": RULES, "com.microsoft": CONTRIB_RULES}.get(node.domain, {})
    return rules.get(node.op_type) if value is node.outputs[0] else None
