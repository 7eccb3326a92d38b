"""Ranges of activations: the widest that hurts no output, found on all of calibration and in the basis that is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from catonnx.errors import CalibrationError
from catonnx.graph.absorb import Absorption
from catonnx.graph.sites import Linear, Site
from catonnx.math.activations import CLIPS, STATIC_CLIPS, ActivationGrid
from catonnx.math.factors import Blocks, Scale, Transform
from catonnx.math.moments import Moments
from catonnx.planning.plan import make_plan
from catonnx.planning.ranges import open_grid, stride, with_range
from catonnx.recipe import Recipe

Array = NDArray[np.float64]
WIDTH = 16
GRID = ActivationGrid(4)
DYNAMIC = Recipe(scheme="w4a4", activation_range="symmetric")
STATIC = replace(DYNAMIC, activations="static")
IDENTITY = Transform.identity(WIDTH)


def _site(columns: int = 4) -> Site:
    node = ir.node("MatMul", [ir.val("x"), ir.val("w")], name="linear")
    value = node.inputs[0]
    assert value is not None
    return Site(value, WIDTH, (Linear(node, WIDTH, columns, ir.DataType.FLOAT),))


def _keeping(rows: Array) -> Moments:
    """Return moments that kept all rows."""
    moments = Moments(rows.shape[1], 1, kept_rows=4 * len(rows))
    moments.update(rows)
    assert len(moments.rows) == len(rows)
    return moments


def _found(
    rows: Array, weights: Sequence[Array], recipe: Recipe = DYNAMIC, transform: Transform = IDENTITY
) -> ActivationGrid:
    return with_range(recipe, GRID, _site(), transform, _keeping(rows), lambda _: weights)


def _error(rows: Array, weights: Sequence[Array], transform: Transform, grid: ActivationGrid) -> float:
    """Return ``sum |e|^2 / |y|`` over rows: y the outputs of all linears, made equally loud, e their error.

    It is worked out in the old basis: what is rounded in the new one is taken back before the linears read it.
    """
    basis = transform.dense()
    read = grid.round((rows @ basis).astype(np.float32)) @ np.linalg.inv(basis)
    exact = [rows @ weight for weight in weights]
    errors = [(read @ weight - y) / np.linalg.norm(y) for weight, y in zip(weights, exact, strict=True)]
    outputs = np.concatenate([y / np.linalg.norm(y) for y in exact], axis=1)
    return float(np.sum((np.concatenate(errors, axis=1) ** 2).sum(axis=1) / np.linalg.norm(outputs, axis=1)))


def _uneven(seed: int) -> tuple[Array, list[Array]]:
    """Return heavy-tailed rows, and two weights: a loud one of the calm channels, a quiet one of the wild channels."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((96, WIDTH))
    rows[:, WIDTH // 2 :] = 3 * rng.standard_t(2, (96, WIDTH // 2))
    loud, quiet = rng.standard_normal((2, WIDTH, 4))
    loud[WIDTH // 2 :] = 0
    quiet[: WIDTH // 2] = 0
    return rows, [50 * loud, quiet]


def _transform(seed: int) -> Transform:
    rng = np.random.default_rng(seed)
    blocks = np.eye(4) + 0.4 * rng.standard_normal((WIDTH // 4, 4, 4))
    return Transform((Scale(rng.uniform(0.3, 3, WIDTH)), Blocks(blocks)))


@pytest.mark.parametrize("seed", range(6))
def test_a_range_per_token_is_the_one_that_hurts_the_outputs_least(seed: int) -> None:
    (rows, weights), transform = _uneven(seed), _transform(seed)
    grids = [replace(GRID, clip=clip) for clip in CLIPS]
    best = min(grids, key=lambda grid: _error(rows, weights, transform, grid))
    assert _found(rows, weights, DYNAMIC, transform) == best


@pytest.mark.parametrize("seed", range(3))
def test_a_static_range_is_the_one_that_hurts_the_outputs_least(seed: int) -> None:
    (rows, weights), transform = _uneven(seed), _transform(seed)
    largest = float(np.abs(transform.apply(rows)).max())
    grids = [replace(GRID, fixed=(largest * part / 7, 0.0)) for part in STATIC_CLIPS]
    best = min(grids, key=lambda grid: _error(rows, weights, transform, grid))
    found = _found(rows, weights, STATIC, transform)
    assert best.fixed is not None
    assert found.fixed == pytest.approx(best.fixed, rel=1e-5)  # float32


def test_what_no_linear_reads_is_cut() -> None:
    rows = np.random.default_rng(0).standard_normal((64, WIDTH))
    rows[:, 0] *= 20
    weight = np.random.default_rng(1).standard_normal((WIDTH, 4))
    weight[0] = 0
    assert _found(rows, [weight]).clip == min(CLIPS)


@pytest.mark.parametrize("late", ["rows", "columns"])
def test_the_last_rows_and_columns_have_a_say(late: str) -> None:
    """In the last half a loud channel is read by nobody and wants to be cut; the first half loses nothing as it is."""
    rng = np.random.default_rng(0)
    rows = rng.integers(-7, 8, (512, WIDTH)).astype(np.float64)
    rows[:, 0] = 7  # whole numbers up to 7: not cut, nothing is rounded
    weight = rng.standard_normal((WIDTH, 256))
    weight[0] = 0
    if late == "rows":
        rows[256:, 0] = 100
    else:
        rows[:, 0] = 100
        weight[:, :128] = 0
    assert _found(rows, [weight]).clip < 1


def test_a_weight_of_zeros_has_no_say() -> None:
    rows, weights = _uneven(0)
    assert _found(rows, [*weights, np.zeros((WIDTH, 4))]) == _found(rows, weights)


def test_weights_beyond_float32_are_judged_as_others_are() -> None:
    rows, weights = _uneven(0)
    assert _found(rows, [1e40 * weight for weight in weights]) == _found(rows, weights)


def test_a_range_that_is_given_is_kept_where_tokens_have_their_own() -> None:
    rows, weights = _uneven(0)
    opened, _ = open_grid(replace(DYNAMIC, clip=0.77), WIDTH)
    assert opened is not None
    assert with_range(replace(DYNAMIC, clip=0.77), opened, _site(), IDENTITY, None, lambda _: weights).clip == 0.77
    assert _found(rows, weights, replace(STATIC, clip=0.77)).fixed is not None


@pytest.mark.parametrize("moments", [None, Moments(WIDTH, 1)])
def test_without_rows_there_is_no_range(moments: Moments | None) -> None:
    with pytest.raises(CalibrationError, match="no rows of the activation were kept"):
        with_range(DYNAMIC, GRID, _site(), IDENTITY, moments, lambda _: [np.ones((WIDTH, 4))])


def test_a_plan_looks_for_ranges_behind_the_factors_that_run_online() -> None:
    rows, weights = _uneven(0)
    recipe = replace(STATIC, transform="hadamard", group_size=None)
    absorption = Absorption((), 0, np.arange(WIDTH))
    (plan,) = make_plan(recipe, [_site()], {"x": absorption}, {"x": _keeping(rows)}, lambda _: weights).sites
    assert plan.online
    assert plan.grid == _found(rows, weights, recipe, plan.transform(WIDTH))


@pytest.mark.parametrize(
    ("wishes", "width", "grid"),
    [
        ({"scheme": "w4a16"}, 64, None),
        ({"scheme": "w4a8", "form": "nbits"}, 64, None),
        ({"scheme": "w4a8"}, 64, ActivationGrid(8, symmetric=False)),
        ({"scheme": "w4a4", "activation_range": "symmetric"}, 64, ActivationGrid(4, symmetric=True)),
        ({"scheme": "w4a4", "activation_group_size": 32}, 64, ActivationGrid(4, False, 32)),
        ({"scheme": "w4a4", "clip": 0.7}, 64, ActivationGrid(4, False, clip=0.7)),
    ],
)
def test_a_grid_is_what_the_recipe_says(wishes: dict[str, Any], width: int, grid: ActivationGrid | None) -> None:
    assert open_grid(Recipe(**wishes), width) == (grid, "")


@pytest.mark.parametrize(
    ("width", "group", "said"),
    [
        (96, 32, "no groups of 64 tile 96 channels; groups of 32 do"),
        (48, 16, "no groups of 64 tile 48 channels; groups of 16 do"),
        (40, None, "no groups of 64 tile 40 channels; one scale per token instead"),
    ],
)
def test_groups_that_do_not_tile_a_width_are_narrowed_and_said(width: int, group: int | None, said: str) -> None:
    grid, note = open_grid(Recipe(scheme="w4a4", activation_group_size=64), width)
    assert grid is not None
    assert (grid.group_size, note) == (group, said)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 511, 512, 513, 10_000])
def test_a_stride_takes_no_more_than_wanted_and_at_least_half_of_that(count: int) -> None:
    taken = len(range(0, count, stride(count, 256)))
    assert min(count, 128) <= taken <= 256
