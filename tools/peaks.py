"""Floors of this machine: how fast it reads memory, and how many products of int8 it adds up; by `peaks.cpp`."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from catonnx.errors import RuntimeUnavailableError
from catonnx.ops.build import INSTALL_COMPILER, find_compiler

_SOURCE = Path(__file__).with_name("peaks.cpp")
_ROUNDS = 1_000_000
"""Of the loop: milliseconds, beside which it does not count that other threads are woken."""


class Peaks:
    """What the processor does at most, on some threads.

    Args:
        threads: At once; each reads a part of its own.
        buffer_bytes: That are read, one behind the other: more than the caches hold, for the speed of memory.

    Raises:
        RuntimeUnavailableError: there is no C++ compiler, or it fails.
    """

    def __init__(self, threads: int, buffer_bytes: int) -> None:
        self._code = _compiled()
        self._pool = ThreadPoolExecutor(threads)
        self._parts = np.array_split(np.ones(buffer_bytes // 8, np.uint64), threads)
        self.buffer_bytes = sum(part.nbytes for part in self._parts)
        self.multiply_adds = sum(self._on_all(lambda _: int(self._code.add_up(_ROUNDS))))

    @property
    def instruction(self) -> str:
        """What multiplies and adds."""
        return bytes(self._code.instruction()).decode()

    def read(self) -> None:
        """Read `buffer_bytes`."""
        sums = self._on_all(lambda part: int(self._code.read_all(part.ctypes.data, part.size)))
        assert sum(sums) == self.buffer_bytes // 8

    def add_up(self) -> None:
        """Multiply and add `multiply_adds` times."""
        self._on_all(lambda _: int(self._code.add_up(_ROUNDS)))

    def _on_all(self, do: Callable[[np.ndarray], int]) -> list[int]:
        return list(self._pool.map(do, self._parts))


def _compiled() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="catonnx-peaks-") as folder:
        built = Path(folder) / "peaks.so"
        flags = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC")
        command = [*find_compiler(), *flags, str(_SOURCE), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            told = done.stderr.strip().splitlines()
            raise RuntimeUnavailableError(f"the compiler failed: {told[0] if told else ''}", hint=INSTALL_COMPILER)
        code = ctypes.CDLL(str(built))
    code.instruction.restype = ctypes.c_char_p
    code.add_up.restype, code.add_up.argtypes = ctypes.c_int64, [ctypes.c_int64]
    code.read_all.restype, code.read_all.argtypes = ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_int64]
    return code
