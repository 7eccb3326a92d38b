"""Whether a plan fits: the sites of a model, what its graph can take up, and the form that a recipe wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np

from catonnx.errors import UsageError
from catonnx.graph.absorb import Absorption
from catonnx.graph.sites import INSIDE, Site
from catonnx.math.factors import Factor, Transform, transform_to_arrays
from catonnx.planning.plan import fits
from catonnx.planning.siteplan import Plan, describe
from catonnx.recipe import Recipe


def check_form(plan: Plan, recipe: Recipe, sites: Sequence[Site]) -> None:
    """Refuse a plan whose activations the recipe's form cannot write, or leaves as they are.

    Args:
        plan: Checked by `check_plan`.
        recipe: What was asked for.
        sites: The sites of the plan; activations in bodies stay in float.

    Raises:
        UsageError: naming the site.
    """
    inside = {site.name for site in sites if site.inside}
    for item in plan.sites:
        grid, rounds = item.grid, recipe.activation_bits is not None and item.site not in inside
        if rounds and grid is None:
            what = "leaves an activation in float"
        elif not rounds and grid is not None:
            what = "rounds an activation by nodes of its own"
        elif grid is not None and grid.group_size is not None and recipe.form in ("integer", "op"):
            what = f"rounds groups of {grid.group_size} channels"
        elif grid is not None and recipe.form == "op" and (grid.fixed or not grid.symmetric):
            what = "gives an activation a range that is fixed or not symmetric"
        else:
            continue
        raise UsageError(
            f"the plan {what}, which scheme {recipe.scheme} in form {recipe.form} does not",
            where=f"site {item.site}",
            hint="make the plan again with this scheme and form",
        )


def check_plan(
    plan: Plan, sites: Sequence[Site], absorptions: Mapping[str, Absorption], tied: Set[str] = frozenset()
) -> None:
    """Refuse a plan that is for other sites, absorbs what the graph cannot take up, or changes a `tied` basis.

    Raises:
        UsageError: naming the site.
    """
    plans = plan.by_site()
    missing = [site.name for site in sites if site.name not in plans]
    if missing or len(plan.sites) != len(sites):
        counts = f"is for {len(plan.sites)} sites, the model has {len(sites)}"
        raise UsageError(
            f"the plan {counts if len(plan.sites) != len(sites) else 'lacks a site'}",
            where=missing[0] if missing else None,
            hint="a plan belongs to one model, recipe and set of linears; make it again with --save-plan",
        )
    for site in sites:
        item = plans[site.name]
        if site.inside and item.factors:
            raise UsageError(f"the plan changes a basis {INSIDE}", where=f"site {site.name}")
        if any(factor.width != site.width for factor in item.factors):
            raise UsageError(f"the plan is for another width than {site.width}", where=f"site {site.name}")
        if item.factors and site.name in tied:
            raise UsageError(
                f"the plan has a {describe(item.factors[0])} where the embedding shares the weight",
                where=f"site {site.name}",
                hint="make the plan again with tied_embeddings",
            )
        if item.grid is not None and item.grid.group_size is not None and site.width % item.grid.group_size:
            raise UsageError(
                f"the plan rounds groups of {item.grid.group_size} of {site.width} channels", where=f"site {site.name}"
            )
        blocked = next((factor for factor in item.absorbed if not fits(factor, absorptions[site.name])), None)
        if blocked is not None:
            reason = absorptions[site.name].reason or "the whole width may be mixed"
            raise UsageError(
                f"the plan absorbs a {describe(blocked)} that does not fit here: {reason}", where=f"site {site.name}"
            )
        first = absorptions[site.name].peers[:1]
        if first and not _same(item.absorbed, plans[first[0].name].absorbed):
            raise UsageError(
                f"the plan absorbs other factors than at {first[0].name}, which reads rows of the same value",
                where=f"site {site.name}",
            )


def _same(left: Sequence[Factor], right: Sequence[Factor]) -> bool:
    arrays, others = (transform_to_arrays(Transform(tuple(factors))) if factors else {} for factors in (left, right))
    return arrays.keys() == others.keys() and all(np.array_equal(array, others[key]) for key, array in arrays.items())
