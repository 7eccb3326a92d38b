"""Narrower transforms where they cost least, until what runs online fits a budget of multiply-adds.

Every site begins with the widest blocks and Hadamard matrix that the recipe wants. As long as all of them together cost
too much, one site takes a cheaper variant: the one that adds the least predicted error for each multiply-add saved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from catonnx.errors import UsageError
from catonnx.graph.sites import Site
from catonnx.math.factors import FactorKind
from catonnx.math.moments import Moments
from catonnx.planning.quality import predict
from catonnx.planning.ranges import stride
from catonnx.planning.siteplan import Plan, SitePlan, online_multiply_adds
from catonnx.recipe import Recipe

_ORDERS = (512, 128, 64, 32, 1)
"""Hadamard matrices that are tried besides the one wanted; each is narrowed to what tiles a site's width."""

_ROWS, _COLUMNS = 64, 128
"""Rows of an activation and output channels of a linear by which variants are compared."""


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    """One way to transform a site.

    Attributes:
        recipe: What asks for it.
        cost: Multiply-adds per token of what runs online.
        noise: Predicted energy of the error in the site's outputs, relative to theirs.
    """

    recipe: Recipe
    cost: int
    noise: float


def affordable(
    recipe: Recipe,
    sites: Sequence[Site],
    moments: Mapping[str, Moments],
    weights_of: Callable[[Site], Sequence[np.ndarray]],
    plan_of: Callable[[Recipe, Site], SitePlan],
    counts: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Recipe]:
    """Return for every site the recipe that it is planned with, so that all of them together fit `max_overhead`.

    Args:
        recipe: What was asked for.
        sites: In graph order.
        moments: Of all sites.
        weights_of: Returns the weights [d, N] of a site that are rounded, float64.
        plan_of: Returns the plan of a site by a recipe, its activation's range not searched.
        counts: How many sites get the plan of each; 1 if it is not said.

    Raises:
        UsageError: if even the cheapest variants cost more.
    """
    if recipe.max_overhead is None:
        return dict.fromkeys((site.name for site in sites), recipe)
    products = {site.name: sum(linear.inputs * linear.outputs for linear in site.selected) for site in sites}
    allowed = recipe.max_overhead * sum(counts.get(name, 1) * product for name, product in products.items())
    ladders = {site.name: _ladder(recipe, site, moments, weights_of, plan_of) for site in sites}

    def total() -> int:
        return sum(counts.get(name, 1) * ladder[0].cost for name, ladder in ladders.items())

    while total() > allowed:
        steps = [name for name, ladder in ladders.items() if len(ladder) > 1]
        if not steps:
            raise UsageError(
                f"max_overhead allows {allowed:.0f} multiply-adds a token, and {total()} cannot be done without",
                hint="allow more, or leave out what cannot be absorbed: online none",
            )
        cheapest = min(steps, key=lambda name: _price(*ladders[name][:2]))
        ladders[cheapest].pop(0)
    return {name: ladder[0].recipe for name, ladder in ladders.items()}


def _price(dear: Variant, cheap: Variant) -> float:
    return (cheap.noise - dear.noise) / (dear.cost - cheap.cost)


def _ladder(
    recipe: Recipe,
    site: Site,
    moments: Mapping[str, Moments],
    weights_of: Callable[[Site], Sequence[np.ndarray]],
    plan_of: Callable[[Recipe, Site], SitePlan],
) -> list[Variant]:
    """Return variants of falling cost and rising noise; between two steps none that is cheaper for what it saves."""
    weights, seen = _some_of(weights_of(site), moments.get(site.name))
    known = {} if seen is None else {site.name: seen}
    found: dict[tuple[tuple[FactorKind, int], ...], Variant] = {}
    for block in _blocks(recipe, site.width):
        widest = recipe.hadamard_width(site.width)
        for order in (recipe.hadamard_size, *(order for order in _ORDERS if order < widest)):
            wish = dataclasses.replace(recipe, block_size=block, hadamard_size=order)
            plan = plan_of(wish, site)
            key = tuple((factor.kind, factor.multiply_adds) for factor in plan.factors)
            if key in found:
                continue
            prediction = predict([site], Plan((plan,)), known, wish, lambda _: weights).get(site.name)
            noise = 10 ** (-prediction.after / 10) if prediction else 0.0
            found[key] = Variant(wish, online_multiply_adds(plan), noise)
    return _hull(list(found.values()))


def _some_of(weights: Sequence[np.ndarray], moments: Moments | None) -> tuple[list[np.ndarray], Moments | None]:
    """Return some columns of the weights, and moments with some of the rows: enough to compare variants by."""
    columns = [weight[:, :: stride(weight.shape[1], _COLUMNS)] for weight in weights]
    if moments is None:
        return columns, None
    arrays = moments.to_arrays()
    arrays["rows"] = arrays["rows"][:: stride(len(arrays["rows"]), _ROWS)]
    return columns, Moments.from_arrays(arrays)


def _blocks(recipe: Recipe, width: int) -> Iterator[int | None]:
    """Return the width of blocks that is wanted, its half, and so on, as long as they tile it; then a scaling."""
    yield recipe.block_size
    widest = recipe.block_size or (recipe.group_size or width if recipe.transform == "wush" else None)
    if widest is not None:
        block = max(k for k in range(1, min(widest, width) + 1) if width % k == 0)
        while block % 2 == 0:
            block //= 2
            yield block
        if block > 1:
            yield 1


def _hull(variants: Sequence[Variant]) -> list[Variant]:
    """Return the lower convex hull from the best variant to the cheapest one, dearest first."""
    by_cost = sorted(variants, key=lambda variant: (variant.cost, variant.noise))
    hull: list[Variant] = []
    for variant in by_cost:
        if hull and variant.noise >= hull[-1].noise:
            continue  # dearer and no better
        while len(hull) > 1 and _price(variant, hull[-1]) >= _price(hull[-1], hull[-2]):
            hull.pop()
        hull.append(variant)
    return hull[::-1]
