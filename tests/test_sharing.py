"""Sites that read rows of one value take one factor, fitted to all of them, whoever calibration has reached."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import catonnx
import catonnx.planning.plan
from catonnx import Recipe
from catonnx.analysis import analyse
from catonnx.calibrating import measure_sites
from catonnx.errors import UsageError
from catonnx.graph.absorb import Absorption
from catonnx.graph.load import load
from catonnx.graph.sites import Linear, Site
from catonnx.math.factors import Scale
from catonnx.math.moments import Moments
from catonnx.planning.fitting import fit_factors, fit_together
from catonnx.planning.plan import make_plan
from catonnx.planning.plancheck import check_plan
from catonnx.planning.siteplan import Plan, describe
from catonnx.progress import silent
from tests.graph.builder import Net
from tests.small_models import relative, run

Array = NDArray[np.float64]
WIDTH = 16
NAMES = ("a", "b", "c")


def _sites() -> tuple[Site, ...]:
    result = []
    for name in NAMES:
        node = ir.node("MatMul", [ir.val(name), ir.val("w")], name=f"linear {name}")
        assert node.inputs[0] is not None
        result.append(Site(node.inputs[0], WIDTH, (Linear(node, WIDTH, 6, ir.DataType.FLOAT),)))
    return tuple(result)


SITES = _sites()
RANDOM = np.random.default_rng(0)
ROWS = {
    name: RANDOM.standard_normal((40 * (index + 1), WIDTH)) * RANDOM.uniform(0.1, 9, WIDTH)
    for index, name in enumerate(NAMES)
}
WEIGHTS = {name: [RANDOM.standard_normal((WIDTH, 6)) * RANDOM.uniform(0.2, 5, (WIDTH, 1))] for name in NAMES}


def _moments(*rows: Array, block: int = WIDTH) -> Moments:
    moments = Moments(WIDTH, block, kept_rows=30)
    for part in rows:
        moments.update(part)
    return moments


def _absorption(width: int = 1, sites: tuple[Site, ...] = SITES) -> Absorption:
    return Absorption((), width, np.arange(WIDTH), reason="because", shared=sites)


def _weights_of(site: Site) -> list[Array]:
    return WEIGHTS[site.name]


@pytest.mark.parametrize(("transform", "block"), [("scale", 1), ("smoothquant", 1), ("cat", 4), ("wush", 8)])
def test_one_factor_is_fitted_to_all_rows_and_weights(transform: str, block: int) -> None:
    recipe, absorption = Recipe(transform=transform), _absorption(WIDTH)  # type: ignore[arg-type]
    moments = {name: _moments(rows) for name, rows in ROWS.items()}
    (together,) = fit_together(recipe, SITES, absorption, moments, _weights_of, block)
    every = [weight for weights in WEIGHTS.values() for weight in weights]
    (expected,) = fit_factors(recipe, SITES[0], absorption, _moments(*ROWS.values()), lambda _: every, block)
    every_channel = np.eye(WIDTH)
    np.testing.assert_allclose(together.apply(every_channel), expected.apply(every_channel), rtol=1e-9)


def test_sites_that_calibration_did_not_reach_have_no_say_about_the_rows() -> None:
    moments = {name: _moments(rows, block=1) for name, rows in ROWS.items()}
    unknown = moments | {"b": Moments.unknown(WIDTH, 1)}
    (factor,) = fit_together(Recipe(transform="scale"), SITES, _absorption(), unknown, _weights_of, 1)
    seen = moments | {"b": _moments(ROWS["a"], ROWS["c"], block=1)}
    (expected,) = fit_together(Recipe(transform="scale"), SITES, _absorption(), seen, _weights_of, 1)
    assert isinstance(factor, Scale)
    assert isinstance(expected, Scale)
    np.testing.assert_allclose(factor.vector, expected.vector, rtol=1e-9)


def test_what_pooled_moments_keep_is_what_all_saw() -> None:
    parts = [_moments(rows, block=4) for rows in ROWS.values()]
    pooled, expected = Moments.pooled([*parts, Moments.unknown(WIDTH, 4)]), _moments(*ROWS.values(), block=4)
    assert (pooled.count, pooled.assumed) == (expected.count, False)
    np.testing.assert_allclose(pooled.sums, expected.sums, rtol=1e-12)
    assert 25 <= len(pooled.rows) <= 35
    assert {np.flatnonzero([row in part.rows for part in parts]).tolist()[0] for row in pooled.rows} == {0, 1, 2}
    assert Moments.pooled([Moments.unknown(WIDTH, 4)]).assumed


def _planned(recipe: Recipe, absorption: Absorption) -> Plan:
    absorptions = dict.fromkeys(NAMES, absorption)
    moments = {name: _moments(rows, block=recipe.block_size or 1) for name, rows in ROWS.items()}
    return make_plan(recipe, SITES, absorptions, moments, _weights_of)


@pytest.mark.parametrize("share", [None, 0.05, 0.1, 0.2, 0.3, 0.6, 1.2])
def test_all_absorb_the_same_whatever_the_budget(share: float | None) -> None:
    recipe = Recipe(scheme="w4a8", block_size=8, group_size=None, max_overhead=share)
    plan = _planned(recipe, _absorption())
    check_plan(plan, SITES, dict.fromkeys(NAMES, _absorption()))
    assert len({tuple(map(describe, item.absorbed)) for item in plan.sites}) == 1


def test_what_is_not_absorbed_is_fitted_to_each() -> None:
    first, second, _ = _planned(Recipe(block_size=8), _absorption()).sites
    assert [describe(factor) for factor in first.online] == ["blocks 8", "hadamard 16"]
    assert not np.allclose(first.online[0].apply(np.eye(WIDTH)), second.online[0].apply(np.eye(WIDTH)))


def test_a_plan_that_absorbs_different_factors_is_refused() -> None:
    plan = _planned(Recipe(), _absorption())
    absorptions = dict.fromkeys(NAMES, _absorption())
    check_plan(plan, SITES, absorptions)
    first, second, third = plan.sites
    wrong = dataclasses.replace(second, absorbed=(Scale(np.full(WIDTH, 2.0)),))
    for other in (wrong, dataclasses.replace(second, absorbed=())):
        with pytest.raises(UsageError, match=r"other factors than at a, which reads rows of the same value \(site b\)"):
            check_plan(Plan((first, other, third)), SITES, absorptions)


def test_what_is_learned_is_learned_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []

    def stand_in(_: Recipe, __: Site, absorption: Absorption, *rest: object) -> tuple[list[Scale], object, str]:
        widths.append(absorption.width)
        return [Scale(np.full(WIDTH, 1.0 + len(widths)))], rest[-1], ""

    monkeypatch.setattr(catonnx.planning.plan, "learned", stand_in)
    plan = _planned(Recipe(scheme="w4a4", transform="flatquant", group_size=None), _absorption())
    check_plan(plan, SITES, dict.fromkeys(NAMES, _absorption()))
    assert widths == [0, 0, 0]
    assert [(item.absorbed, len(item.online)) for item in plan.sites] == [((), 1)] * 3
    assert "3 sites read rows of one value, and what is learned is learned for each" in plan.sites[0].why
    _planned(Recipe(scheme="w4a4", transform="flatquant", group_size=None), _absorption(sites=SITES[:1]))
    assert widths[3:] == [1, 1, 1]


CHANNELS, ROWS_OF_A_RUN = 32, 64


def mixture(folder: Path) -> Path:
    """Two experts behind a norm with loud channels; the sign of channel 0 tells which one a row goes to."""
    net, folder = Net(seed=7), folder / "mixture"
    loud = np.where(np.arange(CHANNELS) % 8 == 3, 30.0, 1.0)
    value = net.op("SimplifiedLayerNormalization", net.input("x", ["rows", CHANNELS]), net.constant(loud), axis=-1)
    sign = np.zeros((CHANNELS, 2))
    sign[0] = 1, -1
    logits = net.op("MatMul", value, net.constant(sign))
    _, index = net.ops("TopK", logits, net.constant([1]), results=["best", "index"])
    chosen = net.op("Squeeze", index, net.constant([1]))
    for number in range(2):
        mine = net.op("Equal", chosen, net.constant(np.array(number)))
        places = net.op("Squeeze", net.op("NonZero", mine), net.constant([0]))
        weight = np.random.default_rng(number).normal(size=(CHANNELS, 48)) / loud[:, None]
        hidden = net.op("MatMul", net.op("Gather", value, places, axis=0), net.constant(weight))
        net.output(net.op("Softplus", hidden, result=f"y{number}"))
    folder.mkdir()
    onnx.save(net.proto(), folder / "model.onnx")
    return folder


def _inputs(positive: bool, seed: int) -> dict[str, np.ndarray]:
    rows = np.random.default_rng(seed).normal(size=(ROWS_OF_A_RUN, CHANNELS)).astype(np.float32)
    rows[:, 0] = np.abs(rows[:, 0]) + 0.1 if positive else -np.abs(rows[:, 0]) - 0.1
    return {"x": rows}


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_an_expert_that_no_row_of_calibration_reaches_is_rounded_as_well_as_the_others(
    rounding: str, tmp_path: Path
) -> None:
    source, feeds = mixture(tmp_path), tmp_path / "feeds.npz"
    np.savez(feeds, **{f"{seed}/x": _inputs(True, seed)["x"] for seed in range(4)})  # type: ignore[arg-type]
    recipe = Recipe(calibration=str(feeds), scheme="w4a16", online="none", rounding=rounding)  # type: ignore[arg-type]
    report = catonnx.optimize(source, tmp_path / "out", recipe)
    assert [row.absorbed for row in report.sites] == [("scale",), ("scale",)]
    assert "did not reach it: its rows are taken for the others'" in report.sites[1].why
    opened = analyse(load(source / "model.onnx"), recipe)
    moments = measure_sites(opened, tmp_path, [_inputs(True, seed) for seed in range(4)], recipe, silent)
    first, second = (moments[site.name] for site in opened.sites)
    assert (first.assumed, second.assumed) == (False, True)
    np.testing.assert_array_equal(first.second_moment(), second.second_moment())
    errors = []
    for number, positive in enumerate((True, False)):
        inputs = _inputs(positive, seed=9)
        name = f"y{number}"
        errors.append(relative(run(source, inputs)[name], run(tmp_path / "out", inputs, exact=True)[name]))
    assert errors[1] <= 1.2 * errors[0]  # measured: 0.97 and 0.99
