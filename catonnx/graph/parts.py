"""Cut a model that is too large for memory into parts that run one after the other.

    inputs -> part 0 -> | few values | -> part 1 -> | few values | -> part 2 -> outputs

Unlike the stages of `graph.segments`, parts know nothing of sites: they are runs of consecutive nodes, as many as fit,
and end where little is handed over: between two layers. What follows from constants alone is never handed over: every
part that reads it has its own copy, so that a weight stays beside the product that ONNX Runtime fuses it with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from catonnx.graph.stages import RANDOM, Stage, reads

PART_BYTES = 1 << 27
"""Bytes of constants in one part, unless one node alone reads more: SmolLM2 runs in six parts."""

_NO_TENSOR = ("Sequence", "Optional", "SplitToSequence")
"""Operators that begin so give something that is no tensor and cannot be handed over."""


def in_parts(model: ir.Model, limit: int = PART_BYTES) -> tuple[Stage, ...]:
    """Cut a model into parts.

    Args:
        model: Sorted; it stays as it is, and must not change while the parts are in use.
        limit: Bytes of constants in one part; a node that reads more is alone with what is beside it.

    Returns:
        At least two stages without sites, or nothing: the model is small, or cannot be cut.
    """
    nodes, graph = list(model.graph), model.graph
    if _bytes(graph.initializers.values()) <= limit or any(node.op_type.startswith(_NO_TENSOR) for node in nodes):
        return ()
    cutting = _Cutting(model)
    if any(value in cutting.constants for value in graph.outputs):
        return ()
    bounds = cutting.bounds(limit)
    return cutting.stages(bounds) if len(bounds) > 1 else ()


def _bytes(values: Iterable[ir.Value]) -> int:
    """Return what constants take in memory; of 4-bit codes ONNX Runtime makes copies in other layouts."""
    tensors = (value.const_value for value in values if value.const_value is not None)
    return sum(max(tensor.nbytes, 2 * tensor.size) for tensor in tensors)


class _Cutting:
    """What each node of a model reads, what is constant, and who reads it last."""

    def __init__(self, model: ir.Model) -> None:
        self._model, graph = model, model.graph
        self._reads = {node: tuple(dict.fromkeys(reads(node, graph))) for node in graph}
        self.constants: set[ir.Value] = {value for value in graph.initializers.values() if not value.is_graph_input()}
        self._running: list[ir.Node] = []
        for node, values in self._reads.items():
            if node.op_type not in RANDOM and all(value in self.constants for value in values):
                self.constants.update(node.outputs)
            else:
                self._running.append(node)
        self._last: dict[ir.Value, int] = {}
        for place, node in enumerate(self._running):
            self._last.update((value, place) for value in self._reads[node] if value not in self.constants)

    def bounds(self, limit: int) -> list[int]:
        """Return where each part ends: numbers of running nodes, exclusive."""
        crossing = self._crossing()
        ends, first, best = list[int](), 0, 0
        held: set[ir.Value] = set()
        size, sizes = 0, list[int]()
        place = 0
        while place < len(self._running):
            new = self._initializers(self._running[place]) - held
            grown = size + _bytes(new)
            if grown > limit and place > first:
                # Of the second half of what fits, where least is handed over; the last of several.
                fitting = [end for end in range(first + 1, place + 1) if sizes[end - first - 1] * 2 >= size]
                best = min(reversed(fitting), key=lambda end: crossing[end])
                ends.append(best)
                first, place, size, held, sizes = best, best, 0, set(), []
                continue
            size, place = grown, place + 1
            held |= new
            sizes.append(size)
        return [*ends, len(self._running)]

    def _crossing(self) -> list[int]:
        """Return how many values each cut hands over; cut n lies before running node n."""
        counts = [0] * (len(self._running) + 1)
        for place, node in enumerate(self._running):
            for value in node.outputs:
                for cut in range(place + 1, self._last.get(value, place) + 1):
                    counts[cut] += 1
        return counts

    def _spelled(self, nodes: Sequence[ir.Node]) -> set[ir.Node]:
        """Return the nodes that spell the constants which some nodes read."""
        found, pending = set[ir.Node](), list(nodes)
        while pending:
            producers = (value.producer() for value in self._reads[pending.pop()] if value in self.constants)
            new = {node for node in producers if node is not None} - found
            found |= new
            pending += new
        return found

    def _initializers(self, node: ir.Node) -> set[ir.Value]:
        readers = (node, *self._spelled([node]))
        return {value for reader in readers for value in self._reads[reader] if value.is_initializer()}

    def stages(self, bounds: Sequence[int]) -> tuple[Stage, ...]:
        """Return the parts that end at `bounds`."""
        return tuple(
            self._stage(number, begin, end)
            for number, (begin, end) in enumerate(zip([0, *bounds], bounds, strict=False))
        )

    def _stage(self, number: int, begin: int, end: int) -> Stage:
        running = self._running[begin:end]
        made = dict.fromkeys(value for node in running for value in node.outputs)
        read = dict.fromkeys(value for node in running for value in self._reads[node] if value not in self.constants)
        old = [value for value in read if value not in made]
        wanted = {*running, *self._spelled(running)}
        return Stage(
            number,
            arriving=(),
            fed=(),
            inputs=tuple(old),
            outputs=tuple(value for value in made if self._last.get(value, 0) >= end or value.is_graph_output()),
            ending=tuple(
                str(value.name)
                for value in old
                if self._last[value] < end and value.producer() is not None and not value.is_graph_output()
            ),
            nodes=tuple(node for node in self._reads if node in wanted),
            source=self._model,
        )
