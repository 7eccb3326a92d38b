"""Time, memory, sizes and versions of a run."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGES = ("catonnx", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy")


class Clock:
    """Seconds spent in named steps; a step entered twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Measure a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes.

    Linux starts the `ru_maxrss` of a child process at its parent's size, so the kernel's own high-water mark is better.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def bytes_of(folder: Path, names: Iterable[str]) -> int:
    """Return the size of the named files of a folder that exist."""
    return sum((folder / name).stat().st_size for name in names if (folder / name).exists())


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that had a hand in a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
