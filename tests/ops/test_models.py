"""Models in form op: with the library they compute what their functions compute, and it is the library that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import catonnx
from catonnx.recipe import Recipe
from catonnx.runtime.kernels import kernels
from tests.small_models import language_feeds, relative, run

RECIPES: dict[str, dict[str, Any]] = {
    "w4a16": {},
    "w4a16 blocks": {"block_size": 16},
    "w4a8": {"scheme": "w4a8", "activation_range": "symmetric"},
    "w4a8 channels": {"scheme": "w4a8", "activation_range": "symmetric", "group_size": None},
    "w4a4": {"scheme": "w4a4", "activation_range": "symmetric", "group_size": None, "lm_head": True},
}


@pytest.mark.parametrize("name", RECIPES)
def test_kernels_are_the_functions_equals(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = Recipe(samples=4, seq_len=32, form="op", **RECIPES[name])
    catonnx.optimize(tiny_llama, out, recipe)
    feeds = language_feeds(tiny_llama, batch=3)
    functions = run(out / "model.onnx", feeds)["logits"]
    session = catonnx.session(out)
    (kernels_,) = session.run(["logits"], feeds)
    assert relative(functions, kernels_) < 0.02  # a rounding tie that turns over; else 1e-6
    assert np.isfinite(kernels_).all()
    ran = [kernel for kernel in kernels(out / "model.onnx") if "library is registered" in kernel.why]
    rounded = 22 if "lm_head" in RECIPES[name] else 21
    assert len(ran) == (0 if "w4a16" in name else rounded)
