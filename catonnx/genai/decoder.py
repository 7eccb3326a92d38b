"""A graph as onnxruntime-genai sees it: tokens and a cache in, logits and the cache out, all of them by name."""

from __future__ import annotations

import dataclasses
import re

import onnx_ir as ir

_TOKENS = ("input_ids", "attention_mask", "position_ids")
_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_PAST_NAME, _PRESENT_NAME = "past_key_values.{}.{}", "present.{}.{}"
_LOGITS = "logits"


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A language model with a cache.

    Attributes:
        tokens: Those of `input_ids`, `attention_mask` and `position_ids` that it takes.
        layers: Pairs of a key and a value in its cache.
        heads: Of one key.
        head_size: Width of one of them.
        vocabulary: Width of the logits; None if it is not declared.
        dtype: Of the cache.
    """

    tokens: tuple[str, ...]
    layers: int
    heads: int
    head_size: int
    vocabulary: int | None
    dtype: ir.DataType | None


def decoder_of(model: ir.Model) -> Decoder | str:
    """Return how onnxruntime-genai can feed a model, or why it cannot."""
    inputs = {str(value.name): value for value in model.graph.inputs}
    outputs = {str(value.name): value for value in model.graph.outputs}
    past = {(int(match[1]), match[2]) for match in map(_PAST.fullmatch, inputs) if match}
    layers = len(past) // 2
    wanted = {(layer, kind) for layer in range(layers) for kind in ("key", "value")}
    foreign = sorted(name for name in inputs if name not in _TOKENS and not _PAST.fullmatch(name))
    if "input_ids" not in inputs or _LOGITS not in outputs:
        return "it is no language model: those take input_ids and give logits"
    if foreign:
        return f"onnxruntime-genai feeds no {', '.join(foreign)}"
    if not past:
        return "it has no cache, and onnxruntime-genai feeds one token at a time (Optimum: text-generation-with-past)"
    if past != wanted:
        return "not every layer has a key and a value in the cache"
    missing = [name for item in sorted(past) if (name := _PRESENT_NAME.format(*item)) not in outputs]
    if missing:
        return f"the cache goes in and does not come out: there is no {missing[0]}"
    shape = inputs[_PAST_NAME.format(0, "key")].shape
    if shape is None or len(shape) != 4 or not (isinstance(shape[1], int) and isinstance(shape[3], int)):
        return "the cache's shape is not declared as [batch, heads, length, width]"
    width = (outputs[_LOGITS].shape or (None,))[-1]
    return Decoder(
        tokens=tuple(name for name in _TOKENS if name in inputs),
        layers=layers,
        heads=shape[1],
        head_size=shape[3],
        vocabulary=width if isinstance(width, int) else None,
        dtype=inputs[_PAST_NAME.format(0, "key")].dtype,
    )
