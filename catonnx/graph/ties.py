"""Constants that several nodes share: a table of embedding and output head, or weights of layers that are alike.

The embedding is Gather(table [V, d], tokens), the head MatMul(x, Transpose(table)) or Gemm(x, table, transB=1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import onnx_ir as ir

from catonnx.graph.constants import constant_shape
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import Site

_PRODUCTS = frozenset({"MatMul", "Gemm"})


@dataclasses.dataclass(frozen=True, eq=False)
class TiedTable:
    """A constant [V, d] that nobody else reads.

    Attributes:
        product: Multiplies activations [..., d] by its transpose.
        lookups: Gather rows of it, in graph order.
        ranks: Number of axes of the indices of each.
    """

    product: ir.Node
    lookups: tuple[ir.Node, ...]
    ranks: tuple[int, ...]


def tied_tables(graph: ir.Graph) -> tuple[TiedTable, ...]:
    """Find the tables of a graph that has not been canonicalized yet.

    Args:
        graph: A sorted graph.
    """
    shapes, tables = Shapes(graph), []
    for table in graph.initializers.values():
        if len(constant_shape(table) or ()) != 2 or table.is_graph_input():
            continue
        found = _readers(table, graph)
        if found is None or len(found[0]) != 1 or not found[1]:
            continue
        (product,), lookups = found[0], tuple(node for node in graph if node in found[1])
        indices = [shapes[node.inputs[1]] for node in lookups if node.inputs[1] is not None]
        ranks = tuple(len(shape) for shape in indices if shape is not None)
        if len(ranks) == len(lookups):
            tables.append(TiedTable(product, lookups, ranks))
    return tuple(tables)


def shared_weights(graph: ir.Graph) -> dict[ir.Node, int]:
    """Return products by a constant that another product reads in the same way -> a number for each such constant.

    Args:
        graph: A graph that has not been canonicalized yet.
    """
    readers: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in graph:
        origin = _origin(node) if node.op_type in _PRODUCTS and node.domain in ("", "ai.onnx") else None
        if origin is not None:
            readers.setdefault(origin, []).append(node)
    several = [nodes for nodes in readers.values() if len(nodes) > 1]
    return {node: number for number, nodes in enumerate(several) for node in nodes}


def shared_inside(sites: Iterable[Site], first: int) -> dict[ir.Node, int]:
    """Return the same of linears in bodies, which go on to share weights when they are canonical.

    Args:
        sites: In bodies, canonicalized.
        first: The first number.
    """
    readers: dict[ir.Value | None, list[ir.Node]] = {}
    for linear in (linear for site in sites for linear in site.selected):
        readers.setdefault(linear.node.inputs[1], []).append(linear.node)
    several = [nodes for nodes in readers.values() if len(nodes) > 1]
    return {node: number for number, nodes in enumerate(several, first) for node in nodes}


def _origin(node: ir.Node) -> tuple[object, ...] | None:
    """Return the initializer that a product multiplies by, and what is done to it; None if there is none."""
    if len(constant_shape(node.inputs[1]) or ()) != 2:
        return None
    value, turned, casts = node.inputs[1], bool(node.attributes.get_int("transB", 0)), []
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "Cast":
            casts.append(producer.attributes["to"].as_int())
        turned ^= producer.op_type == "Transpose" and _swaps(producer)
        value = producer.inputs[0] if producer.inputs else None
    return None if value is None else (value, turned, *casts, node.attributes.get_float("alpha", 1.0))


def _readers(table: ir.Value, graph: ir.Graph) -> tuple[set[ir.Node], set[ir.Node]] | None:
    """Return the products by the transpose of a table and the lookups of its rows; None if there is another reader."""
    products, lookups = set[ir.Node](), set[ir.Node]()
    pending = [(table, False)]
    while pending:
        value, turned = pending.pop()
        if value.is_graph_output():
            return None
        for node, index in value.uses():
            if node.graph is not graph or node.domain not in ("", "ai.onnx"):
                return None
            if node.op_type in ("Identity", "Transpose"):
                pending.append((node.outputs[0], turned ^ (node.op_type == "Transpose" and _swaps(node))))
            elif node.op_type == "Gather" and index == 0 and not turned and node.attributes.get_int("axis", 0) == 0:
                lookups.add(node)
            elif node.op_type in _PRODUCTS and index == 1 and _multiplies_by_transpose(node, turned):
                products.add(node)
            else:
                return None
    return products, lookups


def _swaps(node: ir.Node) -> bool:
    order = node.attributes.get("perm")
    return order is None or list(order.as_ints()) == [1, 0]


def _multiplies_by_transpose(node: ir.Node, turned: bool) -> bool:
    """Whether a MatMul or Gemm multiplies by W^T and nothing more, W what it reads turned or not."""
    if node.attributes.get_float("alpha", 1.0) != 1:
        return False
    return turned ^ bool(node.attributes.get_int("transB", 0))
