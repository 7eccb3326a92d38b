"""Greedy continuations of token ids: by plain ONNX Runtime, onnxruntime-genai and Optimum's ORTModelForCausalLM."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from catonnx.runtime.decoding import Decoder
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.library import open_model

Continue = Callable[[Path, Sequence[Sequence[int]], int], list[list[int]]]
"""Takes the folder of a model, prompts as ids, and the most new tokens; returns the new ids of each."""


def plain(
    folder: Path, prompts: Sequence[Sequence[int]], tokens: int, config: Mapping[str, str] | None = None
) -> list[list[int]]:
    """Continue with an ONNX Runtime session, the likeliest token fed back; `config` is the session's."""
    session, ends = open_model(folder / "model.onnx", config=config), end_ids(folder)
    decoder, written = Decoder(session, InputSpec.from_session(session)), []
    for prompt in prompts:
        decoder.start(1)
        fed, ids = list(prompt), [0] * 0
        while len(ids) < tokens and not (ids and ids[-1] in ends):
            logits = decoder.step(np.array([fed], np.int64))
            fed = [int(logits[0, -1].argmax())]
            ids += fed
        written.append(ids)
    return written


def by_genai(folder: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Continue with onnxruntime-genai's Generator."""
    import onnxruntime_genai

    model, written = onnxruntime_genai.Model(str(folder)), []
    for prompt in prompts:
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, max_length=len(prompt) + tokens)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(np.array(prompt, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        written.append([int(token) for token in generator.get_sequence(0)][len(prompt) :])
    return written


def by_optimum(folder: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Continue with `ORTModelForCausalLM.generate`."""
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    model, written = ORTModelForCausalLM.from_pretrained(folder), []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        whole = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1, max_new_tokens=tokens
        )
        written.append([int(token) for token in whole[0]][len(prompt) :])
    return written


WAYS: Mapping[str, Continue] = {"onnxruntime-genai": by_genai, "ORTModelForCausalLM": by_optimum}


def end_ids(folder: Path) -> frozenset[int]:
    """Return the ids that end a text."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        ends = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
        if ends is not None:
            return frozenset(ends if isinstance(ends, list) else [ends])
    return frozenset()


def until_end(ids: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Return a continuation without the token that ends it, which some hand out and some do not."""
    stop = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:stop])
