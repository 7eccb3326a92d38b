"""Results of a long run, kept by name in a folder, so that a run that was cut off goes on where it was."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from catonnx.errors import OutputError

_PART = ".part"
_BROKEN = (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise where an archive is not sound: after a power failure, say."""


class Kept:
    """Sets of arrays by kind and name: each is there as it was put, or not at all.

    Args:
        folder: An existing folder of ours; None keeps nothing but what this process put, in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._held: dict[str, dict[str, np.ndarray]] = {}
        if folder is not None:
            for unfinished in folder.glob(f"*{_PART}"):
                unfinished.unlink()

    def get(self, kind: str, name: str = "") -> dict[str, np.ndarray] | None:
        """Return what was put, None if nothing was."""
        if self._folder is None:
            return self._held.get(_key(kind, name))
        path = self._path(kind, name)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        except _BROKEN:
            return None

    def put(self, kind: str, name: str = "", arrays: Mapping[str, Any] | None = None) -> None:
        """Keep arrays.

        Raises:
            OutputError: the disk is full.
        """
        if self._folder is None:
            self._held[_key(kind, name)] = {key: np.asarray(array) for key, array in (arrays or {}).items()}
            return
        path = self._path(kind, name)
        buffer = io.BytesIO()
        np.savez(buffer, **dict(arrays or {}))
        part = path.with_suffix(_PART)
        try:
            # Let go of, whatever happens: a view in a traceback crashes the garbage collection of Python 3.12.1.
            with part.open("wb") as file, buffer.getbuffer() as view:
                file.write(view)
            part.replace(path)
        except OSError as error:
            raise OutputError(
                f"results in passing cannot be kept: {error.strerror or error}",
                where=self._folder,
                hint="free some space",
            ) from error

    def _path(self, kind: str, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{_key(kind, name)}.npz"


def _key(kind: str, name: str) -> str:
    """Return a file name for any name: those of models hold slashes, and more."""
    return f"{kind}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
