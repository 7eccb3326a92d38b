"""Sites that read rows of one value: the experts of a mixture and the router before them.

    norm -> x -> Reshape -+-> MatMul (router)
                          +-> Gather -> Reshape -> MatMul, MatMul (an expert's gate and up)
                          +-> Gather -> Reshape -> MatMul, MatMul (another's)

Each site holds all channels of x, in order, of some of its rows. A factor that is taken up before x is undone in all of
these linears.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from catonnx.graph.absorb import Absorption, trace
from catonnx.graph.absorb_walk import reads_shape_only
from catonnx.graph.constants import FLOATS
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import INSIDE, Site
from catonnx.graph.windows import slice_ranges


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A value of which sites read rows, and nobody else reads anything.

    Attributes:
        value: Channels on its last axis.
        sites: The sites that read its rows, in graph order.
    """

    value: ir.Value
    sites: tuple[Site, ...]


def trace_sites(sites: Sequence[Site], shapes: Shapes, *, change_caches: bool = True) -> dict[str, Absorption]:
    """Find what can be absorbed before every site that has a selected linear; by name, one object for all that share.

    Args:
        sites: All sites of a graph, those without a selected linear included, in graph order.
        shapes: Its shapes.
        change_caches: As in `trace`.
    """
    sources, shared = find_sources([site for site in sites if not site.inside], shapes), {}
    result: dict[str, Absorption] = {}
    for site in sites:
        source = sources.get(site.name)
        if not site.selected:
            continue
        if site.inside:
            result[site.name] = Absorption((), 0, np.arange(site.width), reason=INSIDE)
            continue
        if source is None:
            readers = frozenset(linear.node for linear in site.linears)
            result[site.name] = trace(site.value, site.width, readers, shapes, change_caches=change_caches)
            continue
        if source not in shared:
            readers = frozenset(source.value.consumers())
            found = trace(source.value, site.width, readers, shapes, change_caches=change_caches)
            shared[source] = dataclasses.replace(found, shared=source.sites)
        result[site.name] = shared[source]
    return result


def find_sources(sites: Sequence[Site], shapes: Shapes) -> dict[str, Source]:
    """Return what several sites read rows of, by the names of these sites; a site that is alone has none.

    Args:
        sites: All sites of a graph, those without a selected linear included, in graph order.
        shapes: Its shapes.
    """
    by_value = {site.value: site for site in sites}
    result: dict[str, Source] = {}
    for origin in dict.fromkeys(_origin(site.value, shapes) for site in sites):
        found = _sites_below(origin, by_value, shapes)
        if found is not None and len(found) > 1:
            ordered = tuple(site for site in sites if site in found)
            result |= dict.fromkeys((site.name for site in ordered), Source(origin, ordered))
    return result


def _origin(value: ir.Value, shapes: Shapes) -> ir.Value:
    """Return the first value on the way to this one that holds the same channels."""
    while (node := value.producer()) is not None and _keeps_channels(node, shapes):
        assert node.inputs[0] is not None
        value = node.inputs[0]
    return value


def _sites_below(value: ir.Value, by_value: Mapping[ir.Value, Site], shapes: Shapes) -> set[Site] | None:
    """Return the sites that read rows of a value; None if anybody else does."""
    pending, found = [value], set()
    while pending:
        current = pending.pop()
        linears = by_value[current].linears if current in by_value else ()
        if current.is_graph_output() or any(linear.node.attributes.get_int("transA", 0) for linear in linears):
            return None
        ours = {linear.node for linear in linears}
        for reader, index in current.uses():
            if reads_shape_only(reader):
                continue
            if index or (reader not in ours and not _keeps_channels(reader, shapes)):
                return None
            if reader not in ours:
                pending.append(reader.outputs[0])
        found |= {by_value[current]} if linears else set()
    return found


def _keeps_channels(node: ir.Node, shapes: Shapes) -> bool:
    """Whether a node gives out rows of its first input, every channel at its place on the last axis."""
    if node.domain or not node.inputs or node.inputs[0] is None:
        return False
    before, after = shapes[node.inputs[0]], shapes[node.outputs[0]]
    if not before or not after or before[-1].value is None or before[-1] != after[-1]:
        return False
    last, axis = len(before) - 1, node.attributes.get_int("axis", 0) % len(before)
    match node.op_type:
        case "Identity" | "Dropout" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Tile":
            return True  # row-major order: a last axis as long as before is the same axis
        case "Cast":
            return ir.DataType(node.attributes["to"].as_int()) in FLOATS
        case "Transpose":
            order = node.attributes.get("perm")
            return order is not None and order.as_ints()[-1] == last
        case "Gather" | "GatherElements":
            return axis != last
        case "Slice":
            cut = slice_ranges(shapes, node)
            return cut is not None and last not in cut
        case "GatherND":
            indices = shapes[node.inputs[1]]  # type: ignore[index]
            depth = None if not indices else indices[-1].value
            return depth is not None and node.attributes.get_int("batch_dims", 0) + depth <= last
    return False
