"""How the activation of a site is rounded: which channels share a scale, and how much of their range is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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

RANGE_COLUMNS = 128
"""Output channels of a linear by which it is judged."""


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
    recipe: Recipe,
    grid: ActivationGrid,
    site: Site,
    transform: Transform,
    moments: Moments | None,
    weights_of: Callable[[Site], Sequence[np.ndarray]],
) -> ActivationGrid:
    """Return a grid with the range that hurts the outputs of a site least, on rows of calibration, in the new basis.

    A range that the recipe gives is left as it is.

    Raises:
        CalibrationError: if no rows were kept.
    """
    if recipe.activations == "dynamic" and recipe.clip is not None:
        return grid
    if moments is None or not len(moments.rows):
        raise CalibrationError("no rows of the activation were kept", where=f"site {site.name}")
    rows = transform.apply(moments.rows[:: stride(len(moments.rows), RANGE_ROWS)]).astype(np.float32)
    weight = _judging(transform, weights_of(site), rows)
    return (fixed_range if recipe.activations == "static" else search_clip)(rows, grid, weight=weight)


def stride(count: int, wanted: int) -> int:
    """Return the step that takes about `wanted` of `count`."""
    return max(1, -(-count // wanted))


def _judging(transform: Transform, weights: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return some columns of every linear, in the new basis, each linear weighed so that all are equally loud."""
    parts = []
    for weight in weights:
        part = transform.solve(weight[:, :: stride(weight.shape[1], RANGE_COLUMNS)])
        part = (part / (np.max(np.abs(part), initial=0.0) or 1.0)).astype(np.float32)  # float32 may not hold it before
        loudness = float(np.linalg.norm(rows @ part))
        parts.append(part / loudness if 0 < loudness < math.inf else part)
    return np.concatenate(parts, axis=1)
