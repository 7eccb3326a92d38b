"""`inspect`: every linear is in a row, or is left alone for a reason."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from catonnx.errors import UsageError
from catonnx.inspection import Inspection, inspect
from catonnx.pipeline import optimize
from catonnx.recipe import Recipe

QUICK = Recipe(samples=4, seq_len=32)
MEASURED = Recipe(samples=4, seq_len=32, calibration="self")


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Inspection:
    return inspect(tiny_llama)


def test_rows_hold_every_linear_of_a_llama(llama: Inspection) -> None:
    assert [(site.inputs, site.outputs) for site in llama.sites[:4]] == [
        (64, (64, 32, 32)),
        (64, (64,)),
        (64, (192, 192)),
        (192, (64,)),
    ]
    assert len(llama.sites) == 12
    assert sum(len(site.linears) for site in llama.sites) == 21


def test_rows_tell_what_stands_before_and_what_it_absorbs(llama: Inspection) -> None:
    attention, values, gate, down = llama.sites[:4]
    assert (attention.width, gate.width, down.width) == (1, 1, 1)
    assert down.path == ("Mul", "MatMul")
    assert values.path[0] == "Reshape"
    assert values.path[-1] == "MatMul"
    assert (values.width, values.ties) == (16, 2)  # heads of 16, two query heads on one of keys and values
    assert values.caches == ("present.0.value",)
    assert "only a scaling" in attention.reason


def test_caches_stay_exact_on_demand(tiny_llama: Path) -> None:
    values = inspect(tiny_llama, Recipe(caches="exact")).sites[1]
    assert (values.width, values.caches) == (0, ())
    assert values.reason


def test_what_is_left_alone_has_a_reason(llama: Inspection, tiny_llama: Path) -> None:
    assert [(operator, "--lm-head" in reason) for _, operator, reason in llama.left] == [("MatMul", True)]
    with_head = inspect(tiny_llama, Recipe(lm_head=True))
    assert not with_head.left
    assert sum(len(site.linears) for site in with_head.sites) == 22
    excluded = inspect(tiny_llama, Recipe(exclude=("*down_proj*",)))
    assert len(excluded.left) == 4
    assert all(reason for _, _, reason in excluded.left)


def test_without_calibration_there_are_no_figures(llama: Inspection) -> None:
    assert not llama.planned
    assert all(site.figures is None for site in llama.sites)


def test_predictions_are_those_of_optimize(tiny_llama: Path, tmp_path: Path) -> None:
    inspected = inspect(tiny_llama, MEASURED)
    report = optimize(tiny_llama, tmp_path / "out", MEASURED)
    for site, row in zip(inspected.sites, report.sites, strict=True):
        assert site.figures is not None
        assert site.figures.sqnr_before == row.sqnr_before
        assert site.figures.sqnr_after == row.sqnr_after
        assert (site.absorbed, site.online) == (row.absorbed, row.online)


def test_concentration_and_alignment_add_up_to_the_prediction(tiny_llama: Path) -> None:
    for site in inspect(tiny_llama, MEASURED).sites:
        figures = site.figures
        assert figures is not None
        # 12 N^2 with N = 15 intervals; equal up to rounding in float64 (measured 1e-14).
        parts = 10 * math.log10(12 * 15**2) + figures.w_concentration + figures.alignment
        assert figures.sqnr_before == pytest.approx(parts, abs=1e-9)
        assert figures.alignment < 0
        assert math.isfinite(figures.x_concentration)


def test_a_plan_is_shown_in_place_of_the_own_one(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(MEASURED, transform="scale")
    report = optimize(tiny_llama, tmp_path / "out", recipe)
    shown = inspect(tiny_llama, plan=report.plan)
    assert shown.planned
    assert [site.absorbed for site in shown.sites] == [("scale",)] * 12
    judged = [site.figures for site in inspect(tiny_llama, recipe, plan=report.plan).sites]
    assert [figures and figures.sqnr_after for figures in judged] == [row.sqnr_after for row in report.sites]


def test_a_plan_for_another_model_is_refused(tiny_llama: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    report = optimize(tiny_llama, tmp_path / "out", QUICK)
    with pytest.raises(UsageError, match="the plan is for"):
        inspect(tiny_gpt2, plan=report.plan)


def test_looking_changes_nothing(tiny_llama: Path) -> None:
    before = {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    inspect(tiny_llama, MEASURED)
    assert {path.name: path.read_bytes() for path in tiny_llama.iterdir()} == before


def test_json_is_plain(tiny_llama: Path) -> None:
    data = json.loads(json.dumps(inspect(tiny_llama, MEASURED).to_json(), allow_nan=False))
    assert data["sites"][1]["ties"] == 2
    assert data["sites"][0]["figures"].keys() >= {"sqnr_before", "alignment"}


def test_encoders_and_image_models_are_inspected_too(tiny_bert: Path, tiny_vit: Path) -> None:
    assert all(site.width or site.reason for site in inspect(tiny_bert).sites)
    feeds = Recipe(calibration=str(tiny_vit / "feeds.npz"))
    assert all(site.figures for site in inspect(tiny_vit, feeds).sites)
