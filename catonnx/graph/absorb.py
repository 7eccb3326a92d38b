"""What the graph before a site can take up at no run-time cost, and where it is written.

The walk starts at a site's activation and goes back along the channels (`absorb_walk`), asking each producer what it
takes (`absorb_rules`). It is walked twice: for scalings and mixings of channels, and for permutations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from catonnx.graph.absorb_rules import mixing_rule, permuting_rule
from catonnx.graph.absorb_walk import BlockedError, End, PermutingWalk, Walk
from catonnx.graph.constants import FLOATS, constant_type
from catonnx.graph.layout import Layout
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import Site
from catonnx.graph.writers import Writer
from catonnx.math.factors import Factor, Permutation


@dataclasses.dataclass(frozen=True, eq=False)
class Permutable:
    """Which permutations can be taken up before a site.

    Attributes:
        writers: Where one is written: every constant of `Absorption.writers` among them; empty if none can be.
        groups: Channels may change places only with those of the same number.  # (d,)
        ties: Channels with equal numbers must go to places with equal numbers.  # (d,)
        caches: Graph outputs (attention caches) whose channels are in the changed order afterwards.
        reason: Why none can be taken up.
    """

    writers: tuple[Writer, ...]
    groups: np.ndarray
    ties: np.ndarray
    caches: tuple[str, ...] = ()
    reason: str = ""

    def takes(self, order: np.ndarray) -> bool:
        """Whether channel ``order[j]`` may come to stand at j, for all j."""
        if not self.writers or len(order) != len(self.groups):
            return False
        if not np.array_equal(self.groups[order], self.groups):
            return False
        _, first, numbers = np.unique(self.ties, return_index=True, return_inverse=True)
        come = self.ties[order]
        return bool(np.array_equal(come, come[first][numbers]))


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
        permutable: Which permutations can be taken up; None stands for none.
        shared: Sites that read rows of one value, this one among them, and undo the same factors; empty if it is alone.
    """

    writers: tuple[Writer, ...]
    width: int
    ties: np.ndarray
    path: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    reason: str = ""
    permutable: Permutable | None = None
    shared: tuple[Site, ...] = ()

    @property
    def peers(self) -> tuple[Site, ...]:
        """The sites of `shared` that are planned: those with a linear that is rounded."""
        return tuple(site for site in self.shared if site.selected)

    @property
    def permutes(self) -> bool:
        """Whether any permutation but the identity may be taken up."""
        return self.permutable is not None and bool(self.permutable.writers)

    def block_ties(self, block: int) -> np.ndarray:
        """Return for each of the d / block blocks the number of the set of blocks that it is tied to."""
        _, numbers = np.unique(self.ties.reshape(-1, block), axis=0, return_inverse=True)
        return numbers.reshape(-1)

    def can_permute(self, order: np.ndarray) -> bool:
        """Whether a permutation, ``x'[j] = x[order[j]]``, can be taken up."""
        return self.permutable is not None and self.permutable.takes(order)

    def changed_caches(self, factors: Iterable[Factor]) -> tuple[str, ...]:
        """Return the caches whose content is changed if these factors are taken up."""
        names: dict[str, None] = {}
        for factor in factors:
            permutes = isinstance(factor, Permutation) and self.permutable is not None
            names |= dict.fromkeys(self.permutable.caches if permutes and self.permutable else self.caches)
        return tuple(names)


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
    shape = shapes[site]
    layout = Layout.of_site(2 if shape is None else len(shape), width)
    permutable = _trace_permutation(site, layout, readers, PermutingWalk(shapes, change_caches, permuting_rule))
    walk = Walk(shapes, change_caches, mixing_rule)
    try:
        walk.check_readers(site, readers, layout)
        end = walk.back(site, layout)
        _check_types(end)
    except BlockedError as stop:
        return Absorption((), 0, np.arange(width), tuple(walk.path), (), str(stop), permutable)
    block = end.layout.block_width
    reason = (
        "only a scaling passes there" if block == 1 else ("" if block == width else f"mixing ends at {block} channels")
    )
    return Absorption(end.writers, block, end.layout.ties, tuple(walk.path), end.caches, reason, permutable)


def _trace_permutation(site: ir.Value, layout: Layout, readers: frozenset[ir.Node], walk: PermutingWalk) -> Permutable:
    try:
        walk.check_readers(site, readers, layout)
        end = walk.start(site, layout)
        _check_types(end)
    except BlockedError as stop:
        channels = np.arange(len(layout.position))
        return Permutable((), channels, channels, reason=str(stop))
    writers = tuple(dict.fromkeys(end.writers))  # a value that was met again names its writers again
    return Permutable(writers, end.layout.mixing, end.layout.ties, end.caches)


def _check_types(end: End) -> None:
    for writer in end.writers:
        dtype = constant_type(writer.node.inputs[writer.index])
        if dtype not in FLOATS:
            raise BlockedError(f"the constant of {writer.node.op_type} {writer.node.name} is of type {dtype}")
