"""How the activation of a site is rounded: which channels share a scale, and how much of their range is kept."""

from __future__ import annotations

import math

import numpy as np

from catonnx.errors import CalibrationError
from catonnx.graph.sites import Site
from catonnx.math.activations import ActivationGrid, fixed_range, search_clip
from catonnx.math.factors import Transform
from catonnx.math.moments import Moments
from catonnx.recipe import Recipe

NARROWEST_GROUP = 16
"""Channels of an activation that may share a scale where the wanted number does not divide the width."""

RANGE_ROWS = 256
"""Rows on which a range is searched."""


def open_grid(recipe: Recipe, width: int) -> tuple[ActivationGrid | None, str]:
    """Return the grid of an activation of `width` channels, its range not searched yet, and a note if narrowed."""
    bits = recipe.activation_bits
    if bits is None:
        return None, ""
    group, note = recipe.activation_group_size, ""
    if group is not None and width % group:
        narrowed = math.gcd(group, width)
        group = narrowed if narrowed >= NARROWEST_GROUP else None
        note = f"no groups of {recipe.activation_group_size} tile {width} channels; " + (
            f"groups of {group} do" if group else "one scale per token instead"
        )
    return ActivationGrid(bits, recipe.activation_range == "symmetric", group, recipe.clip or 1.0), note


def with_range(
    recipe: Recipe, grid: ActivationGrid, site: Site, transform: Transform, moments: Moments | None
) -> ActivationGrid:
    """Return a grid with the range that rounds the rows of calibration best, in the new basis; the same if it is given.

    Raises:
        CalibrationError: if no rows were kept.
    """
    if recipe.activations == "dynamic" and recipe.clip is not None:
        return grid
    if moments is None or not len(moments.rows):
        raise CalibrationError("no rows of the activation were kept", where=f"site {site.name}")
    step = -(-len(moments.rows) // RANGE_ROWS)
    rows = transform.apply(moments.rows[::step]).astype(np.float32)
    return fixed_range(rows, grid) if recipe.activations == "static" else search_clip(rows, grid)
