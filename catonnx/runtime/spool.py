"""Values of one model that wait on disk until the other model has run: two sessions are never open at once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from catonnx.errors import OutputError


def temporary_folder(place: str | Path | None) -> tempfile.TemporaryDirectory[str]:
    """Return a new folder that goes with its context.

    Args:
        place: Where it is made; the system's temporary folder unless given.

    Raises:
        OutputError: nothing can be written there.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="catonnx-", dir=place)
    except OSError as error:
        raise OutputError(f"no temporary folder: {error.strerror}", where=place) from error


class Spool:
    """Arrays by sample and position, one file each, in a temporary folder that goes with the context.

    Args:
        scratch: Where the folder is made; the system's temporary folder unless given.

    Raises:
        OutputError: nothing can be written there.
    """

    def __init__(self, scratch: str | Path | None) -> None:
        self._scratch = scratch

    def __enter__(self) -> Spool:
        self._folder = temporary_folder(self._scratch)
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def put(self, sample: int, values: Sequence[np.ndarray]) -> None:
        """Keep the values of one sample.

        Raises:
            OutputError: the disk is full.
        """
        try:
            for position, value in enumerate(values):
                np.save(self._path(sample, position), value)
        except OSError as error:
            raise OutputError(
                f"the reference's outputs cannot be kept: {error.strerror or error}",
                where=self._folder.name,
                hint="free some space, or compare on fewer or shorter samples",
            ) from error

    def get(self, sample: int, position: int) -> np.ndarray:
        """Return one value that was kept."""
        value: np.ndarray = np.load(self._path(sample, position))
        return value

    def _path(self, sample: int, position: int) -> Path:
        return Path(self._folder.name) / f"{sample}-{position}.npy"
