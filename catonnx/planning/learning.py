"""Transforms that are trained on rows of calibration, as a plan wants them. Only what is asked for imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from catonnx.errors import CalibrationError
from catonnx.graph.absorb import Absorption
from catonnx.graph.sites import Site
from catonnx.math.activations import ActivationGrid
from catonnx.math.factors import Blocks, Factor, Scale, Transform
from catonnx.math.moments import Moments
from catonnx.recipe import Recipe

FEW_ROWS = 256
"""With fewer rows of a site what is learned may fit nothing but them; the plan says so."""


def learned(
    recipe: Recipe,
    site: Site,
    absorption: Absorption,
    moments: Moments,
    weights: Sequence[np.ndarray],
    factors: Sequence[Factor],
    grid: ActivationGrid | None,
) -> tuple[list[Factor], ActivationGrid | None, str]:
    """Train the transform of one site.

    Args:
        recipe: Which method, and the seed.
        site: Gives the name.
        absorption: Says which channels are tied.
        moments: Bring the rows to learn from.
        weights: Weights [d, N] that read the activation and are rounded, float64.
        factors: Where a refinement begins.
        grid: How the activation is rounded; its clip ratio is learned too, unless the method has none.

    Returns:
        Factors, the grid with its clip ratio, and a note where nothing was gained.

    Raises:
        RuntimeUnavailableError: torch is not installed.
        CalibrationError: there are too few rows to learn from.
    """
    from catonnx.learned import SiteSample, learn_affine, learn_rotation, refine

    ties = absorption.ties if absorption.width >= 1 else None
    try:
        sample = SiteSample(moments.rows, weights, recipe.group_size, 4, grid, ties)
    except ValueError as error:
        raise CalibrationError(
            f"the transform cannot be learned: {error}",
            where=f"site {site.name}",
            hint="calibrate on more tokens, or take a transform that is not learned",
        ) from error
    if recipe.transform == "spinquant":
        result = learn_rotation(sample, seed=recipe.seed)
    elif recipe.transform == "flatquant":
        result = learn_affine(sample, seed=recipe.seed)
    elif not _refinable(factors, grid):
        return list(factors), grid, "nothing to refine"
    else:
        result = refine(sample, Transform(tuple(factors)), seed=recipe.seed)
    note = f"not learned: {result.why_not}" if result.why_not else ""
    if not note and len(moments.rows) < FEW_ROWS:
        note = f"learned from {len(moments.rows)} rows only"
    searched = recipe.activations == "dynamic" and recipe.clip is None and recipe.transform != "spinquant"
    if grid is not None and searched:
        grid = dataclasses.replace(grid, clip=result.clip)
    return list(result.transform.factors), grid, note


def _refinable(factors: Sequence[Factor], grid: ActivationGrid | None) -> bool:
    """Whether there is a scale, a block or a clip ratio to train further."""
    return any(isinstance(factor, (Scale, Blocks)) for factor in factors) or (bool(factors) and grid is not None)
