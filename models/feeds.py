"""Inputs for models that take no text, in the `.npz` form of catonnx: keys are `<sample>/<input name>`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLES = 32


def write_image_feeds(file: Path, size: int, samples: int = SAMPLES, seed: int = 0) -> None:
    """Write `samples` random images, each a batch of one under `<sample>/pixel_values`.

    Args:
        file: The `.npz` file to write.
        size: Height and width in pixels.
        samples: How many images.
        seed: Of the random numbers.
    """
    generator = np.random.default_rng(seed)
    feeds: dict[str, Any] = {f"{sample}/pixel_values": _image(generator, size)[None] for sample in range(samples)}
    np.savez(file, **feeds)


def _image(generator: np.random.Generator, size: int) -> npt.NDArray[np.float32]:
    """Return random colours (3, size, size) of deviation 1, neighbouring pixels alike, as in photographs."""
    spectrum = np.fft.fft2(generator.standard_normal((3, size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    pixels = np.fft.ifft2(spectrum / (frequency + 1 / size)).real
    return np.asarray(pixels / pixels.std(), dtype=np.float32)
