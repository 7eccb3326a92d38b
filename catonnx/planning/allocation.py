"""Which sites keep 8 bits: those where 4 cost most, as many as a budget allows.

The cost of a site in 4 bits is the error in its outputs relative to these, weights and activation rounded to nearest:
measured on the rows of calibration, each counted so that no single loud token decides, or by its moments.

A site of 8 bits makes 1/289 of that error. Errors of sites add up on their way to the outputs, each relative to what
it disturbs; so sites are chosen by what they save: each (`keep_8bit`), or per weight (`target_bits`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from typing import Final

import numpy as np

from catonnx.analysis import Opened, selected_weights
from catonnx.errors import UsageError
from catonnx.graph.sites import Site
from catonnx.kept import Kept
from catonnx.math.activations import relative_error
from catonnx.math.moments import Moments
from catonnx.math.rounding import quantize_weight
from catonnx.math.sqnr import decibels, output_energy
from catonnx.planning.plan import make_plan
from catonnx.planning.quality import Prediction, new_moment, predict
from catonnx.planning.siteplan import Plan, SitePlan
from catonnx.recipe import Recipe

LOWEST: Final = 4
HIGHEST: Final = 8


@dataclasses.dataclass(frozen=True)
class Allotment:
    """The bits of one site, and why.

    Attributes:
        site: Name of the activation.
        weights: Number of weights that read it.
        predicted_db: SQNR of its outputs in 4 bits, or in 8 if it was named, by theory; None where it is not known.
        measured_db: The same, measured.
        bits: What it gets.
    """

    site: str
    weights: int
    predicted_db: float | None
    measured_db: float
    bits: int


def decide(
    opened: Opened,
    moments: Mapping[str, Moments],
    recipe: Recipe,
    announce: Callable[[Sequence[Allotment]], None] = lambda _: None,
    kept: Kept | None = None,
) -> Plan:
    """Return the plan of a model, bits included.

    Args:
        opened: The model, as it was.
        moments: Of all sites, where the recipe needs them.
        recipe: What was asked for.
        announce: Told who gets how many bits, if not all get 4.
        kept: As `make_plan` uses it.
    """
    plan = make_plan(
        recipe,
        opened.sites,
        opened.absorptions,
        moments,
        selected_weights,
        kept,
        tied=opened.tied,
        leaders=opened.leaders,
    )
    wide = opened.tied if recipe.tied_embeddings == HIGHEST else frozenset[str]()
    wide |= _named(recipe, opened.sites)
    plan = with_bits(plan, wide | _followers(opened, {opened.leaders.get(name) for name in wide}))
    if not recipe.keep_8bit and recipe.target_bits is None:
        return plan
    predictions = predict(opened.sites, plan, moments, recipe, selected_weights)
    allotments = allot(recipe, plan, opened.sites, moments, predictions, selected_weights)
    narrow = _followers(opened, {opened.leaders.get(row.site) for row in allotments if row.bits == LOWEST})
    allotments = tuple(dataclasses.replace(row, bits=LOWEST) if row.site in narrow else row for row in allotments)
    announce(allotments)
    return with_bits(plan, {row.site for row in allotments if row.bits == HIGHEST})


def _followers(opened: Opened, leaders: Set[str | None]) -> set[str]:
    """Return the sites that share their weights with one of some sites."""
    return {name for name, leader in opened.leaders.items() if leader in leaders}


def _named(recipe: Recipe, sites: Sequence[Site]) -> set[str]:
    """Return the sites of the linears that `w8` names.

    Raises:
        UsageError: if a pattern names none.
    """
    names = set()
    for pattern in recipe.w8:
        found = {site.name for site in sites if any(fnmatchcase(linear.name, pattern) for linear in site.selected)}
        if not found:
            raise UsageError(
                f"w8 {pattern!r} names no linear that is rounded",
                hint="`catonnx inspect` lists them; the output head needs --lm-head",
            )
        names |= found
    return names


def allot(
    recipe: Recipe,
    plan: Plan,
    sites: Sequence[Site],
    moments: Mapping[str, Moments],
    predictions: Mapping[str, Prediction],
    weights_of: Callable[[Site], Sequence[np.ndarray]],
) -> tuple[Allotment, ...]:
    """Choose the bits of every site.

    Args:
        recipe: Gives the budget, and how weights are rounded.
        plan: The changes of basis and the grids of activations; sites with 8 bits in it keep them, and count.
        sites: Their weights must still be as they were.
        moments: Of all sites.
        predictions: Of all sites in 4 bits.
        weights_of: Returns the weights [d, N] of a site, float64.

    Raises:
        UsageError: if more sites are to keep 8 bits than there are.
    """
    if recipe.keep_8bit > len(sites):
        raise UsageError(f"keep_8bit is {recipe.keep_8bit}, and there are {len(sites)} sites", hint="ask for fewer")
    plans, rows = plan.by_site(), []
    for site in sites:
        weights, own = weights_of(site), plans[site.name]
        noise = _noise(recipe, own, moments[site.name], weights)
        predicted = predictions.get(site.name)
        count = sum(weight.size for weight in weights)
        rows.append(Allotment(site.name, count, predicted.after if predicted else None, decibels(1, noise), own.bits))
    wide = _widest(rows, recipe)
    return tuple(dataclasses.replace(row, bits=HIGHEST) if row.site in wide else row for row in rows)


def with_bits(plan: Plan, wide: Set[str]) -> Plan:
    """Return a plan in which these sites keep 8 bits: weights, and the activation over its whole range."""

    def widened(item: SitePlan) -> SitePlan:
        grid = item.grid
        if grid is not None and grid.bits == LOWEST:
            narrow, whole = grid.codes[1], dataclasses.replace(grid, bits=8, clip=1.0)
            fixed = grid.fixed and (grid.fixed[0] * narrow / whole.codes[1], grid.fixed[1])
            grid = dataclasses.replace(whole, fixed=fixed)
        return dataclasses.replace(item, bits=HIGHEST, grid=grid)

    return Plan(tuple(widened(item) if item.site in wide else item for item in plan.sites))


def _noise(recipe: Recipe, plan: SitePlan, moments: Moments, weights: Sequence[np.ndarray]) -> float:
    """Return the mean over the linears of the error of their outputs, relative to these."""
    transform, noises = plan.transform(moments.width), []
    rows = transform.apply(moments.rows)
    read = rows if plan.grid is None else plan.grid.round(rows)
    moment = None if len(rows) else new_moment(plan, moments)
    for weight in weights:
        changed = transform.solve(weight)
        rounded = quantize_weight(changed, recipe.group_size, bits=plan.bits, method="nearest").dequantize()
        if moment is None:
            noises.append(relative_error(rows @ changed, read @ rounded, by_size=True))
        elif (signal := output_energy(moment, changed)) > 0:
            noises.append(output_energy(moment, rounded - changed) / signal)
    return sum(noises) / len(noises) if noises else 0.0


def _widest(rows: Sequence[Allotment], recipe: Recipe) -> set[str]:
    """Return the names of the sites that keep 8 bits; those that have them already are among them."""
    chosen = {row.site for row in rows if row.bits == HIGHEST}
    open_rows = [row for row in rows if row.site not in chosen]
    if recipe.target_bits is None:
        by_noise = sorted(open_rows, key=lambda row: row.measured_db)
        return chosen | {row.site for row in by_noise[: max(0, recipe.keep_8bit - len(chosen))]}
    spare = sum((recipe.target_bits - row.bits) * row.weights for row in rows)
    for row in sorted(open_rows, key=lambda row: 10 ** (-row.measured_db / 10) / row.weights, reverse=True):
        if row.weights * (HIGHEST - LOWEST) <= spare:
            chosen.add(row.site)
            spare -= row.weights * (HIGHEST - LOWEST)
    return chosen
