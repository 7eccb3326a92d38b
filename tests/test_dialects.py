"""Dialects: how exporters write linears, norms and attention of many architectures, and what becomes of each.

One tiny model stands for each; an encoder-decoder comes as several files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import catonnx
from catonnx import Recipe, Report
from models.dialects import TEXT, calibration, constant_matrices, file_of, names
from tests.small_models import first_sample, relative, run, session

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

MERGED = {
    "tiny-whisper/decoder_model_merged": (36, 20),
    "tiny-t5/decoder_model_merged": (36, 20),
    "tiny-t5-gated/decoder_model_merged": (40, 22),
}
"""Files with two decoders inside the branches of an If -> linears in both but for heads, different weights of these."""

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
    text.write_text(TEXT, encoding="utf-8")
    kept: dict[str, Done] = {}

    def optimize(name: str) -> Done:
        if name not in kept:
            file = file_of(name)
            recipe = Recipe(scheme="w4a16", calibration=calibration(file, text), samples=2, seq_len=32)
            kept[name] = Done(file, catonnx.optimize(file, tmp_path_factory.mktemp("out") / "out", recipe))
        return kept[name]

    return optimize


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
def test_a_merged_decoder_is_rounded_in_both_branches(name: str, tmp_path: Path) -> None:
    linears, weights = MERGED[name]
    source, out = file_of(name), tmp_path / "out"
    samples = merged_feeds(source)
    arrays = {f"{index}/{key}": array for index, one in enumerate(samples) for key, array in one.items()}
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **arrays)
    report = catonnx.optimize(source, out, Recipe(calibration=str(tmp_path / "feeds.npz")))
    verification = report.verification
    assert verification["transform_relative_l2"] < 1e-4
    assert verification["fused"] == verification["linears"] == linears
    assert {reason for _, _, reason in report.left} == {"output head; --lm-head includes it"}
    assert {item.key for item in onnx.load(out / "model.onnx").metadata_props} == {"catonnx"}
    # Measured 0.18 to 0.31, which is what the parts lose without calibration.
    for one in samples:
        assert relative(run(source, one)["logits"], run(out, one, exact=True)["logits"]) < 0.4
    # Both branches read one copy of what they share.
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    assert len([tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT4]) == weights


def merged_feeds(source: Path) -> list[dict[str, np.ndarray]]:
    """Return inputs for either branch of a merged decoder: those of the files that it was merged from."""
    taken = session(source).get_inputs()
    first, later = (
        first_sample(source.with_name(f"{part}.npz")) for part in ("decoder_model", "decoder_with_past_model")
    )
    empty = {
        item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32) for item in taken if "past" in item.name
    }
    return [
        {item.name: (empty | first | own | {"use_cache_branch": np.array([flag])})[item.name] for item in taken}
        for flag, own in ((False, {}), (True, later))
    ]


def test_every_file_of_every_tiny_model_is_listed() -> None:
    assert {*ABSORBED, *MERGED, *ELSEWHERE} == {*names()}
