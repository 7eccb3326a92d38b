"""The exports have the structure that the other rooms are tested on, and outliers that are worth transforming away."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

import models
from models import tokens
from models.cache import ROOT

Feeds = dict[str, npt.NDArray[Any]]
TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds. " * 4


def load(folder: Path) -> ir.Model:
    return ir.load(folder / "model.onnx")


def token_rows(folder: Path, rows: int, length: int) -> npt.NDArray[np.int64]:
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    return np.array(ids[: rows * length], dtype=np.int64).reshape(rows, length)


def text_feeds(session: Any, ids: npt.NDArray[np.int64]) -> Feeds:
    rows, length = ids.shape
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.tile(np.arange(length), (rows, 1)),
    }
    feeds = {value.name: known[value.name] for value in session.get_inputs() if value.name in known}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            feeds[value.name] = np.zeros((rows, value.shape[1], 0, value.shape[3]), np.float32)
    return feeds


def run(folder: Path, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    session = ort.InferenceSession(folder / "model.onnx")
    return np.asarray(session.run(None, text_feeds(session, ids))[0])


def feeds_of(folder: Path, session: Any) -> Feeds:
    if (folder / "feeds.npz").exists():
        with np.load(folder / "feeds.npz") as images:
            return {"pixel_values": np.concatenate([images[key] for key in images])}
    return text_feeds(session, token_rows(folder, rows=4, length=32))


def channel_peaks(folder: Path, scratch: Path) -> dict[str, float]:
    """For each input of a linear layer: its largest channel, in multiples of its median channel."""
    model = load(folder)
    inputs = {
        node.inputs[0].name: node.inputs[0]
        for node in model.graph
        if node.op_type in ("MatMul", "Gemm") and node.inputs[0] and node.inputs[1] and node.inputs[1].is_initializer()
    }
    model.graph.outputs.extend(inputs.values())
    ir.save(model, scratch / "with-outputs.onnx")
    session = ort.InferenceSession(scratch / "with-outputs.onnx")
    values = session.run(list(inputs), feeds_of(folder, session))
    peaks = [np.abs(value).reshape(-1, value.shape[-1]).max(axis=0) for value in values]
    return {str(name): float(peak.max() / np.median(peak)) for name, peak in zip(inputs, peaks, strict=True)}


@pytest.mark.parametrize(
    ("name", "opset", "inputs", "ops"),
    [
        ("tiny-llama", 18, {"input_ids", "attention_mask", "position_ids"}, {"Pow": 7, "Softmax": 3, "Sigmoid": 3}),
        ("tiny-llama-script", 18, {"input_ids", "attention_mask"}, {"Pow": 7, "Softmax": 3, "Sigmoid": 3}),
        ("tiny-llama-dynamo", 20, {"input_ids", "attention_mask"}, {"Reciprocal": 7, "Softmax": 3, "Sigmoid": 3}),
        ("tiny-llama-opset23", 23, {"input_ids", "attention_mask"}, {"RMSNormalization": 7, "Attention": 3}),
        ("tiny-gpt2", 18, {"input_ids", "attention_mask", "position_ids"}, {"LayerNormalization": 5, "Gemm": 8}),
        ("tiny-bert", 18, {"input_ids", "attention_mask", "token_type_ids"}, {"LayerNormalization": 5, "Erf": 2}),
        ("tiny-vit", 18, {"pixel_values"}, {"LayerNormalization": 5, "Conv": 1, "Erf": 2}),
    ],
)
def test_structure(name: str, opset: int, inputs: set[str], ops: dict[str, int]) -> None:
    folder = models.path(name)
    model = load(folder)
    found = Counter(node.op_type for node in model.graph)
    assert model.opset_imports[""] == opset
    assert {str(value.name) for value in model.graph.inputs if not str(value.name).startswith("past_key_")} == inputs
    assert {op: found[op] for op in ops} == ops
    assert (folder / "model.onnx").stat().st_size < 2_000_000


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        ("tiny-mistral", {"Pow": 5, "Softmax": 2, "Sigmoid": 2}),
        ("tiny-qwen2", {"Pow": 5, "Softmax": 2, "Sigmoid": 2}),
        ("tiny-qwen3", {"Pow": 9, "Softmax": 2, "Sigmoid": 2}),  # a norm for q and one for k in each layer
        ("tiny-qwen3-moe", {"Pow": 9, "TopK": 2, "NonZero": 8}),  # 4 experts gather their tokens in each layer
        ("tiny-qwen2-moe", {"Pow": 5, "TopK": 2, "NonZero": 10, "Sigmoid": 12}),  # 5 experts and a gate in each layer
        ("tiny-gpt-oss", {"Pow": 5, "TopK": 2, "Tile": 2, "Gemm": 2}),
        ("tiny-mixtral", {"Pow": 5, "TopK": 2, "NonZero": 10, "Sigmoid": 8}),
        ("tiny-nemotron", {"LayerNormalization": 5, "Softmax": 2, "Relu": 2}),
        ("tiny-bloom", {"LayerNormalization": 6, "Softmax": 2, "Tanh": 2}),
        ("tiny-falcon", {"LayerNormalization": 3, "Softmax": 2, "Erf": 2}),
        ("tiny-phi3", {"Pow": 5, "Softmax": 2, "Sigmoid": 2}),
        ("tiny-gemma2", {"Pow": 9, "Softmax": 2, "Tanh": 5}),  # 2 GELUs, 2 caps of scores, 1 of logits
        ("tiny-gemma3", {"Pow": 13, "Softmax": 2, "Tanh": 2}),
        ("tiny-opt", {"LayerNormalization": 5, "Softmax": 2, "Relu": 2, "Gemm": 4}),
        ("tiny-gpt-neox", {"LayerNormalization": 5, "Softmax": 2, "Erf": 2}),
        ("tiny-mamba", {"Pow": 3, "Conv": 2, "Softplus": 2}),
        ("tiny-roberta", {"LayerNormalization": 5, "Softmax": 2, "Erf": 2}),
        ("tiny-distilbert", {"LayerNormalization": 5, "Softmax": 2, "Erf": 2}),
        ("tiny-clip", {"LayerNormalization": 11, "Softmax": 4, "Sigmoid": 4, "Conv": 1}),
        ("tiny-whisper/encoder_model", {"LayerNormalization": 5, "Softmax": 2, "Erf": 4, "Conv": 2}),
        ("tiny-whisper/decoder_model", {"LayerNormalization": 7, "Softmax": 4, "Erf": 2}),
        ("tiny-whisper/decoder_with_past_model", {"LayerNormalization": 7, "Softmax": 4, "Erf": 2}),
        ("tiny-whisper/decoder_model_merged", {"If": 1}),
        ("tiny-t5/encoder_model", {"Pow": 5, "Softmax": 2, "Relu": 2}),
        ("tiny-t5/decoder_model", {"Pow": 7, "Softmax": 4, "Relu": 2}),
        ("tiny-t5/decoder_with_past_model", {"Pow": 7, "Softmax": 4, "Relu": 2}),
        ("tiny-t5/decoder_model_merged", {"If": 1}),
        ("tiny-t5-gated/encoder_model", {"Pow": 7, "Softmax": 2, "Tanh": 2}),
        ("tiny-t5-gated/decoder_model", {"Pow": 9, "Softmax": 4, "Tanh": 2}),
        ("tiny-t5-gated/decoder_with_past_model", {"Pow": 9, "Softmax": 4, "Tanh": 2}),
        ("tiny-t5-gated/decoder_model_merged", {"If": 1}),
        ("tiny-gpt2-ort", {"LayerNormalization": 1, "SkipLayerNormalization": 4, "FastGelu": 2}),
        ("tiny-bert-ort", {"EmbedLayerNormalization": 1, "SkipLayerNormalization": 4, "Attention": 2, "BiasGelu": 2}),
        ("tiny-vit-ort", {"LayerNormalization": 1, "SkipLayerNormalization": 4, "BiasGelu": 2}),
    ],
)
def test_structure_of_the_dialects(name: str, ops: dict[str, int]) -> None:
    dialect, _, file = name.partition("/")
    path = models.path(dialect) / f"{file or 'model'}.onnx"
    model = ir.load(path)
    found = Counter(node.op_type for node in model.graph)
    assert model.opset_imports[""] == 18
    assert {op: found[op] for op in ops} == ops
    assert path.stat().st_size < 2_000_000


def test_caches_have_a_dynamic_length(tiny_llama: Path) -> None:
    graph = load(tiny_llama).graph
    assert [str(value.shape) for value in graph.inputs if value.name == "past_key_values.2.value"] == [
        "[batch_size,2,past_sequence_length,16]"
    ]
    assert len(graph.outputs) == 1 + 2 * 3


@pytest.mark.parametrize("shape", [(1, 1), (2, 33), (3, 64)])
def test_exporters_agree(
    shape: tuple[int, int],
    tiny_llama: Path,
    tiny_llama_dynamo: Path,
    tiny_llama_opset23: Path,
    tiny_llama_script: Path,
) -> None:
    ids = token_rows(tiny_llama, *shape)
    expected = run(tiny_llama, ids)
    for folder in (tiny_llama_dynamo, tiny_llama_opset23, tiny_llama_script):
        # Measured: 4e-6 of logits up to 5.4.
        np.testing.assert_allclose(run(folder, ids), expected, atol=5e-5)


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("tiny-llama", 13),
        ("tiny-gpt2", 4),
        ("tiny-bert", 4),
        ("tiny-vit", 6),
        ("tiny-mistral", 8),
        ("tiny-qwen2", 8),
        ("tiny-qwen3", 8),
        ("tiny-qwen3-moe", 22),
        ("tiny-phi3", 9),
        ("tiny-gemma2", 8),
        ("tiny-gemma3", 8),
        ("tiny-opt", 8),
        ("tiny-gpt-neox", 4),
        ("tiny-mamba", 2),
        ("tiny-roberta", 2),
        ("tiny-distilbert", 2),
    ],
)
def test_outliers_reach_the_linear_layers(name: str, planted: int, tmp_path: Path) -> None:
    peaks = channel_peaks(models.path(name), tmp_path)
    # Planted channels are 20 to 100 times larger. What nobody touched stays below 3; in the post-norm BERT, below 15.
    assert sum(peak > 18 for peak in peaks.values()) == planted, peaks


def test_planting_keeps_the_function() -> None:
    import torch

    from models.outliers import factors, plant

    generator = torch.Generator().manual_seed(0)
    norm, first, second = torch.nn.LayerNorm(16), torch.nn.Linear(16, 8), torch.nn.Linear(16, 4)
    rows = torch.randn(5, 16, generator=generator)
    before = [layer(norm(rows)) for layer in (first, second)]
    vector = factors(16, generator)
    plant(norm, [first, second], vector)
    assert sorted(vector.tolist())[-4] == 1.0
    assert sorted(vector.tolist())[-3] >= 20.0
    torch.testing.assert_close([layer(norm(rows)) for layer in (first, second)], before)
    torch.testing.assert_close(norm.weight, vector)


def test_planting_respects_shared_heads() -> None:
    import torch

    from models.outliers import plant

    value, output = torch.nn.Linear(6, 2 * 3), torch.nn.Linear(4 * 3, 6)
    rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))

    def attend() -> torch.Tensor:  # each of 2 KV heads read by 2 query heads
        return output(value(rows).reshape(5, 2, 3).repeat_interleave(2, dim=1).reshape(5, 12))

    before = attend()
    plant(value, [output], torch.tensor([[1.0, 30.0, 1.0], [50.0, 1.0, 1.0]]), repeat=2)
    torch.testing.assert_close(attend(), before)


def test_two_builds_are_equal(tiny_llama: Path, all_cores: None, tmp_path: Path) -> None:
    # On all cores, as `make` runs the first: torch sums up in an order that depends on the number of threads.
    command = [sys.executable, "-m", "models", "tiny-llama", "--out", str(tmp_path / "again")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for file in tiny_llama.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-llama-dynamo", "tiny-gpt2", "tiny-bert"])
def test_tokenizer_and_config(name: str) -> None:
    folder = models.path(name)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "naïve 日本語\n\tx  1<|>"
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) == len(text.encode())
    assert tokenizer.get_vocab_size() <= config["vocab_size"] == tokens.VOCABULARY_SIZE
    if name == "tiny-bert":
        assert tokenizer.encode("x").tokens == ["[CLS]", "x", "[SEP]"]
        assert config.get("bos_token_id") is None
    else:
        assert tokenizer.token_to_id("<s>") == config["bos_token_id"]


@pytest.mark.real_model
def test_smollm2(smollm2: Path) -> None:
    model = load(smollm2)
    linears = [n for n in model.graph if n.op_type == "MatMul" and n.inputs[1] and n.inputs[1].is_initializer()]
    assert model.opset_imports[""] == 18
    assert len(linears) == 210  # 7 in each of 30 layers; lm_head reads the transposed embedding
    assert len(model.graph.inputs) == 3 + 2 * 30
    assert not (smollm2 / "tokenizer.model").exists()

    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    kind = json.loads(tokenizer.to_str())["model"]
    assert (kind["byte_fallback"], kind["fuse_unk"]) == (False, False)
    ids = np.array([tokenizer.encode("The capital of France is").ids])
    assert ids[0, 0] == 1
    assert tokenizer.decode([int(run(smollm2, ids)[0, -1].argmax())]) == " Paris"


@pytest.mark.real_model
def test_minilm_agrees_with_people(minilm: Path) -> None:
    lee = models.path("lee")
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_padding()
    session = ort.InferenceSession(minilm / "model.onnx")
    vectors = []
    for document in (lee / "documents.txt").read_text(encoding="utf-8").splitlines():
        ids = np.array([tokenizer.encode(document).ids])
        vector = session.run(None, text_feeds(session, ids))[0][0].mean(axis=0)
        vectors.append(vector / np.linalg.norm(vector))
    cosines = np.array(vectors) @ np.array(vectors).T
    pairs = np.triu_indices(50, 1)
    people = np.loadtxt(lee / "similarities.txt")
    assert np.corrcoef(cosines[pairs], people[pairs])[0, 1] > 0.6  # measured 0.654
