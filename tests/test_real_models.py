"""The models that people know: every site is found and absorbed as designed, every linear fused, the function kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import catonnx
from catonnx import Recipe, Report

pytestmark = [pytest.mark.real_model, pytest.mark.usefixtures("all_cores")]


def _choices(report: Report) -> Counter[tuple[tuple[str, ...], tuple[str, ...]]]:
    return Counter((site.absorbed, site.online) for site in report.sites)


def test_smollm2(smollm2: Path, news: Path, tmp_path: Path) -> None:
    recipe = Recipe(calibration=str(news), samples=4, seq_len=256)
    report = catonnx.optimize(smollm2, tmp_path / "out", recipe)
    assert _choices(report) == {
        (("scale",), ("hadamard 32",)): 90,
        (("blocks 64", "hadamard 32"), ()): 30,
    }
    checks = report.verification
    assert (checks["fused"], checks["linears"], checks["not_fused"]) == (210, 210, [])
    # 2e-6 measured.
    assert checks["transform_relative_l2"] <= 1e-4
    # 0.10 nats measured, 0.30 without transforms.
    assert checks["deployed"]["exact activations"]["kl_nats"] < 0.2
    assert report.left == (("/lm_head/MatMul", "MatMul", "output head; --lm-head includes it"),)
    assert len(report.changed_caches) == 30


def test_minilm(minilm: Path, news: Path, tmp_path: Path) -> None:
    recipe = Recipe(calibration=str(news), samples=16, seq_len=128)
    report = catonnx.optimize(minilm, tmp_path / "out", recipe)
    assert _choices(report) == {
        ((), ("scale", "hadamard 32")): 18,
        (("blocks 32", "hadamard 32"), ()): 6,
    }
    checks = report.verification
    assert (checks["fused"], checks["linears"], checks["not_fused"]) == (36, 36, [])
    # 1e-6 measured.
    assert checks["transform_relative_l2"] <= 1e-4
