"""Recipe, sites and moments in; one transform per site out. Pure: no graph is touched, no file read.

Every choice is made here, before the first edit, and can be printed, saved and applied again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from catonnx.errors import CalibrationError, UsageError
from catonnx.fitting import fit_alignment
from catonnx.graph.absorb import Absorption
from catonnx.graph.sites import Site
from catonnx.math.factors import (
    Blocks,
    Factor,
    FactorKind,
    Hadamard,
    Scale,
    Transform,
    transform_from_arrays,
    transform_to_arrays,
)
from catonnx.math.hadamard import largest_hadamard_order
from catonnx.math.moments import Moments
from catonnx.recipe import Recipe

WIDEST_FREE_BLOCK = 128
"""Blocks chosen by themselves are no wider than the paper's, even where a wider one could be absorbed."""


@dataclasses.dataclass(frozen=True, eq=False)
class SitePlan:
    """What is done at one site.

    Attributes:
        site: Name of the activation.
        absorbed: Factors that go into the nodes before the site, nearest the producer first.
        online: Factors that stay as nodes, after those.
        why: Why factors stay online, were left out or were narrowed; empty if there is nothing to say.
    """

    site: str
    absorbed: tuple[Factor, ...]
    online: tuple[Factor, ...]
    why: str = ""

    @property
    def factors(self) -> tuple[Factor, ...]:
        """All factors in order."""
        return (*self.absorbed, *self.online)

    def transform(self, width: int) -> Transform:
        """Return the whole change of basis."""
        return Transform(self.factors) if self.factors else Transform.identity(width)

    def summary(self) -> dict[str, Any]:
        """Return the choices without their numbers."""
        return {
            "absorbed": [describe(factor) for factor in self.absorbed],
            "online": [describe(factor) for factor in self.online],
            "why": self.why,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """One `SitePlan` for each site that is changed or rounded, in graph order."""

    sites: tuple[SitePlan, ...]

    def by_site(self) -> dict[str, SitePlan]:
        """Return the plans by site name."""
        return {plan.site: plan for plan in self.sites}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return arrays that `from_arrays` reads back, for an .npz file."""
        arrays: dict[str, np.ndarray] = {"sites": np.array([plan.site for plan in self.sites], dtype=np.str_)}
        for index, plan in enumerate(self.sites):
            arrays[f"{index}.absorbed"] = np.array(len(plan.absorbed))
            arrays[f"{index}.why"] = np.array(plan.why, dtype=np.str_)
            if plan.factors:
                arrays.update(
                    {f"{index}.factor.{key}": a for key, a in transform_to_arrays(Transform(plan.factors)).items()}
                )
        return arrays

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> Plan:
        """Rebuild a plan from what `to_arrays` returned.

        Raises:
            UsageError: if the arrays are no plan.
        """
        try:
            return Plan(
                tuple(_site_from_arrays(arrays, index, str(name)) for index, name in enumerate(arrays["sites"]))
            )
        except (KeyError, ValueError, TypeError) as error:
            raise UsageError(f"this is no plan: {error}", hint="write one with --save-plan") from error


def _site_from_arrays(arrays: Mapping[str, np.ndarray], index: int, name: str) -> SitePlan:
    prefix = f"{index}.factor."
    own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    factors = transform_from_arrays(own).factors if own else ()
    absorbed = int(arrays[f"{index}.absorbed"])
    return SitePlan(name, factors[:absorbed], factors[absorbed:], str(arrays[f"{index}.why"]))


def describe(factor: Factor) -> str:
    """Return a factor in a word or two."""
    match factor:
        case Scale():
            return "scale"
        case Blocks():
            return f"blocks {factor.matrices.shape[1]}"
        case Hadamard():
            return f"hadamard {factor.order}"


def block_width(width: int, absorption: Absorption, recipe: Recipe) -> int:
    """Return the width of the alignment blocks at a site: 1 for a scaling.

    Without a wish it is the widest block that the producers take up for free, at most `WIDEST_FREE_BLOCK`; a wish that
    does not divide the width is narrowed to the largest divisor.
    """
    if recipe.transform != "cat":
        return 1
    if recipe.block_size is None:
        if absorption.width <= WIDEST_FREE_BLOCK:
            return max(1, absorption.width)
        return max(k for k in range(1, WIDEST_FREE_BLOCK + 1) if absorption.width % k == 0)
    return max(k for k in range(1, min(recipe.block_size, width) + 1) if width % k == 0)


def moment_width(width: int, absorption: Absorption, recipe: Recipe) -> int:
    """Return how wide the diagonal blocks of x^T x must be kept for the plan of a site."""
    return block_width(width, absorption, recipe) if recipe.needs_moments else 1


def hadamard_order(width: int, recipe: Recipe) -> int:
    """Return the order of the Hadamard matrix at a site, 1 for none."""
    if recipe.transform not in ("hadamard", "cat"):
        return 1
    wanted = min(recipe.hadamard_size or recipe.group_size or width, width)
    return largest_hadamard_order(math.gcd(wanted, width))


def make_plan(
    recipe: Recipe,
    sites: Sequence[Site],
    absorptions: Mapping[str, Absorption],
    moments: Mapping[str, Moments],
    weights_of: Callable[[Site], Sequence[np.ndarray]],
) -> Plan:
    """Choose the transform of every site.

    Args:
        recipe: What was asked for.
        sites: Sites with at least one selected linear, in graph order.
        absorptions: What the graph can take up before each of them, by site name.
        moments: Their moments, by site name; needed if `recipe.needs_moments`.
        weights_of: Returns the weights [d, N] that read a site and are rounded, float64.

    Raises:
        CalibrationError: if moments are missing or so ill-conditioned that no damping helps.
    """
    plans = []
    for site in sites:
        absorption = absorptions[site.name]
        factors, notes = _factors(recipe, site, absorption, moments.get(site.name), weights_of)
        plans.append(_place(recipe, site, absorption, factors, notes))
    return Plan(tuple(plans))


def _factors(
    recipe: Recipe,
    site: Site,
    absorption: Absorption,
    moments: Moments | None,
    weights_of: Callable[[Site], Sequence[np.ndarray]],
) -> tuple[list[Factor], list[str]]:
    factors: list[Factor] = []
    notes: list[str] = []
    block = block_width(site.width, absorption, recipe)
    if recipe.block_size is not None and recipe.transform == "cat" and block != min(recipe.block_size, site.width):
        notes.append(f"blocks narrowed to {block}, a divisor of {site.width}")
    if recipe.needs_moments:
        if moments is None or moments.count == 0:
            raise CalibrationError("no activation was measured", where=f"site {site.name}")
        factors.append(fit_alignment(site, absorption, moments, weights_of(site), block))
    order = hadamard_order(site.width, recipe)
    wanted = min(recipe.hadamard_size or recipe.group_size or site.width, site.width)
    if recipe.transform in ("hadamard", "cat") and order != wanted:
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


def _alike(rows: np.ndarray, ties: np.ndarray) -> bool:
    """Whether rows with equal numbers in `ties` are equal."""
    _, first, numbers = np.unique(ties, return_index=True, return_inverse=True)
    return np.allclose(rows, rows[first[numbers]], rtol=1e-9, atol=0)


def check_plan(plan: Plan, sites: Sequence[Site], absorptions: Mapping[str, Absorption]) -> None:
    """Refuse a plan that is for other sites, or absorbs what the graph cannot take up.

    Raises:
        UsageError: naming the site.
    """
    plans = plan.by_site()
    missing = [site.name for site in sites if site.name not in plans]
    if missing or len(plan.sites) != len(sites):
        raise UsageError(
            f"the plan is for {len(plan.sites)} sites, the model has {len(sites)}",
            where=missing[0] if missing else None,
            hint="a plan belongs to one model, recipe and set of linears; make it again with --save-plan",
        )
    for site in sites:
        item = plans[site.name]
        if any(factor.width != site.width for factor in item.factors):
            raise UsageError(f"the plan is for another width than {site.width}", where=f"site {site.name}")
        blocked = next((factor for factor in item.absorbed if not fits(factor, absorptions[site.name])), None)
        if blocked is not None:
            reason = absorptions[site.name].reason or "the whole width may be mixed"
            raise UsageError(
                f"the plan absorbs a {describe(blocked)} that does not fit here: {reason}", where=f"site {site.name}"
            )
