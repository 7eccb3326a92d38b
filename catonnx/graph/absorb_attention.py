"""Rules for attention as one operator: its output is, head by head, a linear map of the rows of V.

    V [batch, rows, shared * width] -> softmax(Q K^T) V -> [batch, rows, heads * width]

Query head h reads the values of head h // (heads / shared), whose copies are tied. Whatever acts on the scores alone
(masks, softcap, rotary embedding, sinks) does not matter here; an input or attribute that is not known to do only that
is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from catonnx.graph.absorb_walk import PAST_VALUES, PRESENT_VALUES, BlockedError, End, Walk, is_cache, reads_shape_only
from catonnx.graph.constants import constant_shape
from catonnx.graph.layout import Layout, part_of, through_heads
from catonnx.graph.writers import Writer


@dataclasses.dataclass(frozen=True)
class _Operator:
    """What an attention operator may have, and where.

    Attributes:
        heads: Attribute with the number of query heads.
        shared: Attribute with the number of heads of keys and values; empty if it is the same.
        inputs: Inputs that are followed or act on the scores only.
        attributes: Attributes that act on the scores only.
        refused: Names of other inputs, for people.
    """

    heads: str
    shared: str
    inputs: frozenset[int]
    attributes: frozenset[str]
    refused: Mapping[int, str] = dataclasses.field(default_factory=dict)


_VALUES = 2
"""Input of all operators but com.microsoft.Attention, which makes V itself."""

_OPERATORS: Mapping[tuple[str, str], _Operator] = {
    ("", "Attention"): _Operator(
        "q_num_heads",
        "kv_num_heads",
        frozenset(range(7)),
        frozenset({"is_causal", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"}),
    ),
    ("com.microsoft", "GroupQueryAttention"): _Operator(
        "num_heads",
        "kv_num_heads",
        frozenset({*range(12), 14, 15}),
        frozenset(
            (
                "causal do_rotary local_window_size qk_norm_epsilon qk_output rotary_interleaved scale "
                "sliding_window_cache smooth_softmax softcap"
            ).split()
        ),
        refused={12: "k_scale, a quantized cache", 13: "v_scale, a quantized cache"},
    ),
    ("com.microsoft", "MultiHeadAttention"): _Operator(
        "num_heads",
        "",
        frozenset(range(8)),
        frozenset({"mask_filter_value", "scale", "unidirectional"}),
        refused={8: "past_sequence_length, a shared buffer", 9: "cache_indirection"},
    ),
    ("com.microsoft", "Attention"): _Operator(
        "num_heads",
        "",
        frozenset({0, 1, 2, 3, 5}),
        frozenset(
            "do_rotary mask_filter_value qkv_hidden_sizes rotary_embedding_dim scale unidirectional".split(),
        ),
        refused={4: "past, keys and values in one cache", 6: "past_sequence_length, a shared buffer"},
    ),
}


def attention(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """Attention of the standard, GroupQueryAttention and MultiHeadAttention: on into V, past values being a cache."""
    operator = _checked(node)
    caches = _caches(walk, node)
    if _operand(node, _VALUES) is None:
        end = _into_packed(walk, node, operator, layout)
    else:
        axes = _value_axes(walk, node)
        moved = _into_heads(walk, node, operator, layout, axes)
        writers = _bias_writers(node, moved)
        end = walk.into(node, _VALUES, moved)
        end = dataclasses.replace(end, writers=(*end.writers, *writers))
    return dataclasses.replace(end, caches=(*end.caches, *caches))


def projecting_attention(walk: Walk, node: ir.Node, layout: Layout) -> End:
    """com.microsoft.Attention holds the weight [K, Q + K + V] and the bias of its values, which end the walk."""
    operator = _checked(node)
    if len(node.outputs) > 1 and _is_read(node.outputs[1]):
        raise BlockedError(f"{node.op_type} {node.name} gives out keys and values in one cache")
    moved = _into_heads(walk, node, operator, layout, (2,))
    shape, (width,) = constant_shape(node.inputs[1]), moved.sizes
    if shape is None or len(shape) != 2:
        raise BlockedError(f"the weight of {node.op_type} {node.name} is not a constant matrix")
    attribute = node.attributes.get("qkv_hidden_sizes")
    sizes = [width] * 3 if attribute is None else list(attribute.as_ints())
    if sizes[-1] != width or sum(sizes) != shape[1]:
        raise BlockedError(f"the weight of {node.op_type} {node.name} does not hold {sizes} columns")
    whole = part_of(moved, 2, range(shape[1] - width, shape[1]), shape[1])
    assert whole is not None
    writers = [Writer(node, 1, (1,), whole.sizes, whole.position)]
    if _operand(node, 2) is not None:
        writers.append(_vector_writer(node, 2, whole))
    return End(tuple(writers), moved)


def _checked(node: ir.Node) -> _Operator:
    """Return what the operator may have, having refused whatever else it has."""
    operator = _OPERATORS[node.domain, node.op_type]
    for index, value in enumerate(node.inputs):
        if value is not None and index not in operator.inputs:
            name = operator.refused.get(index, f"input {index}")
            raise BlockedError(f"values are not followed through {node.op_type} {node.name} with {name}")
    for name, attribute in node.attributes.items():
        known = name in operator.attributes or name in (operator.heads, operator.shared)
        if not known and attribute.value not in (0, "NONE"):
            raise BlockedError(f"values are not followed through {node.op_type} {node.name} with {name}")
    return operator


def _into_heads(walk: Walk, node: ir.Node, operator: _Operator, layout: Layout, axes: tuple[int, ...]) -> Layout:
    """Return the layout in V, whose channels lie on the last axis or on heads and last: 2 or (1, 3)."""
    rank = walk.rank(node.outputs[0])
    if rank == 4:
        heads, shared = (_length(walk, node, index, 1) for index in (0, _VALUES))
        carried, width = {1, 3}, _length(walk, node, _VALUES, 3)
    else:
        heads = node.attributes.get_int(operator.heads, 0)
        shared = node.attributes.get_int(operator.shared, 0) if operator.shared else heads
        carried, width = {2}, layout.sizes[0] // max(heads, 1)
    moved = through_heads(layout, heads, shared, width, axes) if rank in (3, 4) else None
    if moved is None or not carried.issuperset(layout.axes):
        raise BlockedError(f"the channels are not the heads of {node.op_type} {node.name}")
    return moved


def _value_axes(walk: Walk, node: ir.Node) -> tuple[int, ...]:
    rank = walk.rank(node.inputs[_VALUES])
    if rank not in (3, 4):
        raise BlockedError(f"the values of {node.op_type} {node.name} have {rank} axes")
    return (2,) if rank == 3 else (1, 3)


def _into_packed(walk: Walk, node: ir.Node, operator: _Operator, layout: Layout) -> End:
    """Q, K and V side by side in one input, as GroupQueryAttention takes them."""
    if node.op_type != "GroupQueryAttention" or _operand(node, 1) is not None:
        raise BlockedError(f"values packed with keys are not followed through {node.op_type} {node.name}")
    moved = _into_heads(walk, node, operator, layout, (2,))
    (shared,) = moved.sizes
    start = layout.sizes[0] + shared  # Q has the width of the output, K that of V
    return walk.into(node, 0, part_of(moved, 2, range(start, start + shared), start + shared))


def _bias_writers(node: ir.Node, moved: Layout) -> list[Writer]:
    """MultiHeadAttention adds one vector to Q, K and V, side by side; its last part belongs to V."""
    bias = _operand(node, 3) if node.op_type == "MultiHeadAttention" else None
    if bias is None:
        return []
    shape = constant_shape(bias)
    if moved.axes != (2,) or shape is None or len(shape) != 1 or shape[0] < moved.sizes[0]:
        raise BlockedError(f"the bias of {node.op_type} {node.name} is not a constant vector for values in rows")
    whole = part_of(moved, 2, range(shape[0] - moved.sizes[0], shape[0]), shape[0])
    assert whole is not None
    return [_vector_writer(node, 3, whole)]


def _vector_writer(node: ir.Node, index: int, whole: Layout) -> Writer:
    if constant_shape(node.inputs[index]) != whole.sizes:
        raise BlockedError(f"the bias of {node.op_type} {node.name} is not a constant vector")
    return Writer(node, index, (0,), whole.sizes, whole.position)


def _caches(walk: Walk, node: ir.Node) -> tuple[str, ...]:
    """Return the cache of values, which comes back in the basis it was handed out in; refuse what is none."""
    past = _operand(node, PAST_VALUES[node.domain, node.op_type])
    present = node.outputs[PRESENT_VALUES] if len(node.outputs) > PRESENT_VALUES else None
    if present is None or not _is_read(present):
        if past is not None:
            raise BlockedError(f"{node.op_type} {node.name} does not give back its past values")
        return ()
    reader = next((reader for reader in present.consumers() if not reads_shape_only(reader)), None)
    if reader is not None:
        raise BlockedError(f"{present.name} is also read by {reader.op_type} {reader.name}")
    if not walk.change_caches or not is_cache(present):
        raise BlockedError(f"{present.name} is also an output of the graph")
    return (str(present.name),)


def _is_read(value: ir.Value) -> bool:
    """Whether anybody sees the numbers of a value."""
    return value.is_graph_output() or any(not reads_shape_only(reader) for reader in value.consumers())


def _operand(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _length(walk: Walk, node: ir.Node, index: int, axis: int) -> int:
    value = node.inputs[index]
    shape = None if value is None else walk.shapes[value]
    length = None if shape is None or len(shape) <= axis else shape[axis].value
    if length is None:
        raise BlockedError(f"the heads of {node.op_type} {node.name} are not of known number and width")
    return length
