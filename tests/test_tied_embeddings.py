"""`optimize` with one table for embedding and output head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import catonnx
import models
from catonnx import Recipe
from catonnx.errors import UsageError
from catonnx.inspection import inspect
from catonnx.planning.planfile import load_plan, save_plan
from catonnx.planning.siteplan import Plan
from catonnx.report import Report
from tests.refusals import assert_refused
from tests.small_models import QUICK as QUICK_OPTIONS
from tests.small_models import catonnx_, language_feeds, relative, run

QUICK: dict[str, Any] = {"samples": 4, "seq_len": 48}
VOCABULARY, WIDTH = 260, 96

WISHES: dict[str, dict[str, Any]] = {
    "8 bits": {"tied_embeddings": 8},
    "4 bits": {"tied_embeddings": 4},
    "8 bits, groups that do not tile a row": {"tied_embeddings": 8, "group_size": 64},
    "4 bits, nbits": {"tied_embeddings": 4, "form": "nbits"},
    "8 bits, nbits": {"tied_embeddings": 8, "form": "nbits"},
    "4 bits, integer": {"tied_embeddings": 4, "scheme": "w4a8", "form": "integer", "group_size": None},
    "4 bits, op": {"tied_embeddings": 4, "scheme": "w4a8", "form": "op", "activation_range": "symmetric"},
    "8 bits, w4a4": {"tied_embeddings": 8, "scheme": "w4a4", "group_size": None},
    "4 bits, gptq": {"tied_embeddings": 4, "rounding": "gptq", "correct_bias": True},
    "8 bits, sequential": {"tied_embeddings": 8, "rounding": "sequential"},
    "8 bits, others by budget": {"tied_embeddings": 8, "target_bits": 6.0},
    "4 bits, narrower transforms": {"tied_embeddings": 4, "max_overhead": 0.1},
}


@pytest.fixture(scope="module")
def tiny_qwen2() -> Path:
    """Folder of 2 random Qwen2 layers with tied embeddings."""
    return models.path("tiny-qwen2")


def _optimize(model: Path, out: Path, **wishes: Any) -> Report:
    return catonnx.optimize(model, out, Recipe(**(QUICK | wishes)))


def _tables(folder: Path) -> list[int]:
    """Return the bits of a number in each tensor that holds the whole table."""
    tensors = onnx.load(folder / "model.onnx").graph.initializer
    shaped = [tensor for tensor in tensors if VOCABULARY in tensor.dims and len(tensor.raw_data) > VOCABULARY * 32]
    return [8 * len(tensor.raw_data) // (VOCABULARY * WIDTH) for tensor in shaped]


@pytest.mark.parametrize("name", WISHES)
def test_the_table_is_stored_once(name: str, tiny_qwen2: Path, tmp_path: Path) -> None:
    wishes = WISHES[name]
    report = _optimize(tiny_qwen2, tmp_path / "out", **wishes)
    padded = 128 if wishes.get("group_size") == 64 and wishes.get("form") == "nbits" else WIDTH
    assert _tables(tmp_path / "out") == [wishes["tied_embeddings"] * padded // WIDTH]
    head = report.sites[-1]
    assert head.linears == ("/lm_head/MatMul",)
    assert head.bits == wishes["tied_embeddings"]
    assert (head.absorbed, head.online) == ((), ())
    assert "the embedding shares its table" in head.why
    assert all(row.absorbed or row.online for row in report.sites[:-1])
    assert report.verification["fused"] == report.verification["linears"] == 15
    assert report.verification["deployed"]["as deployed"]["kl_nats"] < 0.2  # measured: 0.03 to 0.17


def test_without_the_wish_the_head_has_its_own(tiny_qwen2: Path, tmp_path: Path) -> None:
    report = _optimize(tiny_qwen2, tmp_path / "out", lm_head=True)
    assert sorted(_tables(tmp_path / "out")) == [4, 32]
    assert "shares" not in report.sites[-1].why


@pytest.mark.parametrize("form", ["qdq", "nbits"])
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.02), (4, 0.3)])
def test_only_the_table_rounded_is_nearly_the_source(
    bits: int, bound: float, form: str, tiny_qwen2: Path, tmp_path: Path
) -> None:
    _optimize(tiny_qwen2, tmp_path / "out", include=("*lm_head*",), tied_embeddings=bits, form=form)
    feeds = language_feeds(tiny_qwen2)
    source, result = run(tiny_qwen2, feeds), run(tmp_path / "out", feeds, exact=True)
    error = relative(source["logits"], result["logits"])
    assert 0 < error < bound  # measured: 0.012 and 0.19
    assert relative(source["present.0.key"], result["present.0.key"]) > 0  # the embedding was rounded, too


def test_a_plan_is_applied_again(tiny_qwen2: Path, tmp_path: Path) -> None:
    report = _optimize(tiny_qwen2, tmp_path / "first", tied_embeddings=8)
    assert report.plan is not None
    save_plan(tmp_path / "plan.npz", report.plan, report.digest, report.recipe)
    saved = load_plan(tmp_path / "plan.npz")
    recipe = Recipe(**(QUICK | dict(saved.shaping)))
    catonnx.optimize(tiny_qwen2, tmp_path / "second", recipe, plan=saved.plan)
    assert (tmp_path / "second/model.onnx").read_bytes() == (tmp_path / "first/model.onnx").read_bytes()


def test_a_plan_that_changes_the_basis_of_the_table_is_refused(tiny_qwen2: Path, tmp_path: Path) -> None:
    plan = _optimize(tiny_qwen2, tmp_path / "own", lm_head=True).plan
    assert isinstance(plan, Plan)
    recipe = Recipe(**QUICK, tied_embeddings=8)
    with pytest.raises(UsageError, match="where the embedding shares the weight") as error:
        catonnx.optimize(tiny_qwen2, tmp_path / "out", recipe, plan=plan)
    assert error.value.hint
    assert not (tmp_path / "out").exists()


def test_inspect_says_that_the_head_keeps_its_basis(tiny_qwen2: Path) -> None:
    head = inspect(tiny_qwen2, Recipe(tied_embeddings=8, calibration="self", **QUICK)).sites[-1]
    assert (head.absorbed, head.online) == ((), ())
    assert "the embedding shares its table" in head.why


def test_the_command_line(tiny_qwen2: Path, tmp_path: Path) -> None:
    options = "-o", tmp_path / "out", "--tied-embeddings", "8", *QUICK_OPTIONS
    result = catonnx_("optimize", tiny_qwen2, *options)
    assert result.exit_code == 0, result.output
    assert _tables(tmp_path / "out") == [8]


def test_what_is_not_tied_is_refused(tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert_refused(capfd, 2, "no table is shared", tiny_llama, tmp_path / "out", "--tied-embeddings", "8")


def test_a_head_left_out_is_refused(tiny_qwen2: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = "--tied-embeddings", "8", "--exclude", "*lm_head*"
    assert_refused(capfd, 2, "no table is shared", tiny_qwen2, tmp_path / "out", *options)


def test_logits_of_both_forms_agree(tiny_qwen2: Path, tmp_path: Path) -> None:
    feeds = language_feeds(tiny_qwen2)
    results = []
    for form in ("qdq", "nbits"):
        _optimize(tiny_qwen2, tmp_path / form, form=form, tied_embeddings=8)
        results.append(run(tmp_path / form, feeds, exact=True)["logits"])
    np.testing.assert_allclose(results[0], results[1], atol=1e-4 * np.abs(results[0]).max())
