"""Inputs for models that take more than text, in the `.npz` form of catonnx: keys are `<sample>/<input name>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models import tokens

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

IMAGES = 32
SAMPLES = 8
"""Of everything but single images."""

TEXT_LENGTH, SOURCE_LENGTH = 24, 18
"""Tokens that a decoder has read, and those of the text that its encoder has read."""


def write_image_feeds(file: Path, size: int, samples: int = IMAGES, seed: int = 0) -> None:
    """Write `samples` random images, each a batch of one under `<sample>/pixel_values`.

    Args:
        file: The `.npz` file to write.
        size: Height and width in pixels.
        samples: How many images.
        seed: Of the random numbers.
    """
    generator = np.random.default_rng(seed)
    _write(file, [{"pixel_values": _image(generator, size)[None]} for _ in range(samples)])


def write_pair_feeds(file: Path, size: int) -> None:
    """Write inputs for a model that compares texts with images: two texts and two images a sample.

    Args:
        file: The `.npz` file to write.
        size: Height and width of the images in pixels.
    """
    generator = np.random.default_rng(0)
    samples = []
    for _ in range(SAMPLES):
        texts = _text(generator, batch=2, length=TEXT_LENGTH)
        images = np.stack([_image(generator, size) for _ in range(2)])
        samples.append({"input_ids": texts, "attention_mask": np.ones_like(texts), "pixel_values": images})
    _write(file, samples)


def write_text_to_text_feeds(folder: Path) -> None:
    """Write `<model>.npz` beside each part of an encoder-decoder that reads text."""
    generator = np.random.default_rng(0)
    texts = [_text(generator, batch=1, length=SOURCE_LENGTH) for _ in range(SAMPLES)]
    _write_parts(folder, [{"input_ids": text, "attention_mask": np.ones_like(text)} for text in texts])


def write_speech_to_text_feeds(folder: Path, bands: int, frames: int) -> None:
    """Write `<model>.npz` beside each part of an encoder-decoder that reads speech.

    Args:
        folder: The export.
        bands: Of the mel spectrum.
        frames: Of the recording.
    """
    generator = np.random.default_rng(0)
    shape = (SAMPLES, 1, bands, frames)
    _write_parts(folder, [{"input_features": speech} for speech in generator.standard_normal(shape, np.float32)])


def _write_parts(folder: Path, sources: Sequence[Feeds]) -> None:
    """Run encoder, decoder and the decoder of later tokens, each fed with what those before it gave out.

    Args:
        folder: An export with `encoder_model.onnx`, `decoder_model.onnx` and `decoder_with_past_model.onnx`.
        sources: Inputs of the encoder, one mapping per sample.
    """
    generator = np.random.default_rng(1)
    encoder, decoder, later = (
        ort.InferenceSession(folder / f"{part}.onnx")
        for part in ("encoder_model", "decoder_model", "decoder_with_past_model")
    )
    first_feeds, later_feeds = [], []
    for source in sources:
        known = {
            "encoder_hidden_states": _run(encoder, source)["last_hidden_state"],
            "encoder_attention_mask": source.get("attention_mask"),
            "input_ids": _text(generator, batch=1, length=TEXT_LENGTH),
        }
        first_feeds.append(_taken(decoder, known))
        caches = {name.replace("present", "past_key_values"): x for name, x in _run(decoder, first_feeds[-1]).items()}
        token = {"input_ids": _text(generator, batch=1, length=1), "cache_position": np.array([TEXT_LENGTH])}
        later_feeds.append(_taken(later, known | caches | token))
    _write(folder / "encoder_model.npz", sources)
    _write(folder / "decoder_model.npz", first_feeds)
    _write(folder / "decoder_with_past_model.npz", later_feeds)


def _write(file: Path, samples: Sequence[Feeds]) -> None:
    arrays: dict[str, Any] = {
        f"{number}/{name}": array for number, feeds in enumerate(samples) for name, array in feeds.items()
    }
    np.savez(file, **arrays)


def _taken(session: Any, known: Mapping[str, Any]) -> Feeds:
    """Return what a model takes of all that is known."""
    return {value.name: known[value.name] for value in session.get_inputs()}


def _run(session: Any, feeds: Feeds) -> Feeds:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _text(generator: np.random.Generator, batch: int, length: int) -> Array:
    """Return random bytes (batch, length) as tokens."""
    return generator.integers(0, tokens.BYTES, (batch, length))


def _image(generator: np.random.Generator, size: int) -> npt.NDArray[np.float32]:
    """Return random colours (3, size, size) of deviation 1, neighbouring pixels alike, as in photographs."""
    spectrum = np.fft.fft2(generator.standard_normal((3, size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    pixels = np.fft.ifft2(spectrum / (frequency + 1 / size)).real
    return np.asarray(pixels / pixels.std(), dtype=np.float32)
