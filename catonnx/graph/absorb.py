"""What the graph before a site can take up at no run-time cost, and where it is written.

The walk starts at a site's activation and goes back along the channels. Each row of `RULES` knows one kind of producer:
it either ends the walk by naming the constants into which a factor can be written, or hands on to the producer's inputs
with the layout moved across, or stops with a reason. A value on the way that anything else reads stops the walk too,
because that reader would see changed numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from catonnx.graph.constants import FLOATS, constant_shape, constant_type
from catonnx.graph.layout import Layout, part_of, through_expand, through_product, through_reshape, through_transpose
from catonnx.graph.shapes import Shapes
from catonnx.graph.writers import Writer

_SHAPE_READERS = frozenset({"Shape", "Size"})
_LONGEST_PATH = 100
"""Nodes on a way back; a longer one is given up before Python's stack is."""

_NORMS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
"""Norms with a scale along the last axis: the inputs that a scaling multiplies."""


@dataclasses.dataclass(frozen=True, eq=False)
class Absorption:
    """What can be taken up before a site.

    Attributes:
        writers: Where a factor is written; empty if nothing can be taken up.
        width: Widest block that may be mixed: 1 for a scaling, 0 for nothing.
        ties: Channels with equal numbers must be treated alike.  # (d,)
        path: Operators between the site and the writers, for people.
        caches: Graph outputs (attention caches) whose content is in the changed basis afterwards.
        reason: Why nothing, or nothing more, can be taken up.
    """

    writers: tuple[Writer, ...]
    width: int
    ties: np.ndarray
    path: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    reason: str = ""

    def block_ties(self, block: int) -> np.ndarray:
        """Return for each of the d / block blocks the number of the set of blocks that it is tied to."""
        _, numbers = np.unique(self.ties.reshape(-1, block), axis=0, return_inverse=True)
        return numbers.reshape(-1)


class _BlockedError(Exception):
    """The walk ends here; the text says why."""


@dataclasses.dataclass
class _Walk:
    shapes: Shapes
    change_caches: bool
    path: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _End:
    """A branch of the walk that arrived: what it writes, the layout it arrived with, and the caches on the way."""

    writers: tuple[Writer, ...]
    layout: Layout
    caches: tuple[str, ...] = ()


def trace(
    site: ir.Value, width: int, readers: frozenset[ir.Node], shapes: Shapes, *, change_caches: bool = True
) -> Absorption:
    """Find what can be absorbed before a site.

    Args:
        site: The activation that the linears read, channels on its last axis.
        width: Number of channels.
        readers: The linears that will undo the factor in their weights; any other reader of the numbers forbids a
            change.
        shapes: Shapes of the graph.
        change_caches: Whether attention caches (a graph input joined with new rows into a graph output) may change
            their basis.

    Returns:
        What was found; `width` 0 and a reason if nothing.
    """
    nothing = np.arange(width)
    shape = shapes[site]
    rank = 2 if shape is None else len(shape)
    walk = _Walk(shapes, change_caches)
    layout = Layout.of_site(rank, width)
    try:
        _check_readers(walk, site, readers, layout)
        end = _back(walk, site, layout)
        _check_types(end.writers)
    except _BlockedError as stop:
        return Absorption((), 0, nothing, tuple(walk.path), (), str(stop))
    block = end.layout.block_width
    reason = (
        "only a scaling passes there" if block == 1 else ("" if block == width else f"mixing ends at {block} channels")
    )
    return Absorption(end.writers, block, end.layout.ties, tuple(walk.path), end.caches, reason)


def _check_readers(walk: _Walk, value: ir.Value, allowed: frozenset[ir.Node], layout: Layout) -> None:
    if value.is_graph_output() and not (walk.change_caches and layout.attended and _is_cache(value)):
        raise _BlockedError(f"{value.name} is also an output of the graph")
    for reader in value.consumers():
        if _reads_shape_only(reader):
            continue
        if reader not in allowed:
            raise _BlockedError(f"also read by {reader.op_type} {reader.name}")
        if sum(operand is value for operand in reader.inputs) > 1:
            raise _BlockedError(f"{reader.op_type} {reader.name} reads the value twice")


def _reads_shape_only(reader: ir.Node) -> bool:
    return reader.op_type in _SHAPE_READERS and not reader.domain


def _check_types(writers: tuple[Writer, ...]) -> None:
    for writer in writers:
        dtype = constant_type(writer.node.inputs[writer.index])
        if dtype not in FLOATS:
            raise _BlockedError(f"the constant of {writer.node.op_type} {writer.node.name} is of type {dtype}")


def _is_cache(value: ir.Value) -> bool:
    """Whether a graph output is a graph input with new rows joined to it, and the input is used for nothing else."""
    node = value.producer()
    if node is None or node.op_type != "Concat":
        return False
    states = [operand for operand in node.inputs if operand is not None and operand.is_graph_input()]
    return len(states) == 1 and all(reader is node or _reads_shape_only(reader) for reader in states[0].consumers())


def _back(walk: _Walk, value: ir.Value, layout: Layout) -> _End:
    """Ask the producer of `value`; its readers have been checked."""
    node = value.producer()
    if node is None:
        raise _BlockedError("comes straight from " + ("a graph input" if value.is_graph_input() else "a constant"))
    walk.path.append(node.op_type)
    if len(walk.path) > _LONGEST_PATH:
        raise _BlockedError(f"the way back is longer than {_LONGEST_PATH} nodes")
    if node.op_type in _NORMS and node.domain in ("", "com.microsoft") and value is node.outputs[0]:
        return _norm(walk, node, layout)
    if node.op_type == "Split" and not node.domain:
        return _split(walk, node, layout, value)
    rule = None if node.domain else RULES.get(node.op_type)
    if rule is None or value is not node.outputs[0]:
        raise _BlockedError(f"{node.op_type} takes up nothing")
    return rule(walk, node, layout)


def _into(walk: _Walk, node: ir.Node, index: int, layout: Layout | None) -> _End:
    """Go on into one input of `node`."""
    value = node.inputs[index]
    if value is None or layout is None:
        raise _BlockedError(f"the channels cannot be followed through {node.op_type} {node.name}")
    _check_readers(walk, value, frozenset({node}), layout)
    return _back(walk, value, layout)


def _rank(walk: _Walk, value: ir.Value | None) -> int:
    shape = None if value is None else walk.shapes[value]
    if shape is None:
        raise _BlockedError(f"the shape of {value.name if value else 'an input'} is not known")
    return len(shape)


def _writer(walk: _Walk, node: ir.Node, index: int, layout: Layout, *, divides: bool = False) -> Writer | None:
    """Return the writer for a broadcast constant operand, None if no carried axis varies in it."""
    shape = constant_shape(node.inputs[index]) or ()
    shift = _rank(walk, node.outputs[0]) - len(shape)
    axes = tuple(axis - shift for axis in layout.axes)
    if all(axis < 0 or shape[axis] == 1 for axis in axes):
        return None
    if any(axis < 0 or shape[axis] not in (1, size) for axis, size in zip(axes, layout.sizes, strict=True)):
        raise _BlockedError(f"the constant of {node.op_type} {node.name} does not lie along the channels")
    return Writer(node, index, axes, layout.sizes, layout.position, divides)


def _constant_operand(node: ir.Node) -> int | None:
    return next((index for index in (1, 0) if constant_shape(node.inputs[index]) is not None), None)


def _check_same_channels(walk: _Walk, node: ir.Node, index: int, layout: Layout) -> None:
    """The operand must hold every channel itself, not be broadcast along them."""
    value = node.inputs[index]
    shape = None if value is None else walk.shapes[value]
    shift = _rank(walk, node.outputs[0]) - _rank(walk, value)
    for axis, size in zip(layout.axes, layout.sizes, strict=True):
        if shape is None or axis < shift or shape[axis - shift].value not in (size, None):
            raise _BlockedError(f"{node.op_type} {node.name} broadcasts along the channels")


def _norm(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    attribute = node.attributes.get("axis")
    rank = _rank(walk, node.outputs[0])
    if attribute is not None and attribute.as_int() % rank != rank - 1:
        raise _BlockedError(f"{node.op_type} {node.name} normalizes over more than the last axis")
    if layout.axes != (rank - 1,):
        raise _BlockedError(f"the channels are not the normalized axis of {node.op_type} {node.name}")
    present = [i for i in _NORMS[node.op_type] if i < len(node.inputs) and node.inputs[i] is not None]
    if any(constant_shape(node.inputs[index]) != layout.sizes for index in present):
        raise _BlockedError(f"the scale of {node.op_type} {node.name} is not a constant vector")
    writers = (Writer(node, index, (0,), layout.sizes, layout.position) for index in present)
    return _End(tuple(writers), layout.only_scale())


def _linear(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    """A constant weight takes any factor, and so does the bias of a Gemm; else this is probabilities times values."""
    shape = constant_shape(node.inputs[1])
    if shape is None or len(shape) != 2:
        return _product(walk, node, layout)
    attribute = node.attributes.get("transB")
    axis = 0 if attribute is not None and attribute.as_int() else 1
    if layout.axes != (_rank(walk, node.outputs[0]) - 1,) or layout.sizes != (shape[axis],):
        raise _BlockedError(f"the channels are not the outputs of {node.op_type} {node.name}")
    writers = [Writer(node, 1, (axis,), layout.sizes, layout.position)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant_shape(node.inputs[2])
        if bias is None:
            raise _BlockedError(f"the bias of {node.name} is not constant")
        if bias and bias[-1] == layout.sizes[0]:
            writers.append(Writer(node, 2, (len(bias) - 1,), layout.sizes, layout.position))
        else:
            raise _BlockedError(f"the bias of {node.name} is broadcast along the channels")
    return _End(tuple(writers), layout)


def _product(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    if node.op_type != "MatMul" or constant_shape(node.inputs[1]) is not None:
        raise _BlockedError(f"{node.op_type} {node.name} has no constant 2-D weight")
    rank = _rank(walk, node.outputs[0])
    moved = through_product(layout, rank)
    before, after = walk.shapes[node.inputs[1]], walk.shapes[node.outputs[0]]  # type: ignore[index]
    if moved is None or before is None or after is None or not 2 <= len(before) <= len(after):
        raise _BlockedError(f"the channels are not the columns of the right operand of {node.name}")
    # The row axis differs (query against key length) but carries no channels, so only the others matter here.
    return _into(walk, node, 1, through_expand(moved, before, after))


def _mul(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    constant = _constant_operand(node)
    if constant is None:
        return _gate(walk, node, layout)
    if node.op_type == "Div" and constant == 0:
        raise _BlockedError(f"{node.name} divides by the activation")
    writer = _writer(walk, node, constant, layout, divides=node.op_type == "Div")
    if writer is not None:
        return _End((writer,), layout.only_scale())
    _check_same_channels(walk, node, 1 - constant, layout)
    return _into(walk, node, 1 - constant, _moved_rank(walk, node, 1 - constant, layout))


def _gate(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    """A product of two activations: a scaling of one branch scales the product."""
    reasons = []
    branches = (1, 0) if node.op_type == "Mul" else (0,)
    for index in branches:
        length = len(walk.path)
        try:
            _check_same_channels(walk, node, index, layout)
            end = _into(walk, node, index, _moved_rank(walk, node, index, layout).only_scale())
        except _BlockedError as stop:
            reasons.append(str(stop))
            del walk.path[length:]
        else:
            return end
    raise _BlockedError(f"no branch of {node.op_type} {node.name} takes a scaling: " + "; ".join(reasons))


def _moved_rank(walk: _Walk, node: ir.Node, index: int, layout: Layout) -> Layout:
    """Renumber the axes for an operand of lower rank."""
    shift = _rank(walk, node.outputs[0]) - _rank(walk, node.inputs[index])
    return dataclasses.replace(layout, axes=tuple(axis - shift for axis in layout.axes))


def _add(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    constant = _constant_operand(node)
    if constant is not None:
        writer = _writer(walk, node, constant, layout)
        if writer is None:
            raise _BlockedError(f"{node.op_type} {node.name} adds one number to all channels")
        _check_same_channels(walk, node, 1 - constant, layout)
        end = _into(walk, node, 1 - constant, _moved_rank(walk, node, 1 - constant, layout))
        return dataclasses.replace(end, writers=(*end.writers, writer))
    ends = []
    for index in (0, 1):
        _check_same_channels(walk, node, index, layout)
        ends.append(_into(walk, node, index, _moved_rank(walk, node, index, layout)))
    return _join(node, ends)


def _join(node: ir.Node, ends: list[_End]) -> _End:
    """Branches that must all take up the same factor."""
    first = ends[0].layout
    diagonal = any(end.layout.diagonal for end in ends)
    for end in ends[1:]:
        same_mixing = diagonal or np.array_equal(first.mixing, end.layout.mixing)
        if not same_mixing or not np.array_equal(first.ties, end.layout.ties):
            raise _BlockedError(f"the branches of {node.op_type} {node.name} ask for different ties")
    writers = tuple(writer for end in ends for writer in end.writers)
    caches = tuple(dict.fromkeys(name for end in ends for name in end.caches))
    return _End(writers, dataclasses.replace(first, diagonal=diagonal), caches)


def _same(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    return _into(walk, node, 0, layout)


def _cast(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    if ir.DataType(node.attributes["to"].as_int()) not in FLOATS:
        raise _BlockedError(f"{node.name} casts to a type that cannot be scaled")
    return _into(walk, node, 0, layout)


def _positive(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    """Relu(s x) = s Relu(x) for s > 0, and the scales of CAT are positive."""
    return _into(walk, node, 0, layout.only_scale())


def _transpose(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    rank = _rank(walk, node.outputs[0])
    attribute = node.attributes.get("perm")
    order = list(reversed(range(rank))) if attribute is None else list(attribute.as_ints())
    return _into(walk, node, 0, through_transpose(layout, order))


def _reshape(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    before, after = walk.shapes[node.inputs[0]], walk.shapes[node.outputs[0]]  # type: ignore[index]
    if before is None or after is None:
        raise _BlockedError(f"the shapes around {node.op_type} {node.name} are not known")
    known = list(after)
    for axis, size in zip(layout.axes, layout.sizes, strict=True):
        known[axis] = dataclasses.replace(known[axis], coefficient=size, symbols=())
    return _into(walk, node, 0, through_reshape(layout, before, tuple(known)))


def _expand(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    before, after = walk.shapes[node.inputs[0]], walk.shapes[node.outputs[0]]  # type: ignore[index]
    if before is None or after is None:
        raise _BlockedError(f"the shapes around {node.op_type} {node.name} are not known")
    return _into(walk, node, 0, through_expand(layout, before, after))


def _concat(walk: _Walk, node: ir.Node, layout: Layout) -> _End:
    """Rows joined to rows; a joined graph input is a cache, which comes back in the basis it was handed out in."""
    rank = _rank(walk, node.outputs[0])
    if node.attributes["axis"].as_int() % rank in layout.axes:
        raise _BlockedError(f"{node.name} joins channels")
    ends, caches = [], []
    for index, value in enumerate(node.inputs):
        if (
            value is not None
            and value.is_graph_input()
            and node.outputs[0].is_graph_output()
            and _is_cache(node.outputs[0])
        ):
            caches.append(str(node.outputs[0].name))
        else:
            ends.append(_into(walk, node, index, layout))
    if not ends:
        raise _BlockedError(f"{node.name} joins graph inputs only")
    end = _join(node, ends)
    return dataclasses.replace(end, caches=(*end.caches, *caches))


def _split(walk: _Walk, node: ir.Node, layout: Layout, value: ir.Value) -> _End:
    """One part of a fused projection: its channels are a slice of the whole, the other parts stay as they are."""
    shape = walk.shapes[node.inputs[0]]  # type: ignore[index]
    rank = _rank(walk, node.inputs[0])
    attribute = node.attributes.get("axis")
    axis = (0 if attribute is None else attribute.as_int()) % rank
    lengths = [None if part is None else part[axis].value for part in map(walk.shapes.__getitem__, node.outputs)]
    if shape is None or axis not in layout.axes or None in lengths:
        raise _BlockedError(f"{node.name} does not split channels of known number")
    offset = sum(length or 0 for length in lengths[: list(node.outputs).index(value)])
    return _into(walk, node, 0, part_of(layout, axis, offset, sum(length or 0 for length in lengths)))


RULES: dict[str, Callable[[_Walk, ir.Node, Layout], _End]] = {
    "MatMul": _linear,
    "Gemm": _linear,
    "Mul": _mul,
    "Div": _mul,
    "Add": _add,
    "Sub": _add,
    "Relu": _positive,
    "LeakyRelu": _positive,
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Unsqueeze": _reshape,
    "Squeeze": _reshape,
    "Expand": _expand,
    "Concat": _concat,
}
"""The table of producers, beside `_NORMS` and Split: a new architecture needs a row here."""
