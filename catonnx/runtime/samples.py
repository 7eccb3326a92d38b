"""Where the inputs come from that calibrate and verify a model: a text, an .npz file, or the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from catonnx.errors import CalibrationError
from catonnx.progress import Progress, silent
from catonnx.recipe import SELF
from catonnx.runtime.feeds import Feeds, InputSpec, ModelInput, graph_inputs, load_npz_feeds
from catonnx.runtime.sampling import sample_text
from catonnx.runtime.sessions import open_session
from catonnx.runtime.text import TokenStream, configured_bos, pack_text, read_text

_TOKENS_WRITTEN_AT_ONCE = 2560
"""Length times number of the texts that a model writes side by side: more are faster, and their caches larger.

On SmolLM2 texts of 512 tokens took the process to 3.0 GB with 16 at a time, to 2.1 GB with 8."""

_ROWS_OF_A_RUN = 512
"""Tokens per run: more do not run faster, and hold more activations."""


def gather(
    model_path: Path,
    model: ir.Model,
    folder: Path,
    calibration: str,
    *,
    samples: int,
    seq_len: int,
    seed: int,
    provider: str = "cpu",
    progress: Progress = silent,
) -> list[Feeds]:
    """Return calibration inputs, one mapping per run.

    Args:
        model_path: The model that they are for, in a folder of ours.
        model: Its graph.
        folder: Where its tokenizer.json and config.json lie.
        calibration: A .txt file (through the tokenizer), an .npz file of feeds, or `self`: text that the model writes.
        samples: Sequences of text wanted; a short text may give fewer. An .npz file is taken whole.
        seq_len: Tokens in each.
        seed: For `self`.
        provider: Where the model runs.
        progress: Told of sampling.

    Raises:
        CalibrationError: the data is missing, empty, or does not fit the model.
    """
    suffix = Path(calibration).suffix.lower()
    inputs = graph_inputs(model)
    if suffix == ".npz":
        return load_npz_feeds(calibration, inputs)
    if calibration != SELF and suffix != ".txt":
        raise CalibrationError("calibration data must be a .txt or an .npz file", where=calibration)
    if calibration != SELF:
        text = read_text(calibration)
        spec = InputSpec.of(inputs)
        stream = TokenStream.load(folder)
        return _batched(spec, pack_text(text, stream, seq_len=seq_len, samples=samples, where=calibration))
    bos = configured_bos(folder)
    if bos is None or "input_ids" not in {item.name for item in inputs}:
        raise CalibrationError(
            "the model cannot write its own calibration text: no causal language model with a BOS in its config.json",
            where=folder,
            hint="give --calibration FILE, a .txt (with tokenizer.json beside the model) or an .npz of feeds",
        )
    spec = InputSpec.of(inputs)
    session = open_session(model_path, provider=provider, scratch=model_path.parent)
    together = _fixed_batch(spec) or max(1, _TOKENS_WRITTEN_AT_ONCE // seq_len)
    rows = sample_text(
        session, spec, samples=samples, seq_len=seq_len, seed=seed, bos=bos, batch=together, progress=progress
    )
    return _batched(spec, rows)


def shortened(feeds: Feeds, tokens: int, inputs: Sequence[ModelInput]) -> Feeds:
    """Return the first `tokens` tokens of one run, or the run as it is.

    It stays as it is where the model takes texts of one length only, or takes more than one number for each token.
    """
    ids = feeds.get("input_ids")
    if ids is None or ids.shape[1] <= tokens:
        return feeds
    pasts = {item.name for item in inputs if len(item.shape) == 4}
    aligned = all(array.shape == ids.shape for name, array in feeds.items() if name not in pasts)
    free = all(item.shape == (None,) * 2 or item.shape[1:] == (None,) for item in inputs if item.name not in pasts)
    if not aligned or not free:
        return feeds
    return {name: array if name in pasts else array[:, :tokens] for name, array in feeds.items()}


def _fixed_batch(spec: InputSpec) -> int | None:
    """Return how many texts the model takes at a time, None for any number."""
    return next(item.shape[0] for item in spec.inputs if item.name == "input_ids")


def _batched(spec: InputSpec, rows: np.ndarray) -> list[Feeds]:
    """Put short sequences together into runs of about `_ROWS_OF_A_RUN` tokens, or of as many as the model takes."""
    fixed = _fixed_batch(spec)
    together = fixed or max(1, _ROWS_OF_A_RUN // rows.shape[1])
    starts = range(0, len(rows) - (fixed or 1) + 1, together)
    return [spec.first_feeds(rows[start : start + together]) for start in starts]
