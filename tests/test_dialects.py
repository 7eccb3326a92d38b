"""Dialects: how exporters write linears, norms and attention of many architectures, and what becomes of each.

One tiny model stands for each; an encoder-decoder comes as several files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

import catonnx
import models
from catonnx import Recipe, Report
from catonnx.errors import NothingToOptimizeError

ABSORBED: dict[str, dict[str, int]] = {
    "tiny-llama-script": {"scale": 9, "blocks 16": 3},
    "tiny-mistral": {"scale": 6, "blocks 16 + hadamard 16": 2},
    "tiny-qwen2": {"scale": 6, "blocks 16": 2},
    "tiny-qwen3": {"scale": 6, "blocks 16": 2},
    "tiny-qwen3-moe": {"scale": 18, "blocks 16": 2},
    "tiny-qwen2-moe": {"scale": 22, "blocks 16": 2},
    "tiny-gpt-oss": {"scale": 10, "blocks 16": 2, "": 8},
    "tiny-mixtral": {"scale": 18, "blocks 16": 2},
    "tiny-nemotron": {"scale": 6, "blocks 16": 2},
    "tiny-bloom": {"scale": 4, "blocks 16": 2, "": 2},
    "tiny-falcon": {"scale": 2, "blocks 16": 2, "": 2},
    "tiny-phi3": {"scale": 6, "blocks 24": 2},
    "tiny-gemma2": {"scale": 6, "blocks 16": 2},
    "tiny-gemma3": {"scale": 6, "blocks 32 + hadamard 32": 2},
    "tiny-opt": {"scale": 6, "blocks 16 + hadamard 16": 2},
    "tiny-gpt-neox": {"scale": 4, "blocks 24": 2, "": 2},
    "tiny-mamba": {"scale": 2, "blocks 8 + hadamard 8": 2, "": 4},
    "tiny-roberta": {"blocks 16": 2, "": 6},
    "tiny-distilbert": {"blocks 12": 2, "": 6},
    "tiny-clip": {"scale": 10, "blocks 12": 2, "blocks 16 + hadamard 16": 2, "": 4},
    "tiny-whisper/encoder_model": {"scale": 4, "blocks 16": 2, "": 2},
    "tiny-whisper/decoder_model": {"scale": 6, "": 7},
    "tiny-whisper/decoder_with_past_model": {"scale": 6, "": 6},
    "tiny-t5/encoder_model": {"scale": 6, "blocks 12": 2},
    "tiny-t5/decoder_model": {"scale": 8, "": 5},
    "tiny-t5/decoder_with_past_model": {"scale": 8, "": 4},
    "tiny-t5-gated/encoder_model": {"scale": 6, "blocks 12": 2},
    "tiny-t5-gated/decoder_model": {"scale": 8, "": 5},
    "tiny-t5-gated/decoder_with_past_model": {"scale": 8, "": 4},
    "tiny-gpt2-ort": {"scale": 4, "blocks 16": 2, "": 2},
    "tiny-bert-ort": {"blocks 16": 2, "": 4},
    "tiny-vit-ort": {"scale": 4, "blocks 16": 2, "": 2},
}
"""Dialect (and file, where that is not `model.onnx`) -> factors that the graph takes up -> before how many sites."""

MERGED = ["tiny-whisper/decoder_model_merged", "tiny-t5/decoder_model_merged", "tiny-t5-gated/decoder_model_merged"]
"""Files with two decoders inside the branches of an If."""

ELSEWHERE = {"tiny-llama", "tiny-llama-dynamo", "tiny-llama-opset23", "tiny-gpt2", "tiny-bert", "tiny-vit"}
"""What `test_pipeline` looks into more deeply."""


@dataclass(frozen=True)
class Done:
    """One run: of which file, and what was reported."""

    source: Path
    report: Report

    @property
    def linears(self) -> int:
        """Linears of the source but for output heads, counted without catonnx."""
        return constant_matrices(self.source) - len([reason for reason in self.left if "output head" in reason])

    @property
    def rounded(self) -> int:
        """Linears that were rounded."""
        return sum(len(row.linears) for row in self.report.sites)

    @property
    def left(self) -> list[str]:
        """Why linears were not."""
        return [reason for _, operator, reason in self.report.left if operator in ("MatMul", "Gemm")]


Optimized = Callable[[str], Done]


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Optimized:
    """Return what rounds a file to 4 bits; the same one only once."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 20, encoding="utf-8")
    kept: dict[str, Done] = {}

    def optimize(name: str) -> Done:
        if name not in kept:
            file = file_of(name)
            recipe = Recipe(scheme="w4a16", calibration=calibration(file, text), samples=2, seq_len=32)
            kept[name] = Done(file, catonnx.optimize(file, tmp_path_factory.mktemp("out") / "out", recipe))
        return kept[name]

    return optimize


def file_of(name: str) -> Path:
    dialect, _, file = name.partition("/")
    return models.path(dialect) / f"{file or 'model'}.onnx"


def calibration(file: Path, text: Path) -> str:
    """Return the inputs made for a file, or else text: its own where it is a decoder with a cache."""
    made = next((feeds for feeds in (file.with_suffix(".npz"), file.parent / "feeds.npz") if feeds.exists()), None)
    own = (file.parent / "generation_config.json").exists()
    return str(made) if made else "self" if own else str(text)


def constant_matrices(file: Path) -> int:
    """Return by how many constant matrices nodes multiply what flows in, whatever spells the constant."""
    graph = onnx.load(file).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            shapes[node.output[0]] = list(node.attribute[0].t.dims)
        elif node.op_type in ("Cast", "Identity", "Transpose") and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    weights = [shapes.get(node.input[1], []) for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    return sum(1 if len(weight) == 2 else weight[0] for weight in weights if len(weight) in (2, 3))


@pytest.mark.parametrize("name", ABSORBED)
def test_the_transformed_model_is_the_same_function(name: str, optimized: Optimized) -> None:
    assert optimized(name).report.verification["transform_relative_l2"] <= 1e-4  # measured: 2e-7 to 1e-6


@pytest.mark.parametrize("name", ABSORBED)
def test_every_linear_is_rounded_or_it_is_said_why_not(name: str, optimized: Optimized) -> None:
    done = optimized(name)
    assert all(done.left)
    assert done.rounded + len(done.left) == constant_matrices(done.source)


@pytest.mark.parametrize("name", ABSORBED)
def test_onnx_runtime_keeps_every_linear_in_4_bits(name: str, optimized: Optimized) -> None:
    verification = optimized(name).report.verification
    assert verification["not_fused"] == []
    assert verification["fused"] == verification["linears"] == optimized(name).rounded


@pytest.mark.parametrize("name", ABSORBED)
def test_what_the_graph_takes_up(name: str, optimized: Optimized) -> None:
    assert Counter(" + ".join(row.absorbed) for row in optimized(name).report.sites) == ABSORBED[name]


def test_hardly_a_linear_stays_as_it_is(optimized: Optimized) -> None:
    done = [optimized(name) for name in ABSORBED]
    # Measured: all of them.
    assert sum(one.rounded for one in done) >= 0.95 * sum(one.linears for one in done)


@pytest.mark.parametrize("name", MERGED)
def test_a_merged_decoder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(NothingToOptimizeError, match=r"inside the body of If.* take the parts, decoder_model\.onnx"):
        catonnx.optimize(file_of(name), tmp_path / "out", Recipe(samples=2, seq_len=32))
    assert list(tmp_path.iterdir()) == []


def test_every_file_of_every_tiny_model_is_listed() -> None:
    dialects = {name for name in models.RECIPES if name.startswith("tiny-")} - ELSEWHERE
    files = {file for dialect in dialects for file in models.path(dialect).glob("*.onnx")}
    assert {file_of(name) for name in (*ABSORBED, *MERGED)} == files
