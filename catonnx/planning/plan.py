"""Recipe, sites and moments in; one transform per site out. Pure: no graph is touched, no file read.

Every choice is made here, before the first edit, and can be printed, saved and applied again.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

import numpy as np

from catonnx.errors import CalibrationError
from catonnx.graph.absorb import Absorption
from catonnx.graph.sites import INSIDE, Site
from catonnx.kept import Kept
from catonnx.math.factors import (
    Blocks,
    Factor,
    FactorKind,
    Hadamard,
    Kronecker,
    Permutation,
    Scale,
)
from catonnx.math.hadamard import largest_hadamard_order
from catonnx.math.moments import Moments
from catonnx.planning.budget import affordable
from catonnx.planning.fitting import fit_factors, fit_together
from catonnx.planning.learning import learned
from catonnx.planning.ranges import open_grid, with_range
from catonnx.planning.siteplan import Plan, SitePlan, describe, online_multiply_adds
from catonnx.recipe import Recipe

WIDEST_FREE_BLOCK = 128
"""Blocks chosen by themselves are no wider than the paper's, even where a wider one could be absorbed."""

_BLOCKED = ("cat", "wush")
"""Transforms that are fitted in blocks."""

_UNCHANGED: Mapping[str, Any] = {"transform": "none", "permute": False, "refine": False}
"""What a recipe says of a site that keeps its basis."""

_UNSEEN = f"{INSIDE}, where no calibration data reaches it: rounded in its own basis"
"""What is said of a site in a body. A Hadamard matrix needs no data but does harm to weights alone: on tiny Whisper and
T5 decoders with outlier channels it lowered the SQNR of the logits from 9.5 to 0.1 dB, and from 15 to 3."""


def block_width(width: int, absorption: Absorption, recipe: Recipe) -> int:
    """Return the width of the alignment blocks at a site: 1 for a scaling.

    Without a wish it is the widest block that the producers take up for free, at most `WIDEST_FREE_BLOCK`; a wish that
    does not divide the width is narrowed to the largest divisor.
    """
    if recipe.transform not in _BLOCKED:
        return 1
    if recipe.transform == "wush" and recipe.block_size is None:
        return max(k for k in range(1, min(recipe.group_size or WIDEST_FREE_BLOCK, width) + 1) if width % k == 0)
    if recipe.block_size is None:
        if absorption.width <= WIDEST_FREE_BLOCK:
            return max(1, absorption.width)
        return max(k for k in range(1, WIDEST_FREE_BLOCK + 1) if absorption.width % k == 0)
    return max(k for k in range(1, min(recipe.block_size, width) + 1) if width % k == 0)


def moment_width(width: int, absorption: Absorption, recipe: Recipe) -> int:
    """Return how wide the diagonal blocks of x^T x must be kept for the plan of a site."""
    if recipe.needs_whole_moments:
        return width
    if not recipe.needs_moments:
        return 1
    return block_width(width, absorption, recipe)


def hadamard_order(width: int, recipe: Recipe) -> int:
    """Return the order of the Hadamard matrix at a site, 1 for none."""
    return largest_hadamard_order(math.gcd(recipe.hadamard_width(width), width)) if _mixes(recipe) else 1


def _mixes(recipe: Recipe) -> bool:
    return recipe.transform in ("hadamard", "cat")


def make_plan(
    recipe: Recipe,
    sites: Sequence[Site],
    absorptions: Mapping[str, Absorption],
    moments: Mapping[str, Moments],
    weights_of: Callable[[Site], Sequence[np.ndarray]],
    kept: Kept | None = None,
    *,
    tied: Set[str] = frozenset(),
    leaders: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Choose the transform of every site.

    Args:
        recipe: What was asked for.
        sites: Sites with at least one selected linear, in graph order.
        absorptions: What the graph can take up before each of them, by site name.
        moments: Their moments, by site name; needed if `recipe.needs_moments`.
        weights_of: Returns the weights [d, N] that read a site and are rounded, float64.
        kept: Takes down every site once it is settled; those in it are settled already.
        tied: Names of sites that keep their basis, because an embedding shares the weight.
        leaders: Sites that share weights -> the one whose plan they follow; their moments are joint.

    Raises:
        CalibrationError: if moments are missing or so ill-conditioned that no damping helps.
    """
    kept = Kept() if kept is None else kept
    if recipe.learns:  # each site by itself
        absorptions = {name: _alone(absorption) for name, absorption in absorptions.items()}
    fitted: dict[tuple[str, int], list[Factor]] = {}  # the latest: a Hadamard matrix behind them changes nothing
    together: dict[tuple[str, int], list[Factor]] = {}

    def fit(wish: Recipe, site: Site, block: int) -> list[Factor]:
        absorption = absorptions[site.name]
        if absorption.peers and (absorption.width >= block or (wish.permute and absorption.permutes)):
            key = absorption.peers[0].name, block
            if key not in together:
                together[key] = fit_together(wish, absorption.peers, absorption, moments, weights_of, block)
            return list(together[key])
        if (site.name, block) not in fitted:
            fitted.clear()
            fitted[site.name, block] = fit_factors(wish, site, absorption, moments.get(site.name), weights_of, block)
        return list(fitted[site.name, block])

    def own(wish: Recipe, site: Site) -> Recipe:
        return dataclasses.replace(wish, **_UNCHANGED) if site.name in tied else wish

    def outline(wish: Recipe, site: Site) -> SitePlan:
        wish = own(wish, site)
        factors, notes = _factors(wish, site, absorptions[site.name], moments.get(site.name), fit)
        notes += ["no transform: the embedding shares its table"] if site.name in tied else []
        grid, note = open_grid(wish, site.width) if not site.inside else (None, "")
        placed = _place(wish, site, absorptions[site.name], factors, [*notes, *([note] if note else [])])
        return dataclasses.replace(placed, grid=grid)

    def settled(site: Site) -> SitePlan:
        arrays = kept.get("plan", site.name)
        if arrays is None:
            absorption, seen = absorptions[site.name], moments.get(site.name)
            outlined = outline(wishes[site.name], site)
            plan = _finished(own(recipe, site), site, absorption, outlined, seen, weights_of)
            kept.put("plan", site.name, Plan((plan,)).to_arrays())
            return plan
        return Plan.from_arrays(arrays).sites[0]

    names = [leaders.get(site.name, site.name) for site in sites]
    first = [site for site, name in zip(sites, names, strict=True) if site.name == name]
    wishes = affordable(recipe, first, moments, weights_of, outline, Counter(names))
    for site in first:
        # What is shared must be absorbed by all or none: they take the cheapest of their wishes.
        peers = absorptions[site.name].peers
        if any(wishes[peer.name] != wishes[site.name] for peer in peers):
            cheapest = min(peers, key=lambda peer: online_multiply_adds(outline(wishes[peer.name], peer)))
            wishes |= dict.fromkeys((peer.name for peer in peers), wishes[cheapest.name])
    plans = {site.name: settled(site) for site in first}
    named = zip(sites, names, strict=True)
    return Plan(tuple(dataclasses.replace(plans[name], site=site.name) for site, name in named))


def _alone(absorption: Absorption) -> Absorption:
    """Return what a site can have absorbed that agrees with no other: nothing, if others undo the same."""
    if not absorption.peers[1:]:
        return absorption
    reason = f"{len(absorption.peers)} sites read rows of one value, and what is learned is learned for each"
    return Absorption((), 0, absorption.ties, absorption.path, reason=reason)


def _finished(
    recipe: Recipe,
    site: Site,
    absorption: Absorption,
    plan: SitePlan,
    moments: Moments | None,
    weights_of: Callable[[Site], Sequence[np.ndarray]],
) -> SitePlan:
    """Train what is to be trained, and find the range of the activation."""
    trained = False
    if recipe.learns and not site.inside:
        assert moments is not None
        factors, grid, note = learned(recipe, site, absorption, moments, weights_of(site), plan.factors, plan.grid)
        trained = grid != plan.grid
        placed = _place(recipe, site, absorption, list(plan.factors), []).why  # will be said anew
        notes = [remark for remark in (plan.why.removesuffix(placed).removesuffix("; "), note) if remark]
        plan = dataclasses.replace(_place(recipe, site, absorption, factors, notes), grid=grid)
    if plan.grid is None or trained:
        return plan
    grid = with_range(recipe, plan.grid, site, plan.transform(site.width), moments, weights_of)
    return dataclasses.replace(plan, grid=grid)


def _factors(
    recipe: Recipe,
    site: Site,
    absorption: Absorption,
    moments: Moments | None,
    fit: Callable[[Recipe, Site, int], list[Factor]],
) -> tuple[list[Factor], list[str]]:
    if site.inside:
        return [], [_UNSEEN + ", and its activation stays in float" * (recipe.activation_bits is not None)]
    notes: list[str] = []
    block = block_width(site.width, absorption, recipe)
    if recipe.block_size is not None and recipe.transform in _BLOCKED and block != min(recipe.block_size, site.width):
        notes.append(f"blocks narrowed to {block}, a divisor of {site.width}")
    if recipe.needs_moments and (moments is None or moments.count == 0):
        raise CalibrationError("no activation was measured", where=f"site {site.name}")
    if moments is not None and moments.assumed:
        alike = "its rows are taken for the others' of the same value" if absorption.peers else "its channels for alike"
        notes.append(f"calibration did not reach it: {alike}")
    factors = fit(recipe, site, block)
    order, wanted = hadamard_order(site.width, recipe), recipe.hadamard_width(site.width)
    if _mixes(recipe) and order != wanted:
        notes.append(f"no Hadamard matrix of width {wanted} tiles {site.width} channels; {order} does")
    if order > 1:
        factors.append(Hadamard(site.width, order))
    return factors, notes


def _place(recipe: Recipe, site: Site, absorption: Absorption, factors: list[Factor], notes: list[str]) -> SitePlan:
    """Absorb factors as long as each fits; the rest stays online or is left out."""
    absorbed: list[Factor] = []
    for factor in factors:
        if not fits(factor, absorption):
            break
        absorbed.append(factor)
    online = factors[len(absorbed) :]
    if online:
        names = ", ".join(describe(factor) for factor in online)
        notes.append(f"{names} not absorbed: {absorption.reason}")
    if online and recipe.online == "none":
        notes.append("left out (--online none)")
        online = []
    return SitePlan(site.name, tuple(absorbed), tuple(online), "; ".join(notes))


def fits(factor: Factor, absorption: Absorption) -> bool:
    """Whether the nodes before a site can take up a factor."""
    match factor.kind:
        case FactorKind.SCALE:
            assert isinstance(factor, Scale)
            return absorption.width >= 1 and bool((factor.vector > 0).all()) and _alike(factor.vector, absorption.ties)
        case FactorKind.BLOCKS:
            assert isinstance(factor, Blocks)
            block = factor.matrices.shape[1]
            divides = absorption.width > 1 and absorption.width % block == 0
            return divides and _alike(factor.matrices, absorption.block_ties(block))
        case FactorKind.HADAMARD:
            assert isinstance(factor, Hadamard)
            return absorption.width > 1 and absorption.width % factor.order == 0
        case FactorKind.PERMUTATION:
            assert isinstance(factor, Permutation)
            return absorption.can_permute(factor.order)
        case FactorKind.KRONECKER:
            assert isinstance(factor, Kronecker)
            return absorption.width == factor.width


def _alike(rows: np.ndarray, ties: np.ndarray) -> bool:
    """Whether rows with equal numbers in `ties` are equal."""
    _, first, numbers = np.unique(ties, return_index=True, return_inverse=True)
    return np.allclose(rows, rows[first[numbers]], rtol=1e-9, atol=0)
