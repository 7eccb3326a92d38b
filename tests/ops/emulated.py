"""The CUDA kernels compiled as plain C++ against an emulation of CUDA, and called through ctypes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from catonnx.errors import RuntimeUnavailableError
from catonnx.ops.build import find_compiler
from catonnx.ops.place import SOURCE
from tests.ops.native import WARNINGS, Product, run
from tests.workers import once

EMULATION = Path(__file__).with_name("emulation")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-Wno-unknown-pragmas", "-ffp-contract=off", f"-I{EMULATION}", f"-I{SOURCE}")
ORDERS = ((0, False, 1), (1, True, 40), (7, False, 6))
"""In what order threads take turns, whether copies into shared memory happen at once, how many processors there are."""

SHARED = 99
"""KiB that a block may have on compute capability 8.6 and 8.9; 163 on 8.0, 227 on 9.0."""

KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}
"""What emulation/kernels.cpp calls the types."""


class Rows(ctypes.Structure):
    """What emulation/kernels.cpp calls Given."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("channels", "outer", "inner", "side", "step", "rows")),
        *((name, ctypes.c_int32) for name in ("hadamard", "per_run", "one_scale", "bits")),
        *((name, ctypes.c_float) for name in ("factor", "clip")),
        *((name, ctypes.c_void_p) for name in ("scale", "matrix", "first", "x", "y", "scales", "scratch")),
    )


class Emulated:
    """The kernels; `under` chooses the order of threads."""

    def __init__(self, library: Path) -> None:
        self.seed = 0
        self.scratch = 0
        """How many floats of scratch the last transform wanted: none if it was one kernel."""
        self._library = ctypes.CDLL(str(library))
        self._library.rows.restype = ctypes.c_char_p
        self._library.product.restype = ctypes.c_char_p
        self._library.scratch.restype = ctypes.c_int64

    @contextmanager
    def under(self, order: int, eager: bool, processors: int, shared: int = SHARED) -> Iterator[None]:
        """Let threads take turns in one order, on so many processors with so many KiB of shared memory each."""
        self._library.catonnx_emulation(order, eager, processors, shared)
        self.seed = order
        try:
            yield
        finally:
            self._library.catonnx_emulation(0, False, 1, SHARED)

    def transform(
        self,
        x: np.ndarray,
        scale: np.ndarray | None,
        matrix: np.ndarray | None,
        *,
        inner: int,
        first: np.ndarray | None = None,
        outer: int = 1,
        factor: float = 1.0,
        bits: int = 0,
        clip: float = 1.0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return y, or codes and scales with `bits`; without a `matrix` it is Sylvester's of size `inner`."""
        rows, channels = x.shape
        y = np.full(x.shape, 99, np.int8 if bits else x.dtype)
        scales: np.ndarray = np.full(rows, 99, np.float32)
        side = len(first) if first is not None else 1
        given = Rows(channels=channels, outer=outer, inner=inner, side=side, step=side // outer, rows=rows, bits=bits)
        given.hadamard, given.per_run = matrix is None, matrix is not None and matrix.ndim == 3
        given.one_scale = scale is not None and len(scale) == 1
        given.factor, given.clip = factor, clip
        given.scale, given.matrix, given.first = _at(scale), _at(matrix), _at(first)
        given.x, given.y, given.scales = _at(x), _at(y), _at(scales)
        kind = KINDS[x.dtype.name]
        self.scratch = int(self._library.scratch(ctypes.byref(given), kind))
        scratch = _aligned(self.scratch, np.float32)
        scratch[:] = np.nan
        given.scratch = _at(scratch)
        _check(self._library.rows(ctypes.byref(given), kind))
        return y, scales

    def multiply(self, product: Product, a: np.ndarray, a_scale: np.ndarray, *, channels: bool = False) -> np.ndarray:
        """Return y [rows, N] in the type of the scales; `channels` says that all groups of a column have one scale."""
        y = np.full((len(a), product.N), np.nan, product.scales.dtype)
        numbers = [ctypes.c_int64(n) for n in (product.K, product.N, product.group)]
        tensors = [ctypes.c_void_p(_at(array)) for array in (product.codes, product.scales, a, a_scale)]
        kind, rows = KINDS[y.dtype.name], ctypes.c_int64(len(a))
        _check(self._library.product(*numbers, channels, kind, *tensors, rows, ctypes.c_void_p(_at(y))))
        return y


def _check(problem: bytes | None) -> None:
    assert problem is None, problem.decode()


def _at(array: np.ndarray | None) -> int | None:
    if array is None:
        return None
    assert array.flags.c_contiguous
    return array.ctypes.data


def _aligned(count: int, dtype: type[np.generic]) -> np.ndarray:
    return aligned(np.empty(count, dtype))


def aligned(array: np.ndarray) -> np.ndarray:
    """Copy an array to a multiple of 256 bytes, where device memory begins."""
    memory = np.empty(array.nbytes + 256, np.uint8)
    begin = -memory.ctypes.data % 256
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@functools.cache
def emulated() -> Emulated:
    """Compile the kernels, once for all tests. Skips the test where there is no compiler."""
    return Emulated(compiled() / "emulated.so")


@functools.cache
def compiled(*flags: str) -> Path:
    """Return a folder with emulated.so."""
    try:
        compiler = find_compiler()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    files = sorted(SOURCE.glob("*_cuda.cu")) + sorted(EMULATION.glob("*.cpp"))

    def compile_all(folder: Path) -> None:
        def compile_one(file: Path) -> str:
            target = str(folder / f"{file.stem}.o")
            run([*compiler, *FLAGS, *WARNINGS, "-Werror", *flags, "-x", "c++", "-c", str(file), "-o", target])
            return target

        with ThreadPoolExecutor(2) as pool:
            objects: Sequence[str] = list(pool.map(compile_one, files))
        run([*compiler, "-shared", *flags, *objects, "-o", str(folder / "emulated.so")])

    return once(f"emulated{''.join(flags)}", compile_all)
