"""The residual stream: everything that has to turn when one orthogonal matrix Q turns the channels of a model.

    table, W_o, W_down  ->  table Q, W_o Q, W_down Q       what writes into the stream: x becomes x Q
    norm(x)             ->  norm(x Q) = norm(x) Q          with its scale gamma taken out, and its offset beta
    norm(x) gamma W     ->  norm(x) Q (Q^T diag(gamma) W)  what reads it: all linears behind a norm
    beta W              ->  added to what they give out

The stream is found by going from a norm to all values in the same channels, backward and forward, through whatever
turns with its inputs. Everything else that touches such a value must be a constant that can be turned, or give the same
for x and x Q, as a mean of squares does. No norm is looked for as a pattern: a norm of plain operators is a sum of
squares and a product with one number per row, and its scale a product with a constant vector.

A LayerNorm takes off the mean over channels first. It stays as it is for a Q that leaves that mean where it is
(`keeps_mean`), which spares the writers of the stream to be centred and LayerNormalization to be replaced.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from catonnx.graph.residual_parts import Stream, is_norm, is_square
from catonnx.graph.residual_walk import Flood
from catonnx.graph.shapes import Shapes


def find_streams(graph: ir.Graph) -> tuple[Stream, ...]:
    """Find every residual stream of a graph: channels that a norm reads and an Add joins.

    Args:
        graph: A sorted graph.

    Returns:
        In graph order; those that cannot be turned say why.
    """
    shapes = Shapes(graph)
    met: set[ir.Value] = set()
    streams = []
    for seed in _read_by_norms(graph):
        shape = shapes[seed]
        if seed in met or not shape or shape[-1].value in (None, 1):  # one channel cannot be told from a broadcast
            continue
        flood = Flood(graph, shapes, shape[-1].coefficient)
        flood.run(seed, len(shape) - 1)
        met.update(flood.axes)
        if flood.joins:
            streams.append(flood.stream(seed))
    return tuple(streams)


def _read_by_norms(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        value = node.inputs[0] if node.inputs else None
        if is_norm(node) and value is not None:
            yield value
        elif node.op_type == "ReduceMean" and value is not None and (square := value.producer()) is not None:
            squared = square.inputs[0] if is_square(square) else None
            if squared is not None:
                yield squared
