"""Cut a model at its sites, into stages that run one after the other.

    inputs -> stage 0 -> | cut 0 | -> stage 1 -> | cut 1 | -> stage 2 -> ...

Cut g holds the activations of site group g and whatever else later stages read; stage g + 1 begins with the linears of
that group. Sites that do not depend on each other's linears share a group: a chain of linears gives one stage for each.
Nothing behind the last cut is part of any stage, so an output head never runs.

A node runs in the first stage that can run it, unless all that it reads is kept for another reader anyway: then it
waits for its own first reader, and less is handed over. Constants, and what follows from constants alone, are never
handed over: every stage that reads them has its own copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from catonnx.graph.edits import Names
from catonnx.graph.sites import Site
from catonnx.graph.stages import RANDOM, Stage, Tap, reads

_SMALL = frozenset({"Shape", "Size"})
"""Operators that never wait: a few numbers are handed over instead of an activation."""


def cut(model: ir.Model, sites: Sequence[Site]) -> tuple[Stage, ...]:
    """Cut a model at its sites.

    Args:
        model: Sorted; it stays as it is, and must not change while the stages are in use.
        sites: Sites of it, in graph order; those in bodies or without a selected linear are passed over. Their linears
            may read another value than `Site.value` by now, but all selected linears of a site the same one.

    Returns:
        Stage 0, then one stage for each group of sites; the last has nothing to run. Empty if there is no site.

    Raises:
        ValueError: if the selected linears of a site read different values.
    """
    chosen = {_read_by(site): site for site in sites if site.selected and not site.inside}
    return _Schedule(model, chosen).stages() if chosen else ()


def _read_by(site: Site) -> ir.Value:
    values = dict.fromkeys(linear.node.inputs[0] for linear in site.selected)
    value = next(iter(values))
    if len(values) > 1 or value is None:
        names = ", ".join(linear.name for linear in site.selected)
        raise ValueError(
            f"the linears of site {site.name} read {len(values)} different values, and a stage feeds them one; "
            f"whatever is inserted before them must serve all of {names}"
        )
    return value


class _Schedule:
    """Which node runs in which stage.

    Args:
        model: The model.
        taps: What the selected linears of each site read.
    """

    def __init__(self, model: ir.Model, taps: Mapping[ir.Value, Site]) -> None:
        self._model, self._taps = model, taps
        self._linears = {linear.node for site in taps.values() for linear in site.selected}
        self._nodes = self._needed()
        self._reads = {node: tuple(reads(node, model.graph)) for node in self._nodes}
        self._constants: set[ir.Value] = set()
        self._levels = {value: 0 for value in model.graph.inputs if not value.is_initializer()}
        self._first: dict[ir.Node, int] = {}
        for node in self._nodes:
            self._set_level(node)
        self._readers: dict[ir.Value, list[ir.Node]] = {}
        for node in self._first:
            for value in self._live(node):
                self._readers.setdefault(value, []).append(node)
        self._runs = self._placed(self._placed(None))

    def _needed(self) -> list[ir.Node]:
        """Return the nodes that lead to a site, in graph order."""
        pending, needed = list(self._taps), set[ir.Node]()
        while pending:
            node = pending.pop().producer()
            if node is not None and node not in needed:
                needed.add(node)
                pending.extend(reads(node, self._model.graph))
        return [node for node in self._model.graph if node in needed]

    def _set_level(self, node: ir.Node) -> None:
        """Note the first stage that can run a node; a constant has none."""
        if self._is_constant(node):
            self._constants.update(node.outputs)
            return
        values = self._live(node)
        level = max((self._levels[value] for value in values), default=0)
        if node in self._linears:
            level = max(level, self._levels[values[0]] + 1)
        self._first[node] = level
        self._levels.update(dict.fromkeys(node.outputs, level))

    def _is_constant(self, node: ir.Node) -> bool:
        if node.op_type in RANDOM or any(output in self._taps for output in node.outputs):
            return False
        return all(value in self._constants or value.is_initializer() for value in self._reads[node])

    def _live(self, node: ir.Node) -> list[ir.Value]:
        """Return what a node reads that is no constant; for a selected linear what its rows are comes first."""
        return list(dict.fromkeys(value for value in self._reads[node] if value in self._levels))

    def _placed(self, latest: Mapping[ir.Node, int] | None) -> dict[ir.Node, int]:
        """Return the stage of each node that is no constant.

        Args:
            latest: For each node the last stage that could run it; what it reads may be kept until then. Without it
                all nodes but the selected linears are placed as late as possible.
        """
        placed: dict[ir.Node, int] = {}
        for node in reversed(self._first):
            placed[node] = self._first[node]
            if node in self._linears or node.op_type in _SMALL:
                continue  # the weight and the rows of a linear are at hand now, and should not have to wait
            readers = [placed[reader] for value in node.outputs for reader in self._readers.get(value, ())]
            cuts = [self._levels[value] for value in node.outputs if value in self._taps]
            stage: float = min(readers + cuts)
            if latest is not None:
                stage = min([stage, *(self._kept(value, node, latest) for value in self._live(node))])
            placed[node] = max(placed[node], int(stage))
        return placed

    def _kept(self, value: ir.Value, besides: ir.Node, latest: Mapping[ir.Node, int]) -> float:
        """Return the last stage in which another node may read a value; inputs of the graph are always there."""
        if value.is_graph_input():
            return math.inf
        return max((latest[reader] for reader in self._readers[value] if reader is not besides), default=0)

    def stages(self) -> tuple[Stage, ...]:
        """Return all stages; see `cut`."""
        names = Names(self._model.graph)
        last = self._last_uses()
        taps = [
            Tap(
                site,
                value,
                names.new(f"{value.name}/rows"),
                max(self._runs.get(linear.node, 0) for linear in site.selected),
            )
            for value, site in self._taps.items()
        ]
        count = max(self._levels[tap.value] for tap in taps) + 2
        return tuple(self._stage(number, taps, last) for number in range(count))

    def _last_uses(self) -> dict[ir.Value, int]:
        """Return the last stage that reads each value; a site is read when the stage behind its cut begins."""
        last = {value: self._levels[value] + 1 for value in self._taps}
        for value, readers in self._readers.items():
            last[value] = max(last.get(value, 0), *(self._runs[reader] for reader in readers))
        return last

    def _stage(self, number: int, taps: Iterable[Tap], last: Mapping[ir.Value, int]) -> Stage:
        running = [node for node in self._first if self._runs[node] == number]
        here = set(running)
        inputs = dict.fromkeys(value for node in running for value in self._handed(node))
        made = dict.fromkeys(value for node in running for value in node.outputs)
        return Stage(
            number,
            arriving=tuple(tap for tap in taps if self._levels[tap.value] == number - 1),
            fed=tuple(tap for tap in taps if any(linear.node in here for linear in tap.site.selected)),
            inputs=tuple(value for value in inputs if value not in made),
            outputs=tuple(value for value in made if last.get(value, 0) > number),
            ending=tuple(str(value.name) for value, end in last.items() if end == number and self._is_old(value, end)),
            nodes=self._with_constants(running),
            source=self._model,
        )

    def _handed(self, node: ir.Node) -> list[ir.Value]:
        """Return what a node reads from its stage's inputs: rows of a selected linear come another way."""
        rows = int(node in self._linears)
        return [value for value in self._reads[node][rows:] if value in self._levels]

    def _is_old(self, value: ir.Value, stage: int) -> bool:
        """Whether a value was made before a stage."""
        producer = value.producer()
        return producer is not None and self._runs[producer] < stage

    def _with_constants(self, running: Sequence[ir.Node]) -> tuple[ir.Node, ...]:
        """Add the nodes that spell the constants which some nodes read."""
        wanted, pending = set(running), list(running)
        while pending:
            spelling = [value.producer() for value in self._reads[pending.pop()] if value in self._constants]
            new = [node for node in spelling if node is not None and node not in wanted]
            wanted.update(new)
            pending.extend(new)
        return tuple(node for node in self._nodes if node in wanted)
