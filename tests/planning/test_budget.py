"""What runs online fits its budget, and no other choice of variants that costs as little errs less."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from catonnx.errors import UsageError
from catonnx.graph.absorb import Absorption
from catonnx.graph.sites import Linear, Site
from catonnx.math.activations import ActivationGrid
from catonnx.math.factors import Blocks, Hadamard, Scale
from catonnx.math.moments import Moments
from catonnx.planning.budget import affordable
from catonnx.planning.plan import make_plan
from catonnx.planning.quality import predict
from catonnx.planning.siteplan import Plan, SitePlan, online_multiply_adds
from catonnx.recipe import Recipe

Array = NDArray[np.float64]
BOUND = Recipe(transform="hadamard", group_size=None, max_overhead=10.0)
ORDERS = (128, 64, 32, 1)
"""Hadamard matrices that a site of 128 channels can have."""


def _site(name: str, inputs: int, outputs: int, left_alone: int = 0) -> Site:
    """Return a site with one linear that is rounded, and if wanted one that is not."""
    value = ir.val(name)
    linears = [
        Linear(ir.node("MatMul", [value, ir.val("w")], name=name), inputs, columns, ir.DataType.FLOAT, reason)
        for columns, reason in ((outputs, ""), (left_alone, "left alone"))
        if columns
    ]
    return Site(value, inputs, tuple(linears))


def _moments(width: int, rows: Array | None = None, block: int = 1) -> Moments:
    """Return moments of these rows, all of them kept; of Gaussian ones by default."""
    rows = np.random.default_rng(9).standard_normal((64, width)) if rows is None else rows
    moments = Moments(width, block, kept_rows=4 * len(rows))
    moments.update(rows)
    return moments


def _spiky(width: int, columns: int, seed: int, share: float = 0.02, height: float = 20) -> Array:
    """Return a weight with outliers: the wider the Hadamard matrix, the better it is spread."""
    rng = np.random.default_rng(seed)
    weight: Array = rng.standard_normal((width, columns))
    weight[rng.random(weight.shape) < share] *= height
    return weight


@dataclass
class _Case:
    """Sites with a Hadamard matrix each, online, but for those in `free`, whose producers take it up."""

    weights: Mapping[str, Array]
    moments: Mapping[str, Moments]
    grid: ActivationGrid | None = None
    free: frozenset[str] = frozenset()
    left_alone: int = 0
    asked: list[Recipe] = field(default_factory=list)

    @property
    def sites(self) -> list[Site]:
        return [_site(name, len(weight), weight.shape[1], self.left_alone) for name, weight in self.weights.items()]

    def plan_of(self, wish: Recipe, site: Site) -> SitePlan:
        self.asked.append(wish)
        order = math.gcd(wish.hadamard_size or site.width, site.width)
        factors = (Hadamard(site.width, order),) if order > 1 else ()
        absorbed = site.name in self.free
        return SitePlan(site.name, factors if absorbed else (), () if absorbed else factors, grid=self.grid)

    def orders(self, recipe: Recipe) -> tuple[int, ...]:
        """Return the Hadamard matrices of all sites that the budget leaves."""
        wishes = affordable(recipe, self.sites, self.moments, self.weights_of, self.plan_of)
        return tuple(math.gcd(wishes[site.name].hadamard_size or site.width, site.width) for site in self.sites)

    def weights_of(self, site: Site) -> list[Array]:
        return [self.weights[site.name]]

    def cost_and_noise(self, site: Site, order: int) -> tuple[int, float]:
        plan = self.plan_of(replace(BOUND, hadamard_size=order), site)
        found = predict([site], Plan((plan,)), self.moments, BOUND, self.weights_of)[site.name]
        return online_multiply_adds(plan), 10 ** (-found.after / 10)


def _best_at_some_price(case: _Case) -> list[tuple[int, tuple[int, ...]]]:
    """Return (cost, orders) of every choice that is best at some price of a multiply-add, by trying all; dearest first.

    They are the corners of the lower convex hull of all choices.
    """
    ladders = [
        [(order, *case.cost_and_noise(site, order)) for order in ORDERS if site.width % order == 0]
        for site in case.sites
    ]
    choices = [
        (sum(cost for _, cost, _ in choice), sum(noise for *_, noise in choice), tuple(order for order, *_ in choice))
        for choice in itertools.product(*ladders)
    ]
    prices = sorted((b[1] - a[1]) / (a[0] - b[0]) for a, b in itertools.permutations(choices, 2) if a[0] > b[0])
    between = [1e-30, *(math.sqrt(low * high) for low, high in itertools.pairwise(p for p in prices if p > 0)), 1e30]
    best = {min(choices, key=lambda choice, price=price: choice[1] + price * choice[0]) for price in between}  # type: ignore[misc]
    return [(cost, orders) for cost, _, orders in sorted(best, reverse=True)]


def _three(seed: int, left_alone: int = 0, free: Sequence[str] = ()) -> _Case:
    """Return sites of 4096 weights in all, a power of two: their part in the budget is not rounded."""
    weights = {
        "spiky": _spiky(128, 16, seed),
        "calm": _spiky(64, 16, seed + 1, height=3),
        "flat": np.sign(_spiky(64, 16, seed + 2)) * 1.0,  # nothing to spread: it is best left as it is
    }
    moments = {name: _moments(len(weight)) for name, weight in weights.items()}
    return _Case(weights, moments, free=frozenset(free), left_alone=left_alone)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("left_alone", [0, 8])
def test_every_budget_is_spent_as_well_as_can_be(seed: int, left_alone: int) -> None:
    case = _three(seed, left_alone)
    corners = _best_at_some_price(case)
    assert len(corners) > 3
    for (cost, orders), (_, cheaper) in itertools.pairwise([*corners, (0, corners[-1][1])]):
        assert case.orders(replace(BOUND, max_overhead=cost / 4096)) == orders
        if cost:
            assert case.orders(replace(BOUND, max_overhead=(cost - 1) / 4096)) == cheaper


def test_what_is_absorbed_costs_nothing() -> None:
    case = _three(0, free=("spiky", "calm"))
    best = [
        min(ORDERS[site.width == 64 :], key=lambda order: case.cost_and_noise(site, order)[1]) for site in case.sites
    ]
    assert best[0] > 1
    assert case.orders(replace(BOUND, max_overhead=0.0)) == (*best[:2], 1)


def test_without_a_budget_nothing_is_compared() -> None:
    case, recipe = _three(0), replace(BOUND, max_overhead=None)
    wishes = affordable(recipe, case.sites, case.moments, case.weights_of, case.plan_of)
    assert wishes == dict.fromkeys(case.weights, recipe)
    assert case.asked == []


def test_a_budget_that_nothing_fits_is_refused_with_what_is_needed() -> None:
    def plan_of(_: Recipe, site: Site) -> SitePlan:
        return SitePlan(site.name, (), (Scale(np.full(site.width, 2.0)),))

    case = _three(0)
    with pytest.raises(UsageError, match="allows 128 multiply-adds a token, and 256 cannot be done without"):
        affordable(replace(BOUND, max_overhead=1 / 32), case.sites, case.moments, case.weights_of, plan_of)


@pytest.mark.parametrize(
    ("recipe", "tried"),
    [
        (Recipe(block_size=16), {16, 8, 4, 2, 1}),
        (Recipe(block_size=24), {24, 12, 6, 3, 1}),
        (Recipe(block_size=64), {64, 24, 12, 6, 3, 1}),  # 48 tiles the width, 64 does not
        (Recipe(block_size=1), {1}),
        (Recipe(), {None}),  # the widest that is free
        (Recipe(transform="wush", group_size=32), {None, 12, 6, 3, 1}),
        (Recipe(transform="wush", group_size=None), {None, 24, 12, 6, 3, 1}),
        (Recipe(transform="wush", block_size=4), {4, 2, 1}),
    ],
)
def test_blocks_are_halved_as_long_as_they_tile_the_width(recipe: Recipe, tried: set[int | None]) -> None:
    case = _Case({"x": _spiky(48, 8, 0)}, {"x": _moments(48)})
    case.orders(replace(recipe, max_overhead=10.0))
    assert {wish.block_size for wish in case.asked} == tried


def test_the_wanted_hadamard_matrix_is_tried_besides_narrower_ones() -> None:
    case = _Case({"x": _spiky(48, 8, 0)}, {"x": _moments(48)})
    case.orders(replace(BOUND, hadamard_size=48))
    assert {math.gcd(wish.hadamard_size or 48, 48) for wish in case.asked} >= {48, 16, 1}


@pytest.mark.parametrize("widest", [1, 16])
def test_no_hadamard_matrix_is_wider_than_wanted(widest: int) -> None:
    case = _Case({"x": _spiky(48, 8, 0)}, {"x": _moments(48)})
    case.orders(replace(BOUND, hadamard_size=widest))
    assert max(wish.hadamard_size or 48 for wish in case.asked) == widest


def _late_columns() -> _Case:
    late = _spiky(64, 256, 0, share=0)
    late[:, 128:] = _spiky(64, 128, 1)
    weights = {"late": late, "even": _spiky(64, 256, 2, height=4)}
    return _Case(weights, {name: _moments(64) for name in weights})


def _late_rows() -> _Case:
    late = _spiky(64, 128, 0, share=0).T
    late[64:] = _spiky(64, 64, 1).T
    moments = {"late": _moments(64, late), "even": _moments(64, _spiky(64, 128, 2, height=4).T)}
    return _Case({name: _spiky(64, 64, 3, share=0) for name in moments}, moments, ActivationGrid(4))


@pytest.mark.parametrize("make", [_late_columns, _late_rows])
def test_variants_are_compared_on_columns_and_rows_from_first_to_last(make: Callable[[], _Case]) -> None:
    """One Hadamard matrix is affordable: it helps most where outliers are, be it in the last half only."""
    case = make()
    cost, _ = case.cost_and_noise(case.sites[0], 64)
    share = cost / sum(weight.size for weight in case.weights.values())
    late, even = case.orders(replace(BOUND, max_overhead=share))
    assert late > even == 1


@pytest.mark.parametrize("share", [0.15, 0.3, 0.6, 10.0])
def test_a_plan_within_a_budget_is_the_plan_by_the_narrower_wishes(share: float) -> None:
    """Blocks that were fitted for one variant or site are not taken for another."""
    names, recipe = ("a", "b", "c"), Recipe(block_size=16, group_size=None)
    rng = np.random.default_rng(0)
    rows = {name: rng.standard_normal((256, 48)) @ rng.standard_normal((48, 48)) for name in names}
    weights = {name: _spiky(48, 64, seed) for seed, name in enumerate(names)}
    moments = {name: _moments(48, rows[name], block=16) for name in names}
    sites = {name: _site(name, 48, 64) for name in names}
    absorptions = dict.fromkeys(names, Absorption((), 0, np.arange(48)))

    def planned(wish: Recipe, *wanted: str) -> tuple[SitePlan, ...]:
        chosen = [sites[name] for name in wanted]
        return make_plan(wish, chosen, absorptions, moments, lambda site: [weights[site.name]]).sites

    plans = planned(replace(recipe, max_overhead=share), *names)
    assert sum(map(online_multiply_adds, plans)) <= share * 3 * 48 * 64
    for plan in plans:
        first, *rest = plan.factors
        block = first.matrices.shape[1] if isinstance(first, Blocks) else 1
        order = rest[0].order if rest and isinstance(rest[0], Hadamard) else 1
        (alone,) = planned(replace(recipe, block_size=block, hadamard_size=order), plan.site)
        assert [factor.kind for factor in plan.factors] == [factor.kind for factor in alone.factors]
        np.testing.assert_allclose(plan.transform(48).dense(), alone.transform(48).dense(), rtol=1e-12)
