"""`optimize` with rounded activations, in every form: what is written, that it runs, and it is what was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import catonnx
from catonnx import Recipe, Report
from catonnx.errors import UsageError
from catonnx.planning.planfile import load_plan, save_plan
from catonnx.planning.quality import mean_error
from tests.refusals import assert_refused
from tests.small_models import language_feeds, relative, run

QUICK: dict[str, Any] = {"samples": 4, "seq_len": 48}

SCHEMES: dict[str, dict[str, Any]] = {
    "w4a4 a token": {"scheme": "w4a4", "group_size": None},
    "w4a4 a token, symmetric": {"scheme": "w4a4", "group_size": None, "activation_range": "symmetric"},
    "w4a4 groups": {"scheme": "w4a4", "group_size": 32, "activation_group_size": 32},
    "w4a8 a token": {"scheme": "w4a8", "group_size": None},
    "w4a8 static": {"scheme": "w4a8", "group_size": None, "activations": "static"},
    "w4a8 nbits": {"scheme": "w4a8", "form": "nbits"},
    "w4a4 integer": {"scheme": "w4a4", "group_size": None, "form": "integer"},
    "w4a4 integer, symmetric": {
        "scheme": "w4a4",
        "group_size": None,
        "form": "integer",
        "activation_range": "symmetric",
    },
    "w4a8 integer": {"scheme": "w4a8", "group_size": None, "form": "integer"},
    "w4a8 integer static": {"scheme": "w4a8", "group_size": None, "form": "integer", "activations": "static"},
    "w4a16 op": {"form": "op"},
    "w4a8 op": {"scheme": "w4a8", "form": "op", "activation_range": "symmetric"},
    "w4a4 op, gptq, a token": {
        "scheme": "w4a4",
        "form": "op",
        "activation_range": "symmetric",
        "rounding": "gptq",
        "group_size": None,
        "correct_bias": True,
    },
    "w4a4 some in 8 bits": {"scheme": "w4a4", "group_size": None, "keep_8bit": 3},
    "w4a16 some in 8 bits": {"target_bits": 5.0},
    "w4a16 some in 8 bits, nbits": {"keep_8bit": 2, "form": "nbits"},
    "gptq": {"rounding": "gptq"},
    "w4a4 gptq": {"scheme": "w4a4", "group_size": None, "rounding": "gptq"},
    "sequential": {"rounding": "sequential"},
    "w4a4 sequential": {"scheme": "w4a4", "group_size": None, "rounding": "sequential"},
    "corrected bias": {"correct_bias": True},
    "corrected bias, gptq, nbits": {"correct_bias": True, "rounding": "gptq", "form": "nbits"},
    "w4a4 corrected bias": {"scheme": "w4a4", "group_size": None, "correct_bias": True},
    "w4a4 integer, corrected bias": {"scheme": "w4a4", "group_size": None, "form": "integer", "correct_bias": True},
    "positive scales": {"scales": "positive"},
    "wush": {"transform": "wush"},
    "smoothquant": {"transform": "smoothquant"},
}


def _optimize(model: Path, out: Path, **wishes: Any) -> Report:
    return catonnx.optimize(model, out, Recipe(**(QUICK | wishes)))


def _kl(report: Report) -> float:
    """Return how far the rounded model is from its source, in nats a token."""
    figures = report.verification["deployed"]
    return float(figures.get("exact activations", figures["as deployed"])["kl_nats"])


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_runs_in_its_form(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    wishes = SCHEMES[name]
    report = _optimize(tiny_llama, tmp_path / "out", **wishes)
    assert report.verification["transform_relative_l2"] < 1e-4
    assert report.verification["fused"] == 21
    assert report.verification["not_fused"] == []
    assert _kl(report) < (0.6 if wishes.get("scheme") == "w4a4" else 0.15)  # measured: 0.2 to 0.4, and 0.02 to 0.08
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    operators = [node.op_type for node in model.graph.node]
    rounds, ours = (
        wishes.get("scheme") in ("w4a4", "w4a8") and wishes.get("form") != "nbits",
        wishes.get("form") == "op",
    )
    assert operators.count("QuantizeLinear") == (12 if rounds and not ours else 0)
    quantizing = [operator for operator in operators if operator.endswith("Quantize")]  # alone, or with a transform
    assert len(quantizing) == (12 if rounds and ours else 0)
    assert operators.count("QuantizedMatMul") == (21 if rounds and ours else 0)
    assert sum("Transform" in operator for operator in operators) == (12 if ours else 0)
    assert operators.count("MatMulInteger") == (21 if wishes.get("form") == "integer" else 0)
    wide = sum(row.bits == 8 for row in report.sites)
    assert wide == wishes.get("keep_8bit", 0) or "target_bits" in wishes
    told = json.loads((tmp_path / "out" / "catonnx.json").read_text())
    assert all((row["activation"] != "") == rounds for row in told["sites"])


@pytest.mark.parametrize("scheme", ["w4a16", "w4a4", "w4a8"])
@pytest.mark.parametrize("group_size", [32, None])
def test_form_op_is_the_same_function_as_form_qdq(
    scheme: str, group_size: int | None, tiny_llama: Path, tmp_path: Path
) -> None:
    wishes: dict[str, Any] = {"scheme": scheme, "group_size": group_size}
    if scheme != "w4a16":
        wishes["activation_range"] = "symmetric"
    for form in ("qdq", "op"):
        _optimize(tiny_llama, tmp_path / form, form=form, **wishes)
    feeds = language_feeds(tiny_llama)
    expected, actual = (run(tmp_path / form / "model.onnx", feeds, exact=True) for form in ("qdq", "op"))
    assert relative(expected["logits"], actual["logits"]) < 0.02  # where rounding ties turn over


@pytest.mark.parametrize("scheme", ["w4a4", "w4a8"])
@pytest.mark.parametrize("activation_range", ["symmetric", "asymmetric"])
def test_form_integer_is_the_same_function_as_form_qdq(
    scheme: str, activation_range: str, tiny_llama: Path, tmp_path: Path
) -> None:
    wishes = {"scheme": scheme, "group_size": None, "activation_range": activation_range}
    for form in ("qdq", "integer"):
        _optimize(tiny_llama, tmp_path / form, form=form, **wishes)
    feeds = language_feeds(tiny_llama)
    expected, actual = (run(tmp_path / form / "model.onnx", feeds, exact=True) for form in ("qdq", "integer"))
    assert relative(expected["logits"], actual["logits"]) < 0.02  # measured: up to 0.006, where rounding ties turn over


def test_sites_that_keep_8_bits_are_those_where_4_hurt_most(tiny_llama: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    recipe = Recipe(**QUICK, scheme="w4a4", group_size=None, keep_8bit=3)
    report = catonnx.optimize(tiny_llama, tmp_path / "out", recipe, announce=seen.extend)
    wide = [row for row in seen if row.bits == 8]
    narrow = [row for row in seen if row.bits == 4]
    assert (len(wide), len(narrow)) == (3, 9)
    assert max(row.measured_db for row in wide) <= min(row.measured_db for row in narrow)
    assert {row.site for row in report.sites if row.bits == 8} == {row.site for row in wide}
    plain = _optimize(tiny_llama, tmp_path / "plain", scheme="w4a4", group_size=None)
    assert _kl(report) < _kl(plain)


def test_named_linears_keep_8_bits(tiny_llama: Path, tmp_path: Path) -> None:
    wishes = {"scheme": "w4a4", "group_size": None, "form": "integer", "lm_head": True}
    report = _optimize(tiny_llama, tmp_path / "out", w8=("*lm_head*", "*layers.1*down_proj*"), **wishes)
    wide = {linear for row in report.sites if row.bits == 8 for linear in row.linears}
    assert len(wide) == 2
    assert {row.activation[0] for row in report.sites if row.bits == 8} == {"8"}
    assert report.verification["fused"] == 22
    with pytest.raises(UsageError, match="names no linear that is rounded"):
        _optimize(tiny_llama, tmp_path / "none", w8=("*nothing*",))


def test_named_sites_count_among_those_that_keep_8_bits(tiny_llama: Path, tmp_path: Path) -> None:
    named = {"w8": ("*layers.0*q_proj*",)}
    report = _optimize(tiny_llama, tmp_path / "some", keep_8bit=3, **named)
    wide = [row for row in report.sites if row.bits == 8]
    assert len(wide) == 3
    assert any("layers.0" in linear and "q_proj" in linear for row in wide for linear in row.linears)
    report = _optimize(tiny_llama, tmp_path / "mean", target_bits=5.0, **named)
    weights = [sum(rows * columns for rows, columns in row.shapes) for row in report.sites]
    assert sum(row.bits * count for row, count in zip(report.sites, weights, strict=True)) <= 5.0 * sum(weights)


@pytest.mark.parametrize("target", [4.0, 4.5, 6.0, 8.0])
def test_target_bits_are_kept(target: float, tiny_llama: Path, tmp_path: Path) -> None:
    report = _optimize(tiny_llama, tmp_path / "out", target_bits=target)
    weights = [sum(rows * columns for rows, columns in row.shapes) for row in report.sites]
    mean = sum(row.bits * count for row, count in zip(report.sites, weights, strict=True)) / sum(weights)
    assert target - 0.5 < mean <= target


def test_gptq_and_sequential_lower_the_error_on_what_they_saw(tiny_llama: Path, tmp_path: Path) -> None:
    found = {
        rounding: _kl(_optimize(tiny_llama, tmp_path / rounding, rounding=rounding, samples=16, damping=0.01))
        for rounding in ("mse", "gptq", "sequential")
    }
    assert found["gptq"] < 0.9 * found["mse"]
    assert found["sequential"] < 0.9 * found["mse"]


def test_a_corrected_bias_lowers_the_error_of_every_site(tiny_llama: Path, tmp_path: Path) -> None:
    plain, corrected = (
        _optimize(tiny_llama, tmp_path / name, scheme="w4a4", group_size=None, correct_bias=name == "corrected")
        for name in ("plain", "corrected")
    )
    gains = [
        after.sqnr_outputs - before.sqnr_outputs
        for before, after in zip(plain.sites, corrected.sites, strict=True)
        if after.sqnr_outputs is not None and before.sqnr_outputs is not None
    ]
    assert len(gains) == 12
    assert min(gains) > 0
    biases = onnx.load(tmp_path / "corrected" / "model.onnx", load_external_data=False).graph
    assert sum(node.name.endswith("/corrected") for node in biases.node) == 21


def test_a_bias_makes_up_for_the_mean_of_relative_errors() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
    errors = np.array([[50.0], [2.0], [7.0]])
    assert mean_error(rows[:2], errors[:2]) == pytest.approx((50 / 25 + 2) / (1 / 25 + 1))
    assert mean_error(rows[2:], errors[2:]) == pytest.approx(7.0)


def test_a_saved_plan_brings_grids_and_bits(tiny_llama: Path, tmp_path: Path) -> None:
    wishes = {"scheme": "w4a4", "group_size": None, "keep_8bit": 2}
    first = _optimize(tiny_llama, tmp_path / "first", **wishes)
    save_plan(tmp_path / "plan.npz", first.plan, first.digest, first.recipe)
    saved = load_plan(tmp_path / "plan.npz")
    recipe = saved.recipe(Recipe(**QUICK, group_size=None))
    catonnx.optimize(tiny_llama, tmp_path / "second", recipe, plan=saved.plan)
    weights = [(tmp_path / name / "model.onnx_data").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("made", "wanted", "said"),
    [
        ({"scheme": "w4a8", "form": "nbits"}, {"form": "integer"}, "leaves an activation in float"),
        ({"scheme": "w4a8", "activation_group_size": 32}, {"form": "integer"}, "rounds groups of 32 channels"),
        ({"scheme": "w4a8"}, {"form": "op", "activation_range": "symmetric"}, "fixed or not symmetric"),
    ],
)
def test_a_plan_for_another_form_is_refused(
    made: dict[str, Any], wanted: dict[str, Any], said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    first = _optimize(tiny_llama, tmp_path / "first", **made)
    recipe = Recipe(**QUICK, scheme="w4a8", group_size=None, **wanted)
    with pytest.raises(UsageError, match=said):
        catonnx.optimize(tiny_llama, tmp_path / "second", recipe, plan=first.plan)


def test_the_same_seed_gives_the_same_bytes_site_by_site(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        _optimize(tiny_llama, tmp_path / name, scheme="w4a4", group_size=None, rounding="sequential", seed=3)
    weights = [(tmp_path / name / "model.onnx_data").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


def test_activations_are_rounded_as_the_plan_says(tiny_llama: Path, tmp_path: Path) -> None:
    report = _optimize(tiny_llama, tmp_path / "out", scheme="w4a4", group_size=None, clip=0.8)
    assert {plan.grid.clip for plan in report.plan.sites if plan.grid} == {0.8}
    searched = _optimize(tiny_llama, tmp_path / "searched", scheme="w4a4", group_size=None)
    clips = {plan.grid.clip for plan in searched.plan.sites if plan.grid}
    assert max(clips) <= 1
    assert len(clips) > 1
    assert all(row.sqnr_outputs is not None and np.isfinite(row.sqnr_outputs) for row in searched.sites)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "operators and an asymmetric range": ({"form": "op", "scheme": "w4a8"}, "one symmetric range per token"),
    "operators and a static range": (
        {"form": "op", "scheme": "w4a8", "activation_range": "symmetric", "activations": "static"},
        "one symmetric range per token",
    ),
    "operators, 8 bits and groups": (
        {"form": "op", "scheme": "w4a8", "activation_range": "symmetric", "keep_8bit": 1},
        "only with a scale per channel",
    ),
    "groups in one integer product": ({"form": "integer", "scheme": "w4a4"}, "cannot scale groups of 32 rows"),
    "activation groups in one integer product": (
        {"form": "integer", "scheme": "w4a4", "group_size": None, "activation_group_size": 64},
        "cannot scale groups of 64 channels",
    ),
    "integers times floats": ({"form": "integer", "group_size": None}, "scheme w4a16 leaves activations in float"),
    "4-bit activations in MatMulNBits": ({"form": "nbits", "scheme": "w4a4"}, "cannot round activations to 4 bits"),
    "8-bit activations of MatMulNBits on CUDA": (
        {"form": "nbits", "scheme": "w4a8", "provider": "cuda"},
        "on the CPU only",
    ),
    "static without activations": ({"activations": "static"}, "scheme w4a16 rounds none"),
    "static groups": (
        {"scheme": "w4a4", "activations": "static", "activation_group_size": 32},
        "a static range is one for all channels",
    ),
    "clip of zero": ({"scheme": "w4a4", "clip": 0.0}, "clip is 0.0"),
    "clip above one": ({"scheme": "w4a4", "clip": 1.5}, "clip is 1.5"),
    "two budgets": ({"keep_8bit": 1, "target_bits": 5}, "both say how many sites keep 8 bits"),
    "too few bits": ({"target_bits": 3}, "target_bits is 3"),
    "negative overhead": ({"max_overhead": -0.1}, "max_overhead is -0.1"),
    "odd groups": ({"scheme": "w4a4", "activation_group_size": 48}, "activation_group_size is 48"),
    "a bias for what makes up by itself": (
        {"rounding": "sequential", "correct_bias": True},
        "knows of no correct_bias",
    ),
    "a bias for no error": ({"scheme": "float", "correct_bias": True}, "no error for correct_bias"),
    "a table that nothing rounds": ({"scheme": "float", "tied_embeddings": 8}, "how a table is rounded"),
    "a table in 3 bits": ({"tied_embeddings": 3}, "tied_embeddings is 3"),
    "negative damping": ({"damping": -1.0}, "damping is -1.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str) -> None:
    wishes, said = REFUSED[name]
    with pytest.raises(UsageError, match=said) as error:
        Recipe(**wishes)
    assert error.value.hint


def test_the_command_line_refuses_groups_in_integer_products(
    tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = "--scheme", "w4a4", "--form", "integer", "--group-size", "32"
    assert_refused(capfd, 2, "cannot scale groups of 32 rows", tiny_llama, tmp_path / "out", *options)


def test_nothing_to_refine_is_said_once(tiny_llama: Path, tmp_path: Path) -> None:
    report = _optimize(tiny_llama, tmp_path / "out", transform="hadamard", refine=True)
    for row in report.sites:
        assert row.why.count("nothing to refine") == 1
        assert row.why.count("not absorbed") == len(row.online)


def test_a_permutation_is_taken_up_where_blocks_run_online(tiny_llama: Path, tmp_path: Path) -> None:
    report = _optimize(tiny_llama, tmp_path / "out", block_size=16, permute=True)
    assert report.verification["transform_relative_l2"] < 1e-4
    moved = [row for row in report.sites if "permutation" in row.absorbed]
    assert moved
    assert all("down_proj" in row.linears[0] for row in moved)
    assert not any("permutation" in row.online for row in report.sites)
    plain = _optimize(tiny_llama, tmp_path / "plain", block_size=16)
    before = {row.site: row.sqnr_after or 0.0 for row in plain.sites}
    assert all((row.sqnr_after or 0.0) > before[row.site] for row in moved)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 10.0])
def test_the_overhead_stays_within_its_bound(share: float, tiny_llama: Path, tmp_path: Path) -> None:
    wishes = {"scheme": "w4a4", "group_size": None, "block_size": 16}
    report = _optimize(tiny_llama, tmp_path / "out", max_overhead=share, **wishes)
    assert report.online_multiply_adds <= share * report.multiply_adds
    if share == 10:
        free = _optimize(tiny_llama, tmp_path / "free", **wishes)
        assert 0 < report.online_multiply_adds <= free.online_multiply_adds
        for own, other in zip(report.sites, free.sites, strict=True):
            # Variants are compared on some rows and columns only.
            assert (own.sqnr_after or 0) >= (other.sqnr_after or 0) - 0.5  # measured: -0.1
