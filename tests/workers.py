"""The processes that share the tests: what takes long to make is made once for all, and each keeps to a core."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from catonnx.cores import usable_cores

FOLDER = "CATONNX_TESTS_FOLDER"
"""Environment variable with the folder that all processes of a run see; conftest.py makes and removes it."""

MOST = 8
"""Workers; each spends 13 seconds on collecting the tests."""

_PINS = hasattr(os, "sched_setaffinity")
_CORES = sorted(os.sched_getaffinity(0)) if _PINS else []


def once(name: str, fill: Callable[[Path], object]) -> Path:
    """Return the folder `name`, which `fill` has filled in the first process that asked; the others wait for it."""
    whole = Path(os.environ[FOLDER]) / name
    with _alone(whole.with_name(f"{name}.lock")):
        if not whole.exists():
            with tempfile.TemporaryDirectory(dir=whole.parent) as scratch, all_cores():
                folder = Path(scratch) / name
                folder.mkdir()
                fill(folder)
                folder.rename(whole)
    return whole


def count() -> int:
    """Return for how many workers there are cores; pytest-xdist would count two hyper-threads of one as one."""
    return min(usable_cores(), MOST)


def keep_to_a_core(worker: str) -> None:
    """Let a worker of pytest-xdist, gw0 and so on, run on one core, and with it all that it starts.

    Threads that spin beside those of the other workers cost ONNX Runtime a quarter of its time.
    """
    if _PINS:
        os.sched_setaffinity(0, {_CORES[int(worker.removeprefix("gw")) % len(_CORES)]})


@contextmanager
def all_cores() -> Iterator[None]:
    """Run on all cores: threads that are started now come in the number that users have."""
    if not _PINS:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        if os.name == "posix":  # elsewhere only one process runs
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
