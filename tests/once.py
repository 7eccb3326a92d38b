"""What takes long to make is made once in a run of the tests, however many processes share the work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "CATONNX_TESTS_FOLDER"
"""Environment variable with the folder that all processes of a run see; conftest.py makes and removes it."""


def once(name: str, fill: Callable[[Path], object]) -> Path:
    """Return the folder `name`, which `fill` has filled in the first process that asked; the others wait for it."""
    whole = Path(os.environ[FOLDER]) / name
    with _alone(whole.with_name(f"{name}.lock")):
        if not whole.exists():
            with tempfile.TemporaryDirectory(dir=whole.parent) as scratch:
                folder = Path(scratch) / name
                folder.mkdir()
                fill(folder)
                folder.rename(whole)
    return whole


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        if os.name == "posix":  # elsewhere only one process runs
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
