"""The models and texts that `tools/bench_end_to_end.py` measures: each made once a run, in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import models
from catonnx.runtime.text import TokenStream, pack_text, read_text
from tools.child import Child, run

FLOAT, NONE, CAT, PEER = "float", "none", "cat", "onnxruntime"

EXACT = {"session.qdq_matmulnbits_accuracy_level": "0"}
"""Without it ONNX Runtime rounds the activations of a fused MatMulNBits to int8."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rows: Texts of `row_tokens` tokens that perplexity is measured on.
        row_tokens: Tokens in each.
        samples: Calibration texts.
        seq_len: Tokens in each.
        rounds: Timed rounds of decode and prefill.
        decoded: Tokens decoded in each round.
        repeats: Runs of `optimize` that are timed.
        documents: Documents that the encoder is judged on.
    """

    rows: int = 32
    row_tokens: int = 512
    samples: int = 32
    seq_len: int = 512
    rounds: int = 9
    decoded: int = 32
    repeats: int = 1
    documents: int = 300


QUICK = Sizes(rows=2, row_tokens=128, samples=4, seq_len=128, rounds=2, decoded=8, documents=10)
"""To see that everything still runs; its figures mean nothing."""


class Subjects:
    """Sources, texts and the optimized models of one run.

    Args:
        sizes: How much is measured.
        cache: Folder for the optimized models.
        reuse: Take models that an earlier run left there, if they were made with the same recipe.
        model: Folder of a causal language model; None for SmolLM2.
        encoder: Folder of a text encoder; None for MiniLM.
    """

    def __init__(self, sizes: Sizes, cache: Path, *, reuse: bool, model: Path | None, encoder: Path | None) -> None:
        self.sizes = sizes
        self._cache, self._reuse = cache, reuse
        self._model, self._encoder = model, encoder
        self._made: set[str] = set()
        cache.mkdir(parents=True, exist_ok=True)

    @cached_property
    def model(self) -> Path:
        """Folder of the causal language model."""
        return self._model or models.path("smollm2")

    @cached_property
    def encoder(self) -> Path:
        """Folder of the text encoder."""
        return self._encoder or models.path("minilm")

    @cached_property
    def news(self) -> Path:
        """Text to calibrate language models on; the encoder is judged on its lines."""
        return models.path("news")

    @cached_property
    def wikipedia(self) -> Path:
        """Text to evaluate language models on; the encoder is calibrated on it."""
        return models.path("wikipedia")

    @cached_property
    def rows(self) -> np.ndarray:
        """Token rows int64 [rows, tokens] of the Wikipedia text, spread over all of it."""
        stream = TokenStream.load(self.model)
        text = read_text(self.wikipedia)
        return pack_text(text, stream, seq_len=self.sizes.row_tokens, samples=self.sizes.rows)

    def optimized(self, transform: str, *, scheme: str = "w4a16") -> dict[str, Any]:
        """Return the report of the language model after `transform`; `folder` in it is where it lies."""
        recipe = self._recipe(transform, scheme, self.news, self.sizes.seq_len)
        return self._optimized(f"{scheme}-{transform}", self.model, recipe)

    def optimized_encoder(self, transform: str) -> dict[str, Any]:
        """Return the same for the encoder, which takes rows of 256 tokens at most."""
        recipe = self._recipe(transform, "w4a16", self.wikipedia, min(256, self.sizes.seq_len))
        return self._optimized(f"encoder-{transform}", self.encoder, recipe)

    def optimize_again(self) -> Child:
        """Run the main job, CAT and rounding, in a new process whatever lies there, and return how that went."""
        recipe = self._recipe(CAT, "w4a16", self.news, self.sizes.seq_len)
        return self._run(f"w4a16-{CAT}", self.model, recipe)

    def peer(self, level: int) -> dict[str, Any]:
        """Return where onnxruntime's own quantizer put the model, rounded in the same linears, and how many."""
        left = [name for name, _, _ in self.optimized(CAT)["left"]]
        folder = self._cache / f"peer-level-{level}"
        if folder.name not in self._made:
            self._say(f"rounding with onnxruntime's quantizer, accuracy level {level}")
            arguments = {"model": str(self.model), "out": str(folder), "exclude": left, "accuracy_level": level}
            self._keep(folder, run("peer", arguments).result)
        return self._kept(folder)

    def _recipe(self, transform: str, scheme: str, text: Path, seq_len: int) -> dict[str, Any]:
        return {
            "scheme": scheme,
            "transform": transform,
            "group_size": 32,
            "calibration": str(text),
            "samples": self.sizes.samples,
            "seq_len": seq_len,
        }

    def _optimized(self, name: str, model: Path, recipe: dict[str, Any]) -> dict[str, Any]:
        folder = self._cache / name
        if name not in self._made and not (self._reuse and self._is_same(folder, model, recipe)):
            self._run(name, model, recipe)
        return self._kept(folder)

    def _run(self, name: str, model: Path, recipe: dict[str, Any]) -> Child:
        folder = self._cache / name
        self._say(f"optimizing {name}")
        child = run("optimize", {"model": str(model), "out": str(folder), "recipe": recipe})
        self._keep(folder, child.result)
        return child

    def _is_same(self, folder: Path, model: Path, recipe: dict[str, Any]) -> bool:
        if not (folder / "model.onnx").is_file() or not folder.with_suffix(".json").is_file():
            return False
        kept = self._kept(folder)
        return kept["source"] == str(model) and all(kept["recipe"][key] == value for key, value in recipe.items())

    def _keep(self, folder: Path, result: dict[str, Any]) -> None:
        folder.with_suffix(".json").write_text(json.dumps(result | {"folder": str(folder)}), encoding="utf-8")
        self._made.add(folder.name)

    def _kept(self, folder: Path) -> dict[str, Any]:
        kept: dict[str, Any] = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
        return kept

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def file_of(report: dict[str, Any]) -> Path:
    """Return the model file of something that `Subjects` made."""
    return Path(report["folder"]) / "model.onnx"
