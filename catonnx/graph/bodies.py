"""Graphs inside of nodes: the branches of If, the bodies of Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that a node holds, not those inside of these."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def holders(graph: ir.Graph) -> dict[ir.Graph, ir.Node]:
    """Return every graph inside of a graph, with the node that holds it."""
    return {body: node for node in ir.traversal.RecursiveGraphIterator(graph) for body in bodies(node)}


def make_names_unique(graph: ir.Graph) -> None:
    """Rename what lies in a body and has the name of something else, in a sibling body say; the main graph stays.

    Args:
        graph: Names are unique in each of its graphs already.
    """
    values = {value.name for value in _values(graph)}
    nodes = {node.name for node in graph}
    for body in graph.subgraphs():
        for value in list(_values(body)):
            value.name = _free(value.name or "", values)
            values.add(value.name)
        for node in body:
            node.name = _free(node.name or "", nodes)
            nodes.add(node.name)


def remove_unused_initializers(graph: ir.Graph) -> None:
    """Remove initializers of bodies that nothing reads: a pass that replaces a weight leaves it there."""
    for body in graph.subgraphs():
        for name, value in list(body.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del body.initializers[name]


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield every value of a graph once, but for outputs of nodes that are left out."""
    yield from graph.inputs
    yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    yield from (value for node in graph for value in node.outputs if value.name)


def _free(wanted: str, taken: set[str | None]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name
