"""`genai_config.json`: written from what transformers has beside a model, or kept right where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from catonnx.genai.decoder import Decoder

MODEL_FILE = "model.onnx"
LEVEL = "session.qdq_matmulnbits_accuracy_level"

_TYPES: Mapping[str, str] = {"gpt_oss": "gptoss"} | {
    name: name
    for name in (
        *("chatglm", "ernie4_5", "gemma", "gemma2", "gemma3_text", "granite", "internlm2", "llama", "mistral"),
        *("nemotron", "olmo", "phi", "phi3", "phimoe", "qwen2", "qwen3", "smollm3"),
    )
}
"""transformers' model_type -> onnxruntime-genai's. Its gpt2 has a cache of another layout than any exporter writes."""
_ANY_TYPE = "decoder"
"""For every other model: its inputs and outputs are mapped by name, and so they are for most of those above."""

_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")
_UNKNOWN_CONTEXT = 2048


def build(
    decoder: Decoder, config: Mapping[str, Any], generation: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the content of `genai_config.json`, and remarks on what had to be assumed.

    Args:
        decoder: The model.
        config: The content of config.json.
        generation: The content of generation_config.json; goes before it.
    """
    nested = config.get("text_config")
    config = {**config, **nested} if isinstance(nested, dict) else config
    told: list[str] = []
    context = _first(config, _CONTEXT)
    if context is None:
        context = _UNKNOWN_CONTEXT
        told.append(f"config.json names no longest text; context_length {context} is a guess: correct it")
    kind = _TYPES.get(str(config.get("model_type")), _ANY_TYPE)
    if kind == _ANY_TYPE:
        told.append(f"it knows no models of type {config.get('model_type')}: taken as {_ANY_TYPE}, by names alone")
    ids = _token_ids(config, generation)
    if "eos_token_id" not in ids:
        told.append("no file names an eos_token_id: texts end at max_length only")
    pairs = {f"{{}}_{part}_names": part for part in ("key", "value")}
    model = {
        **ids,
        "context_length": context,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": MODEL_FILE,
            "head_size": decoder.head_size,
            **_named("hidden_size", _first(config, _WIDTH)),
            "inputs": {
                **{name: name for name in decoder.tokens},
                **{key.format("past"): f"past_key_values.%d.{part}" for key, part in pairs.items()},
            },
            "outputs": {
                "logits": "logits",
                **{key.format("present"): f"present.%d.{part}" for key, part in pairs.items()},
            },
            **_named("num_attention_heads", _first(config, _HEADS)),
            "num_hidden_layers": decoder.layers,
            "num_key_value_heads": decoder.heads,
        },
        "type": kind,
        **_named("vocab_size", decoder.vocabulary or _first(config, ("vocab_size",))),
    }
    chosen = {name: generation[name] for name in _SEARCH if isinstance(generation.get(name), (bool, int, float))}
    # The cache of an exported graph grows from step to step; only GroupQueryAttention could write into one buffer.
    search = {"do_sample": False, **chosen, "max_length": context, "past_present_share_buffer": False}
    return {"model": model, "search": search}, told


def is_whole(config: Mapping[str, Any]) -> bool:
    """Whether a `genai_config.json` says which file decodes."""
    return isinstance(_inner(config, "model", "decoder"), dict)


def decoder_file(config: Mapping[str, Any]) -> object:
    """Return the file that a `genai_config.json` says decodes; None if it names none."""
    return _inner(config, "model", "decoder", "filename")


def renamed(config: Any, old: str) -> Any:
    """Return a `genai_config.json` where the model `old` is called as our result is."""
    if isinstance(config, list):
        return [renamed(item, old) for item in config]
    if not isinstance(config, dict):
        return config
    return {
        key: MODEL_FILE if key == "filename" and value == old else renamed(value, old) for key, value in config.items()
    }


def session_options(config: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the decoder's session, to be changed in place."""
    options = config["model"]["decoder"].setdefault("session_options", {})
    return options if isinstance(options, dict) else {}


def _inner(config: Any, *path: str) -> Any:
    for key in path:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _token_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, int | list[int]]:
    ids: dict[str, int | list[int]] = {}
    for kind in ("bos", "eos", "pad"):
        for source in (generation, config):
            listed = source.get(f"{kind}_token_id")
            known = [item for item in (listed if isinstance(listed, list) else [listed]) if _is_count(item)]
            if known:
                ids[f"{kind}_token_id"] = known if kind == "eos" and len(known) > 1 else known[0]
                break
    if "pad_token_id" not in ids and "eos_token_id" in ids:
        eos = ids["eos_token_id"]
        ids["pad_token_id"] = eos[0] if isinstance(eos, list) else eos
    return ids


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((config[name] for name in names if _is_count(config.get(name)) and config[name]), None)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _named(name: str, value: int | None) -> dict[str, int]:
    return {} if value is None else {name: value}
