"""Tokenizers that transformers reads right and onnxruntime-genai does not.

A tokenizer whose pre-tokenizer is ByteLevel spells every text in 256 letters, so nothing of its decoder but ByteLevel
ever finds anything to do. transformers' conversion of GGUF files writes `ByteFallback, Fuse, Replace, ByteLevel`
though, and onnxruntime-genai concludes that the letters are not bytes: it emits the id -1, and decodes `Ġ` as `Ġ`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BYTE_LEVEL = "ByteLevel"
_CLASSES = (
    *("Baichuan", "ChatGLM", "CLIP", "CodeGen", "CodeLlama", "DebertaV2", "GPT2", "GPTNeoX", "Gemma", "InternLM2"),
    *("Llama", "Marian", "Phi3", "PreTrained", "Qwen2", "T5", "Whisper", "XLMRoberta"),
)
_KNOWN = frozenset(f"{name}Tokenizer{fast}" for name in _CLASSES for fast in ("", "Fast")) | {"TokenizersBackend"}
"""What onnxruntime-genai 0.18 takes as `tokenizer_class`."""
_ANY_CLASS: Mapping[str, Any] = {
    # Without its names transformers feeds the class's token_type_ids to the model, which a decoder does not take.
    "model_input_names": ["input_ids", "attention_mask"],
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def mended(tokenizer: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of tokenizer.json as onnxruntime-genai reads it right, or None if it does already."""
    model, decoder = tokenizer.get("model"), tokenizer.get("decoder")
    if not (isinstance(model, dict) and isinstance(decoder, dict)) or decoder.get("type") != "Sequence":
        return None
    level = next((part for part in _parts(decoder, "decoders") if part.get("type") == _BYTE_LEVEL), None)
    if level is None or not any(
        part.get("type") == _BYTE_LEVEL for part in _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    ):
        return None
    return {**tokenizer, "model": {**model, "byte_fallback": False, "fuse_unk": False}, "decoder": level}


def mended_config(
    config: Mapping[str, Any] | None, tokenizer: Mapping[str, Any], ids: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the content of tokenizer_config.json that onnxruntime-genai wants, or None if it is there already.

    Args:
        config: The content that there is; None if there is no such file.
        tokenizer: The content of tokenizer.json.
        ids: `bos_token_id` and its like, for a file that has to be made.
    """
    if config is not None:
        known = config.get("tokenizer_class") in (None, *_KNOWN)
        return None if known else {**_ANY_CLASS, **config, "tokenizer_class": _ANY_CLASS["tokenizer_class"]}
    added = tokenizer.get("added_tokens")
    tokens = [item for item in added if isinstance(item, dict)] if isinstance(added, list) else []
    spelled = {item.get("id"): item.get("content") for item in tokens}
    named = {}
    for kind in ("bos", "eos", "pad"):
        value = ids.get(f"{kind}_token_id")
        token = spelled.get(value[0] if isinstance(value, list) else value)
        if token is not None:
            named[f"{kind}_token"] = token
    return {**named, **_ANY_CLASS}


def _parts(item: Any, inside: str) -> list[dict[str, Any]]:
    """Return the parts of a sequence, or the item itself."""
    if not isinstance(item, dict):
        return []
    parts = item.get(inside) if item.get("type") == "Sequence" else [item]
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
