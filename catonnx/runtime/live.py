"""What is handed over between the stages of a model: in memory while there is room, in files after that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from catonnx.errors import OutputError
from catonnx.runtime.feeds import Feeds
from catonnx.runtime.spool import temporary_folder

Way = Literal["both", "float", "rounded"]
"""Whose value it is; before the first site the two runs are one."""


class Live:
    """Values between stages, by way, name and sample: in memory, or in files once that is full.

    Args:
        feeds: Inputs of the model: found under their names in every run, and never forgotten.
        ways: The runs; a value of "both" is forgotten with the last.
        scratch: Where a folder for files is made, which goes with the context.
        memory: Bytes to hold in memory.
    """

    def __init__(self, feeds: Sequence[Feeds], ways: Sequence[Way], scratch: Path, memory: int) -> None:
        self.ways, self._feeds, self._scratch, self._room = ways, feeds, scratch, memory
        self._held: dict[tuple[Way, str, int], np.ndarray | Path] = {}
        self._files = 0

    def __enter__(self) -> Live:
        self._folder = temporary_folder(self._scratch)
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self._feeds)

    @property
    def folder(self) -> Path:
        """The folder for files."""
        return Path(self._folder.name)

    def get(self, way: Way, name: str, sample: int) -> np.ndarray:
        """Return a value of one run, or of both."""
        if name in self._feeds[sample]:
            return self._feeds[sample][name]
        own = self._held.get((way, name, sample))
        kept = self._held["both", name, sample] if own is None else own
        if isinstance(kept, np.ndarray):
            return kept
        value: np.ndarray = np.load(kept)
        return value

    def held(self) -> Iterator[tuple[tuple[Way, str, int], np.ndarray]]:
        """Yield way, name and sample of every value that is not an input, and the value."""
        for key, kept in self._held.items():
            yield key, kept if isinstance(kept, np.ndarray) else np.load(kept)

    def put(self, way: Way, name: str, sample: int, value: np.ndarray) -> None:
        """Keep a copy of a value: what a session gives lies in an arena of its own, which one array keeps in memory.

        Raises:
            OutputError: the disk is full.
        """
        if value.nbytes <= self._room:
            self._room -= value.nbytes
            self._held[way, name, sample] = value.copy()
            return
        path, self._files = self.folder / f"{self._files}.npy", self._files + 1
        self._held[way, name, sample] = path
        try:
            np.save(path, value, allow_pickle=False)
        except OSError as error:
            raise OutputError(
                f"activations between two stages cannot be kept: {error.strerror or error}",
                where=self._scratch,
                hint="free some space, or calibrate on fewer or shorter samples",
            ) from error

    def forget(self, way: Way, names: Sequence[str], sample: int) -> None:
        """Let go of values of one sample that no later stage reads."""
        for owner in (way, "both") if way == self.ways[-1] else (way,):
            for name in names:
                kept = self._held.pop((owner, name, sample), None)
                if isinstance(kept, Path):
                    kept.unlink()
                elif kept is not None:
                    self._room += kept.nbytes
