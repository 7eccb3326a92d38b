"""Choices are made in the plan, from what the graph can take up and what was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from catonnx.errors import CalibrationError, UsageError
from catonnx.graph.absorb import Absorption
from catonnx.graph.sites import Linear, Site
from catonnx.math.factors import Blocks, Factor, Hadamard, Scale
from catonnx.math.moments import Moments
from catonnx.planning.fitting import balanced, fit_alignment
from catonnx.planning.plan import block_width, hadamard_order, make_plan, moment_width
from catonnx.planning.plancheck import check_plan
from catonnx.planning.siteplan import Plan, describe
from catonnx.recipe import Recipe

WIDTH = 48


def _absorption(width: int, ties: np.ndarray | None = None) -> Absorption:
    return Absorption((), width, np.arange(WIDTH) if ties is None else ties, reason="because")


def _site(name: str = "x") -> Site:
    node = ir.node("MatMul", [ir.val(name), ir.val("w")], name="linear")
    value = node.inputs[0]
    assert value is not None
    return Site(value, WIDTH, (Linear(node, WIDTH, 8, ir.DataType.FLOAT),))


def _moments(block: int = 1, seed: int = 0) -> Moments:
    moments = Moments(WIDTH, block)
    rng = np.random.default_rng(seed)
    moments.update(rng.standard_normal((512, WIDTH)) * rng.uniform(0.1, 10, WIDTH))
    return moments


def _weight(seed: int = 1, columns: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((WIDTH, columns))


def _plan(recipe: Recipe, absorption: Absorption) -> Plan:
    moments = {"x": _moments(moment_width(WIDTH, absorption, recipe))}
    return make_plan(recipe, [_site()], {"x": absorption}, moments, lambda _: [_weight()])


def _words(recipe: Recipe, absorption: Absorption) -> tuple[list[str], list[str]]:
    (site,) = _plan(recipe, absorption).sites
    return [describe(factor) for factor in site.absorbed], [describe(factor) for factor in site.online]


@pytest.mark.parametrize(
    ("free", "absorbed", "online"),
    [
        (0, [], ["scale", "hadamard 16"]),
        (1, ["scale"], ["hadamard 16"]),
        (16, ["blocks 16", "hadamard 16"], []),
        (WIDTH, ["blocks 48", "hadamard 16"], []),
    ],
)
def test_cat_takes_the_widest_free_block_and_leaves_online_what_does_not_fit(
    free: int, absorbed: list[str], online: list[str]
) -> None:
    assert _words(Recipe(group_size=16), _absorption(free)) == (absorbed, online)


@pytest.mark.parametrize(
    ("recipe", "absorbed", "online"),
    [
        (Recipe(transform="none"), [], []),
        (Recipe(transform="scale"), ["scale"], []),
        (Recipe(transform="hadamard", group_size=16), [], ["hadamard 16"]),
        (Recipe(block_size=24, hadamard_size=1), [], ["blocks 24"]),
        (Recipe(group_size=16, online="none"), ["scale"], []),
        (Recipe(group_size=None), ["scale"], ["hadamard 48"]),
    ],
)
def test_every_wish_is_followed_before_a_norm(recipe: Recipe, absorbed: list[str], online: list[str]) -> None:
    assert _words(recipe, _absorption(1)) == (absorbed, online)


def test_widths_that_do_not_divide_are_narrowed_and_said() -> None:
    assert block_width(WIDTH, _absorption(1), Recipe(block_size=20)) == 16
    assert hadamard_order(100, Recipe(group_size=32)) == 4
    (site,) = _plan(Recipe(block_size=20), _absorption(1)).sites
    assert "narrowed to 16" in site.why
    assert "not absorbed: because" in site.why


def test_tied_blocks_get_one_matrix() -> None:
    ties = np.concatenate([np.arange(16), np.arange(16), np.arange(16, 32)])
    factor = fit_alignment(_site(), _absorption(16, ties), _moments(16), [_weight()], 16)
    assert isinstance(factor, Blocks)
    np.testing.assert_array_equal(factor.matrices[0], factor.matrices[1])
    assert not np.allclose(factor.matrices[0], factor.matrices[2])


def test_tied_channels_get_one_scale() -> None:
    ties = np.arange(WIDTH) // 2
    factor = fit_alignment(_site(), _absorption(1, ties), _moments(), [_weight()], 1)
    assert isinstance(factor, Scale)
    np.testing.assert_allclose(factor.vector[::2], factor.vector[1::2], rtol=1e-12)


def test_balancing_keeps_the_sum_of_squares_and_makes_output_energies_equal() -> None:
    loud, quiet = 100 * _weight(1), _weight(2)
    energy = np.linspace(0.1, 3, WIDTH)
    parts = balanced([loud, quiet], energy)
    assert sum(np.vdot(part, part) for part in parts) == pytest.approx(np.vdot(loud, loud) + np.vdot(quiet, quiet))
    first, second = (energy @ (part**2).sum(axis=1) for part in parts)
    assert first == pytest.approx(second)
    assert balanced([loud], energy)[0] is loud


def test_missing_moments_are_refused() -> None:
    with pytest.raises(CalibrationError, match="no activation was measured"):
        make_plan(Recipe(), [_site()], {"x": _absorption(1)}, {}, lambda _: [_weight()])


def test_a_plan_survives_its_arrays() -> None:
    plan = _plan(Recipe(group_size=16), _absorption(16))
    (before,), (after,) = plan.sites, Plan.from_arrays(plan.to_arrays()).sites
    assert (before.site, before.why, len(before.absorbed)) == (after.site, after.why, len(after.absorbed))
    rows = np.random.default_rng(0).standard_normal((3, WIDTH))
    np.testing.assert_array_equal(before.transform(WIDTH).apply(rows), after.transform(WIDTH).apply(rows))


@pytest.mark.parametrize(
    ("absorbed", "width", "text"),
    [
        ((Hadamard(WIDTH, 16),), 1, "absorbs a hadamard 16 that does not fit here: because"),
        ((Scale(np.ones(7)),), 1, "another width"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(absorbed: tuple[Factor, ...], width: int, text: str) -> None:
    (item,) = _plan(Recipe(transform="none"), _absorption(1)).sites
    wrong = Plan((type(item)(item.site, absorbed, ()),))
    with pytest.raises(UsageError, match=text):
        check_plan(wrong, [_site()], {"x": _absorption(width)})
    with pytest.raises(UsageError, match="the plan lacks a site"):
        check_plan(wrong, [_site("other")], {"other": _absorption(width)})


@pytest.mark.parametrize(
    ("wishes", "width"),
    [
        ({"group_size": 16}, 16),
        ({"group_size": None}, WIDTH),
        ({"group_size": 16, "scheme": "w4a4"}, WIDTH),  # a token shares one scale
        ({"group_size": 16, "scheme": "w4a4", "activation_group_size": 32}, 32),
        ({"group_size": 32, "scheme": "w4a4", "activation_group_size": 16}, 32),
        ({"group_size": 16, "scheme": "w4a4", "activations": "static"}, WIDTH),
        ({"group_size": 16, "scheme": "w4a8", "form": "nbits"}, 16),
        ({"group_size": 16, "hadamard_size": 8}, 8),
    ],
)
def test_a_hadamard_matrix_is_wanted_as_wide_as_the_widest_group_with_one_scale(
    wishes: dict[str, Any], width: int
) -> None:
    assert Recipe(**wishes).hadamard_width(WIDTH) == width


def test_nothing_is_absorbed_past_a_factor_that_stays_online() -> None:
    """A free width of 16 takes a Hadamard matrix of 16, but not blocks of 24 before it."""
    absorption = Absorption((), 16, np.arange(WIDTH), reason="because")
    (site,) = _plan(Recipe(block_size=24, group_size=16), absorption).sites
    assert site.absorbed == ()
    assert [type(factor) for factor in site.online] == [Blocks, Hadamard]
    assert [describe(factor) for factor in site.online] == ["blocks 24", "hadamard 16"]


def test_groups_of_activations_that_do_not_fit_are_said() -> None:
    moments = _moments(1)
    moments.kept_rows = 64
    moments.update(np.random.default_rng(0).standard_normal((64, WIDTH)))
    recipe = Recipe(scheme="w4a4", activation_group_size=32, transform="none")
    (site,) = make_plan(recipe, [_site()], {"x": _absorption(1)}, {"x": moments}, lambda _: [_weight()]).sites
    assert site.why == "no groups of 32 tile 48 channels; groups of 16 do"
