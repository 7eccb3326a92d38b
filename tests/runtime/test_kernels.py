"""Which kernel runs each linear: told for every form, and for what did not become what it was meant to be."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import catonnx
from catonnx.recipe import Recipe
from catonnx.runtime.kernels import Kernel, kernels
from models.net import Net
from tests.small_models import catonnx_

QUICK: dict[str, Any] = {"samples": 2, "seq_len": 16}

FORMS: dict[str, tuple[dict[str, Any], tuple[str, str, str], str]] = {
    "qdq": ({}, ("MatMulNBits", "4 bits, groups of 32", "int8 per block"), "rounds activations itself"),
    "nbits": ({"form": "nbits"}, ("MatMulNBits", "4 bits, groups of 32", "float32"), "accuracy level 0"),
    "channels": ({"group_size": None, "form": "nbits"}, ("MatMulNBits", "4 bits, groups of 128", "float32"), "level 0"),
    "integer": (
        {"form": "integer", "scheme": "w4a8", "group_size": None},
        ("MatMulIntegerToFloat", "int8", "int8 codes"),
        "written as a product of integers",
    ),
    "op": (
        {"form": "op", "scheme": "w4a8", "activation_range": "symmetric"},
        ("MatMulNBits", "4 bits, groups of 32", "float32"),
        "the library is not in use",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_run_by_its_kernel(
    form: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where no library is built
    wishes, wanted, why = FORMS[form]
    catonnx.optimize(tiny_llama, tmp_path / "out", Recipe(**(QUICK | wishes)))
    found = kernels(tmp_path / "out" / "model.onnx")
    ours = [kernel for kernel in found if (kernel.operator, kernel.weight, kernel.activation) == wanted]
    assert len(ours) == 21
    assert all(why in kernel.why for kernel in ours)
    sizes = Counter((kernel.inputs, kernel.outputs) for kernel in ours)
    assert sizes == {(64, 64): 6, (64, 32): 6, (64, 192): 6, (192, 64): 3}
    assert len({kernel.linear for kernel in ours}) == 21
    others = [kernel for kernel in found if kernel not in ours and not kernel.linear.endswith("/hadamard")]
    (head,) = others
    assert "lm_head" in head.linear
    assert (head.operator, head.weight, head.why) == ("MatMul", "float32", "its weight is in float")


def test_options_of_a_plan_say_nothing_of_the_model_as_it_is(tiny_llama: Path) -> None:
    result = catonnx_("inspect", tiny_llama, "--runtime", "--scheme", "w4a8")
    assert result.exit_code == 2
    assert "without --scheme" in result.stderr


def test_8_bits_below_level_4_are_said_to_be_slow(tiny_llama: Path, tmp_path: Path) -> None:
    catonnx.optimize(tiny_llama, tmp_path / "out", Recipe(**QUICK, form="nbits", w8=("*",)))
    assert sum("slow" in kernel.why for kernel in kernels(tmp_path / "out" / "model.onnx")) == 21


def test_a_weight_that_is_dequantized_at_every_run(tmp_path: Path) -> None:
    import numpy as np
    import onnx

    net = Net(0)
    x = net.input("x", ["rows", 32])
    codes = net.constant(np.zeros((32, 32), np.int8))
    weight = net.op("DequantizeLinear", codes, net.constant(np.ones(32, np.float32)), axis=1)
    net.output(net.op("Gemm", x, weight, transB=1, result="y"))
    onnx.save(net.proto(), tmp_path / "model.onnx")
    (kernel,) = kernels(tmp_path / "model.onnx")
    assert kernel.operator == "Gemm"
    assert kernel.why == "not fused: its weight is dequantized at every run"


def test_the_command_shows_linears_that_run_alike_in_one_row(tiny_llama: Path, tmp_path: Path) -> None:
    catonnx.optimize(tiny_llama, tmp_path / "out", Recipe(**QUICK))
    result = catonnx_("inspect", tmp_path / "out", "--runtime", "--json", tmp_path / "kernels.json")
    assert result.exit_code == 0
    rows = [line for line in result.stdout.splitlines() if "MatMulNBits" in line]
    assert len(rows) == 7  # q, k, v, o, gate, up, down
    assert all(" 3 " in row for row in rows)
    told = json.loads((tmp_path / "kernels.json").read_text())["kernels"]
    assert [Kernel(**row) for row in told] == list(kernels(tmp_path / "out" / "model.onnx"))
