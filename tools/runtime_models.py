"""The models that `bench_runtime` and `gpu_check` compare: a language model in every form, and onnxruntime's own."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import models
from catonnx.runtime.text import TokenStream, pack_text, read_text
from tools.child import run
from tools.llama_shape import LlamaShape, random_tokens, write_llama, write_random_feeds

INT8, EXACT, ROUNDED, INT4 = (
    "onnxruntime int8",
    "onnxruntime int4, exact",
    "onnxruntime int4, level 4",
    "onnxruntime int4",
)

PEERS: Mapping[str, Mapping[str, tuple[str, dict[str, Any]]]] = {
    "fp32": {
        EXACT: ("peer", {"accuracy_level": 0}),
        ROUNDED: ("peer", {"accuracy_level": 4}),
        INT8: ("int8", {}),
    },
    "fp16": {INT4: ("peer", {"accuracy_level": 0}), INT8: ("peer", {"accuracy_level": 0, "bits": 8})},
}
"""Type of the source -> what onnxruntime's own quantizers make of it -> job of `tools.child` and its arguments. Level 4
rounds activations to int8 per block, on CPUs only. In float16 int8 is that of weights: its DynamicQuantizeLinear takes
float32, and no GPU runs it."""

TRANSFORMS: Mapping[str, dict[str, Any]] = {
    "none": {"transform": "none"},
    "scale + hadamard": {"transform": "cat", "block_size": 1},
    "cat 128": {"transform": "cat", "block_size": 128},
}

_PER_TOKEN: dict[str, Any] = {"group_size": None, "activation_range": "symmetric"}
_SYMMETRIC: dict[str, Any] = {"activation_range": "symmetric"}
FORMS: Mapping[str, dict[str, Any]] = {
    "qdq w4a16": {},
    "nbits w4a16": {"form": "nbits"},
    "nbits w4a8": {"form": "nbits", "scheme": "w4a8"},
    "integer w4a8": {"form": "integer", "scheme": "w4a8"} | _PER_TOKEN,
    "integer w4a4": {"form": "integer", "scheme": "w4a4"} | _PER_TOKEN,
    "op w4a16": {"form": "op"},
    "op w4a8": {"form": "op", "scheme": "w4a8"} | _SYMMETRIC,
    "op w4a4": {"form": "op", "scheme": "w4a4"} | _SYMMETRIC,
    "op w4a8 a channel": {"form": "op", "scheme": "w4a8"} | _PER_TOKEN,
    "op w4a4 a channel": {"form": "op", "scheme": "w4a4"} | _PER_TOKEN,
}

EVERY = {"fp32": tuple(FORMS), "fp16": ("nbits w4a16", "op w4a16", "op w4a8", "op w4a4")}
"""Type of the source -> the forms that are compared: CUDA has no level 4, and its kernels want groups of 32."""

USUAL = {
    "fp32": ("op w4a16", "op w4a8", "op w4a8 a channel", "integer w4a8", "integer w4a4"),
    "fp16": ("nbits w4a16", "op w4a16", "op w4a8", "op w4a4"),
}
"""What is made unless more is asked for, with the transforms none and scale + hadamard."""

SHAPES: Mapping[str, LlamaShape] = {
    "tiny": LlamaShape(1, 64, 4, 2, 96, 256, 64),
    "1B": LlamaShape(4, 2048, 32, 8, 8192, 1024, 4096),
    "3B": LlamaShape(3, 3072, 24, 8, 8192, 1024, 4096),
    "8B": LlamaShape(2, 4096, 32, 8, 14336, 1024, 4096),
}
"""Decoder layers of Llama 3, a few of them; of a vocabulary so small that what is timed is the layers."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A language model that is rounded in many ways, and how.

    Attributes:
        name: For tables; empty where there is only one.
        folder: Of `model.onnx`, and of a tokenizer if calibration is a text.
        dtype: "fp32" or "fp16".
        tokens: int64 [sequence], what it is fed with.
        wishes: Fields of a recipe that all of its versions have.
        width: Of its residual stream; 0 if not known.
    """

    name: str
    folder: Path
    dtype: str
    tokens: np.ndarray
    wishes: Mapping[str, Any]
    width: int = 0


def text_subject(folder: Path, tokens: int, samples: int, seq_len: int) -> Subject:
    """Return an exported model, calibrated on news and fed with `tokens` tokens of Wikipedia."""
    text = read_text(models.path("wikipedia"))
    row = pack_text(text, TokenStream.load(folder), seq_len=tokens, samples=1)[0]
    wishes = {"calibration": str(models.path("news")), "samples": samples, "seq_len": seq_len}
    return Subject("", folder, "fp32", row, wishes)


def random_subject(
    name: str,
    shape: LlamaShape,
    folder: Path,
    *,
    tokens: int,
    samples: int = 2,
    seq_len: int = 64,
    rounding: str = "nearest",
    provider: str = "cpu",
) -> Subject:
    """Write a Llama-shaped model in float16 to a folder, unless it is there, and what calibrates it.

    Args:
        name: For tables.
        shape: Its sizes.
        folder: Is made.
        tokens: What it is fed with, at random.
        samples: Calibration runs.
        seq_len: Tokens in each.
        rounding: How scales are chosen; `nearest` is many times faster, and speed does not hang on it.
        provider: Where its versions are calibrated and verified, but for those of our operators.
    """
    source, feeds = folder / "source", folder / "feeds.npz"
    if not feeds.exists():  # written last
        source.mkdir(parents=True, exist_ok=True)
        write_llama(shape, source)
        write_random_feeds(shape, feeds, samples, min(seq_len, shape.positions))
    row = random_tokens(shape, tokens, np.random.default_rng(1))[0]
    wishes = {"calibration": str(feeds), "samples": samples, "rounding": rounding, "provider": provider}
    return Subject(name, source, "fp16", row, wishes, shape.width)


def chosen(dtype: str, only: Sequence[str] | None, every: bool) -> dict[str, dict[str, Any]]:
    """Return what is made of a source of this type: name -> fields of the recipe.

    Args:
        dtype: "fp32" or "fp16".
        only: Shell patterns of names; None or empty for the usual ones.
        every: All forms with all transforms instead of the usual ones.
    """
    names = [f"{form}, {transform}" for form in EVERY[dtype] for transform in TRANSFORMS]
    usual = [f"{form}, {transform}" for form in USUAL[dtype] for transform in ("none", "scale + hadamard")]
    patterns = only or (["*"] if every else usual)
    return recipes([name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)])


def recipes(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the fields of a recipe that names such as "op w4a8, scale + hadamard" stand for, by name."""
    parts = {name: name.split(", ") for name in names}
    return {name: FORMS[form] | TRANSFORMS[transform] for name, (form, transform) in parts.items()}


def make(
    subject: Subject, folder: Path, wanted: Mapping[str, Mapping[str, Any]], *, peers: bool = True
) -> dict[str, Path]:
    """Make what is not in the folder yet, each in a process of its own, and return files by name, the source's first.

    Args:
        subject: What it is made of.
        folder: Is made; every model gets a folder in it.
        wanted: Name -> fields of its recipe.
        peers: Also make what onnxruntime's own quantizers make of it.

    Raises:
        ChildError: one of them failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ours = {}
    for name, wishes in wanted.items():
        recipe = {**subject.wishes, **wishes}
        if recipe.get("form") == "op":
            recipe["provider"] = "cpu"  # what it writes runs everywhere
        ours[name] = _made(subject, folder, name, "optimize", {"recipe": recipe})
    paths = {subject.dtype: subject.folder / "model.onnx"}
    if peers:
        # What we leave in float they leave too, output head first of all.
        exclude = {"exclude": sorted({node for path in ours.values() for node, _, _ in report_of(path)["left"]})}
        for name, (job, arguments) in PEERS[subject.dtype].items():
            paths[name] = _made(subject, folder, name, job, exclude | arguments)
    return paths | ours


def report_of(path: Path) -> dict[str, Any]:
    """Return the report beside a model of ours."""
    report: dict[str, Any] = json.loads((path.parent / "catonnx.json").read_text(encoding="utf-8"))
    return report


def _made(subject: Subject, folder: Path, name: str, job: str, arguments: Mapping[str, Any]) -> Path:
    made_of = json.dumps([str(subject.folder), job, arguments], sort_keys=True, default=str)
    out = folder / f"{name.replace(' ', '_').replace(',', '')}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    if not (out / "model.onnx").exists():
        print(f"making: {name}", file=sys.stderr, flush=True)
        run(job, {"model": str(subject.folder), "out": str(out), **arguments})
    return out / "model.onnx"
