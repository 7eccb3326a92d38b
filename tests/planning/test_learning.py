"""What is learned is what the recipe names, from what the site is: ties, groups, grid and rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="learned methods need PyTorch")

import catonnx.learned
from catonnx.errors import CalibrationError
from catonnx.graph.absorb import Absorption
from catonnx.graph.sites import Linear, Site
from catonnx.learned import Learned
from catonnx.math.activations import ActivationGrid
from catonnx.math.factors import Factor, Hadamard, Scale, Transform
from catonnx.math.moments import Moments
from catonnx.planning.learning import learned
from catonnx.planning.plan import make_plan
from catonnx.planning.ranges import with_range
from catonnx.planning.siteplan import SitePlan
from catonnx.recipe import Recipe

WIDTH = 16
GRID = ActivationGrid(4)
TIES = np.arange(WIDTH) % 8
RESULT = Transform((Scale(np.full(WIDTH, 3.0)),))
START: tuple[Factor, ...] = (Scale(np.full(WIDTH, 2.0)), Hadamard(WIDTH, 16))
WISH = Recipe(scheme="w4a4", transform="flatquant", group_size=None, seed=5)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Stand in for what trains: note what it is asked, and answer with `RESULT` and a clip ratio of 0.7."""
    noted: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def stand_in(name: str) -> Any:
        def train(*arguments: Any, **options: Any) -> Learned:
            noted.append((name, arguments, options))
            return Learned(RESULT, 0.7, 1.0, 0.5, "it is worse" if options["seed"] == 13 else "")

        return train

    for name in ("learn_rotation", "learn_affine", "refine"):
        monkeypatch.setattr(catonnx.learned, name, stand_in(name))
    return noted


def _site() -> Site:
    node = ir.node("MatMul", [ir.val("x"), ir.val("w")], name="linear")
    value = node.inputs[0]
    assert value is not None
    return Site(value, WIDTH, (Linear(node, WIDTH, 4, ir.DataType.FLOAT),))


def _moments(rows: int) -> Moments:
    moments = Moments(WIDTH, 8, kept_rows=4 * rows)
    moments.update(np.random.default_rng(0).standard_normal((rows, WIDTH)))
    return moments


def _weights(_: Site) -> list[NDArray[np.float64]]:
    return [np.random.default_rng(1).standard_normal((WIDTH, 4))]


def _learn(
    recipe: Recipe, width: int = 0, rows: int = 256, factors: tuple[Factor, ...] = ()
) -> tuple[list[Factor], ActivationGrid | None, str]:
    site, absorption = _site(), Absorption((), width, TIES)
    return learned(recipe, site, absorption, _moments(rows), _weights(site), factors, GRID)


def _planned(recipe: Recipe) -> SitePlan:
    moments = {"x": _moments(256)}
    (plan,) = make_plan(recipe, [_site()], {"x": Absorption((), 0, TIES)}, moments, _weights).sites
    return plan


@pytest.mark.parametrize(
    ("wishes", "asked"),
    [
        ({"transform": "spinquant"}, "learn_rotation"),
        ({"transform": "flatquant"}, "learn_affine"),
        ({"transform": "cat", "refine": True}, "refine"),
    ],
)
def test_the_method_of_the_recipe_learns_with_its_seed(wishes: dict[str, Any], asked: str, calls: list[Any]) -> None:
    factors, _, note = _learn(replace(WISH, **wishes), factors=START)
    ((name, arguments, options),) = calls
    assert (name, options) == (asked, {"seed": 5})
    assert (factors, note) == (list(RESULT.factors), "")
    if asked == "refine":
        assert arguments[1].factors == START


@pytest.mark.parametrize(("width", "ties"), [(0, None), (1, TIES), (8, TIES)])
def test_the_sample_is_the_site_tied_where_it_is_absorbed(width: int, ties: Any, calls: list[Any]) -> None:
    _learn(replace(WISH, group_size=16), width)
    ((_, (sample,), _),) = calls
    assert (sample.group_size, sample.bits, sample.grid) == (16, 4, GRID)
    assert (sample.rows.shape, len(sample.weights)) == ((256, WIDTH), 1)
    assert (sample.ties is None) == (ties is None)
    if ties is not None:
        np.testing.assert_array_equal(sample.ties, ties)


@pytest.mark.parametrize(
    ("wishes", "clip"),
    [({}, 0.7), ({"clip": 1.0}, 1.0), ({"activations": "static"}, 1.0), ({"transform": "spinquant"}, 1.0)],
)
def test_a_clip_ratio_is_taken_where_none_was_given_and_it_was_learned(
    wishes: dict[str, Any], clip: float, calls: list[Any]
) -> None:
    _, grid, _ = _learn(replace(WISH, **wishes))
    assert calls
    assert grid == replace(GRID, clip=clip)


@pytest.mark.parametrize(
    ("seed", "rows", "said"),
    [(5, 256, ""), (5, 255, "learned from 255 rows only"), (13, 100, "not learned: it is worse")],
)
def test_what_gained_nothing_or_saw_little_is_said(seed: int, rows: int, said: str, calls: list[Any]) -> None:
    *_, note = _learn(replace(WISH, seed=seed), rows=rows)
    assert note == said


def test_nothing_is_refined_where_there_is_nothing(calls: list[Any]) -> None:
    assert _learn(replace(WISH, transform="none", refine=True)) == ([], GRID, "nothing to refine")
    assert calls == []


def test_too_few_rows_are_refused_with_the_site(calls: list[Any]) -> None:
    with pytest.raises(CalibrationError, match="the transform cannot be learned") as error:
        _learn(WISH, rows=2)
    assert "site x" in str(error.value)


def test_a_plan_keeps_the_range_that_was_learned_and_looks_for_one_that_was_not(calls: list[Any]) -> None:
    plan = _planned(WISH)
    assert plan.grid is not None
    assert plan.grid.clip == 0.7
    rotated = _planned(replace(WISH, transform="spinquant", activation_range="symmetric"))
    assert rotated.grid == with_range(WISH, GRID, _site(), RESULT, _moments(256), _weights)
    assert rotated.grid != GRID


def test_a_plan_that_learned_still_says_what_was_narrowed(calls: list[Any]) -> None:
    plan = _planned(replace(WISH, transform="cat", refine=True, block_size=12, hadamard_size=1, scheme="w4a16"))
    assert "blocks narrowed to 8" in plan.why
