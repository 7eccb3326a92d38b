"""Inputs that come with an export fit it, and are worth calibrating on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import models


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-whisper", "tiny-t5", "tiny-t5-gated"])
def test_feeds_are_what_the_model_takes(name: str) -> None:
    files = sorted(models.path(name).glob("*.npz"))
    assert [file.stem for file in files] in (["feeds"], ["decoder_model", "decoder_with_past_model", "encoder_model"])
    for file in files:
        model = file.with_suffix(".onnx") if file.stem != "feeds" else file.with_name("model.onnx")
        session = ort.InferenceSession(model)
        with np.load(file, allow_pickle=False) as arrays:
            assert sorted(arrays) == sorted(f"{k}/{value.name}" for k in range(8) for value in session.get_inputs())
            feeds = {key.removeprefix("7/"): arrays[key] for key in arrays if key.startswith("7/")}
        assert all(np.isfinite(array).all() for array in session.run(None, feeds))


def test_a_decoder_goes_on_where_it_stopped() -> None:
    folder = models.path("tiny-t5")
    first, later = (np.load(folder / f"{part}.npz") for part in ("decoder_model", "decoder_with_past_model"))
    known = {key.removeprefix("0/"): first[key] for key in first if key.startswith("0/")}
    token = later["0/input_ids"]
    whole = known | {"input_ids": np.concatenate([known["input_ids"], token], axis=1)}
    expected = ort.InferenceSession(folder / "decoder_model.onnx").run(["logits"], whole)[0][:, -1:]
    continued = {key.removeprefix("0/"): later[key] for key in later if key.startswith("0/")}
    logits = ort.InferenceSession(folder / "decoder_with_past_model.onnx").run(["logits"], continued)[0]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_image_feeds_are_batches_of_one(tiny_vit: Path) -> None:
    session = ort.InferenceSession(tiny_vit / "model.onnx")
    with np.load(tiny_vit / "feeds.npz", allow_pickle=False) as feeds:
        assert list(feeds)[:2] == ["0/pixel_values", "1/pixel_values"]
        logits = np.concatenate([session.run(None, {"pixel_values": feeds[key]})[0] for key in feeds])
    assert logits.shape == (32, 10)
    assert logits.std(axis=0).min() > 0.1  # images differ; measured 0.43 to 0.88
