"""What of transformers' files goes into `genai_config.json`, and what has to be assumed."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from catonnx.genai.config import build, renamed
from catonnx.genai.decoder import Decoder

DECODER = Decoder(
    tokens=("input_ids", "attention_mask"), layers=3, heads=2, head_size=16, vocabulary=260, dtype=ir.DataType.FLOAT
)
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "max_position_embeddings": 512,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": 999,
}


def test_all_of_it_is_found() -> None:
    config, told = build(DECODER, CONFIG, {"eos_token_id": [2, 5], "pad_token_id": 7, "top_p": 0.9, "top_k": None})
    model, search = config["model"], config["search"]
    assert told == []
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2, 5], 7)
    assert (model["context_length"], model["vocab_size"], model["type"]) == (512, 260, "llama")
    decoder = model["decoder"]
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (3, 2, 16)
    assert (decoder["hidden_size"], decoder["num_attention_heads"], decoder["filename"]) == (64, 4, "model.onnx")
    assert decoder["inputs"] == {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    assert decoder["outputs"]["present_value_names"] == "present.%d.value"
    assert search == {"do_sample": False, "top_p": 0.9, "max_length": 512, "past_present_share_buffer": False}


@pytest.mark.parametrize(
    ("config", "told", "wanted"),
    [
        ({"max_position_embeddings": None}, "context_length 2048 is a guess", {"context_length": 2048}),
        ({"max_position_embeddings": None, "n_positions": 64}, "", {"context_length": 64}),
        ({"eos_token_id": None}, "no file names an eos_token_id", {"bos_token_id": 1}),
        ({"eos_token_id": True, "bos_token_id": -1}, "no file names an eos_token_id", {}),
        ({"eos_token_id": [2]}, "", {"eos_token_id": 2, "pad_token_id": 2}),
        ({"eos_token_id": [5, 2]}, "", {"eos_token_id": [5, 2], "pad_token_id": 5}),
        ({"model_type": "gpt_oss"}, "", {"type": "gptoss"}),
        ({"model_type": "gpt2"}, "no models of type gpt2", {"type": "decoder"}),
        ({"max_position_embeddings": None, "text_config": CONFIG}, "", {"context_length": 512}),
    ],
)
def test_what_is_missing_is_told(config: dict[str, Any], told: str, wanted: dict[str, Any]) -> None:
    built, remarks = build(DECODER, CONFIG | config, {})
    assert [told in line for line in remarks] == ([True] if told else [])
    assert wanted.items() <= built["model"].items()
    for name in ("bos_token_id", "eos_token_id"):
        assert built["model"].get(name, 0) is not None  # onnxruntime-genai reads no null


def test_only_the_model_itself_is_renamed() -> None:
    config = {"model": {"decoder": {"pipeline": [{"a": {"filename": "x.onnx"}}, {"b": {"filename": "y.onnx"}}]}}}
    found = renamed(config, "x.onnx")
    assert found["model"]["decoder"]["pipeline"] == [{"a": {"filename": "model.onnx"}}, {"b": {"filename": "y.onnx"}}]
