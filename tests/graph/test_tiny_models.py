"""What can be absorbed before each kind of site of real architectures, as their exporters write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catonnx.analysis import Opened, analyse
from catonnx.graph import load
from catonnx.recipe import Recipe

Row = tuple[int, int, int, int, str, tuple[str, ...]]
"""Channels, linears, widest block, distinct channels, way back, where it is written."""

VALUES = "MatMul/Reshape/Expand/Unsqueeze"
REPEATED = "Reshape/Expand/Unsqueeze/Transpose/Reshape/MatMul"
LLAMA_MLP: list[Row] = [(64, 2, 1, 64, "Mul", ("Mul",)), (192, 1, 1, 192, "Mul/MatMul", ("MatMul",))]
LLAMA: list[Row] = [
    (64, 3, 1, 64, "Mul", ("Mul",)),
    (64, 1, 16, 32, f"Reshape/Transpose/{VALUES}/Concat/Transpose/Reshape/MatMul", ("MatMul",)),
    *LLAMA_MLP,
]
DYNAMO: list[Row] = [
    LLAMA[0],
    (64, 1, 16, 32, f"Reshape/Transpose/{VALUES}/Transpose/Reshape/MatMul", ("MatMul",)),
    *LLAMA_MLP,
]
NORM: Row = (64, 1, 1, 64, "LayerNormalization", ("LayerNormalization", "LayerNormalization"))
HEADS: Row = (64, 1, 16, 64, "Reshape/Transpose/MatMul/Transpose/Reshape/Add/MatMul", ("MatMul", "Add"))
GELU: Row = (192, 1, 0, 192, "Mul/Mul", ())
GPT2: list[Row] = [
    (64, 1, 1, 64, "Reshape/LayerNormalization", ("LayerNormalization", "LayerNormalization")),
    (
        64,
        1,
        16,
        64,
        "Reshape/Reshape/Transpose/MatMul/Concat/Transpose/Reshape/Split/Reshape/Gemm",
        ("Gemm", "Gemm"),
    ),
    (64, 1, 1, 64, "Reshape/LayerNormalization", ("LayerNormalization", "LayerNormalization")),
    (192, 1, 0, 192, "Reshape/Mul", ()),
]
RESIDUAL: Row = (64, 1, 0, 64, "", ())

GOLDEN: dict[str, tuple[int, list[Row]]] = {
    "tiny_llama": (3, LLAMA),
    "tiny_llama_dynamo": (3, DYNAMO),
    "tiny_llama_opset23": (
        3,
        [
            (64, 3, 1, 64, "RMSNormalization", ("RMSNormalization",)),
            (64, 1, 16, 32, f"Reshape/Transpose/Attention/{REPEATED}", ("MatMul",)),
            (64, 2, 1, 64, "RMSNormalization", ("RMSNormalization",)),
            LLAMA_MLP[1],
        ],
    ),
    "tiny_gpt2": (2, GPT2),
    "tiny_bert": (2, [(64, 3, 0, 64, "", ()), HEADS, RESIDUAL, GELU]),
    "tiny_vit": (2, [(64, 3, *NORM[2:]), HEADS, NORM, GELU]),
}


def opened(folder: Path) -> Opened:
    return analyse(load.load(folder / "model.onnx"), Recipe())


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_absorbable_before_every_site_of_every_layer(name: str, request: pytest.FixtureRequest) -> None:
    layers, rows = GOLDEN[name]
    model = opened(request.getfixturevalue(name))
    found = []
    for site in model.sites:
        absorption = model.absorptions[site.name]
        written = tuple(writer.node.op_type for writer in absorption.writers)
        ties = len(np.unique(absorption.ties))
        found.append((site.width, len(site.linears), absorption.width, ties, "/".join(absorption.path), written))
    assert found == rows * layers


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_only_the_caches_of_values_change_their_basis(name: str, request: pytest.FixtureRequest) -> None:
    model = opened(request.getfixturevalue(name))
    caches = [cache for absorption in model.absorptions.values() for cache in absorption.caches]
    assert caches == [f"present.{layer}.value" for layer in range(GOLDEN[name][0])]


def test_query_heads_of_one_kv_head_are_tied_and_others_are_not(tiny_llama: Path) -> None:
    model = opened(tiny_llama)
    absorption = model.absorptions[model.sites[1].name]
    assert absorption.block_ties(16).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tiny_bert", "also read by Add"),
        ("tiny_gpt2", "also read by Pow"),
    ],
)
def test_what_stays_online_says_why(name: str, reason: str, request: pytest.FixtureRequest) -> None:
    model = opened(request.getfixturevalue(name))
    assert any(reason in absorption.reason for absorption in model.absorptions.values())
