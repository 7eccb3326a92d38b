"""The kernels of DynamicQuantize and QuantizedMatMul alone, compiled for the tests and called through ctypes."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from catonnx.errors import RuntimeUnavailableError
from catonnx.ops.build import find_compiler
from catonnx.ops.place import sources

ISAS = {"x86_64": ("portable", "avx2", "avx512", "avx512vnni")}.get(platform.machine(), ("portable",))
WRAPPER = Path(__file__).with_name("kernels.cpp")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")


@dataclass(frozen=True)
class Product:
    """A weight [N, K] in 4 bits as the kernels take it."""

    K: int
    N: int
    group: int
    codes: np.ndarray  # uint8 [N, G, group / 2]
    scales: np.ndarray  # float32 [N, G]


class Kernels:
    """The compiled functions, on whichever instruction set is chosen."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.isa.restype = ctypes.c_char_p
        self._library.choose_isa.restype = ctypes.c_bool

    @contextmanager
    def on(self, isa: str) -> Iterator[bool]:
        """Use one instruction set; yields whether this machine has it."""
        before = os.environ.get("CATONNX_ISA")
        try:
            os.environ["CATONNX_ISA"] = isa
            yield bool(self._library.choose_isa())
        finally:
            os.environ.pop("CATONNX_ISA")
            if before is not None:
                os.environ["CATONNX_ISA"] = before
            self._library.choose_isa()

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        name: bytes = self._library.isa()
        return name.decode()

    def quantize_rows(self, x: np.ndarray, bits: int, clip: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes int8 [rows, K] and the scales float32 [rows] of x float32 [rows, K]."""
        codes, scales = np.full(x.shape, 99, np.int8), np.full(len(x), 99, np.float32)
        rows, width = (ctypes.c_int64(length) for length in x.shape)
        self._library.quantize_rows(at(x), rows, width, bits, ctypes.c_float(clip), at(codes), at(scales))
        return codes, scales

    def multiply(
        self, product: Product, a: np.ndarray, a_scale: np.ndarray, columns: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Return y float32 [rows, N], NaN outside of the range of columns."""
        y = np.full((len(a), product.N), np.nan, np.float32)
        numbers = [ctypes.c_int64(n) for n in (product.K, product.N, product.group)]
        ranges = [ctypes.c_int64(n) for n in (len(a), *(columns or (0, product.N)))]
        self._library.multiply(*numbers, at(product.codes), at(product.scales), at(a), at(a_scale), *ranges, at(y))
        return y


def at(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


@functools.cache
def kernels() -> Kernels:
    """Compile the kernels, once for all tests. Skips the test where there is no compiler."""
    return Kernels(compiled() / "kernels.so")


@functools.cache
def compiled(*flags: str) -> Path:
    """Return a folder with the objects of the kernels and with kernels.so made of them."""
    try:
        compiler = find_compiler()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="catonnx-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    files = {file: own for file, own in sources().items() if file.name.startswith(("cpu", "product", "quantize"))}
    include = f"-I{next(iter(files)).parent}"
    files[WRAPPER] = next(own for file, own in files.items() if file.name == "cpu.cpp")

    def compile_one(file: Path, own: Sequence[str]) -> Path:
        target = folder / f"{file.stem}.o"
        run([*compiler, *own, *WARNINGS, *flags, include, "-c", str(file), "-o", str(target)])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, files, files.values()))
    run([*compiler, "-shared", *flags, *map(str, objects), "-o", str(folder / "kernels.so")])
    return folder


def run(command: Sequence[str], **environment: str) -> str:
    """Run a command to its end and return what it printed; fail with all it said."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def random_product(rng: np.random.Generator, K: int, N: int, group: int) -> Product:
    """Draw codes, the padding included, and scales."""
    groups = -(-K // group)
    codes = rng.integers(0, 256, (N, groups, group // 2), np.uint8)
    return Product(K, N, group, codes, rng.uniform(-1, 1, (N, groups)).astype(np.float32))


def random_rows(rng: np.random.Generator, rows: int, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw activations int8 [rows, K] and their scales."""
    return rng.integers(-128, 128, (rows, K), np.int8), rng.uniform(0.1, 2, rows).astype(np.float32)


def exact(product: Product, a: np.ndarray, a_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the product in float64, its sums in int64, and how far float32 may be from it."""
    nibbles = np.stack([product.codes & 15, product.codes >> 4], axis=-1)  # [N, G, group / 2, 2]
    padded = product.scales.shape[1] * product.group
    codes = nibbles.reshape(product.N, padded)[:, : product.K].astype(np.int64) - 8
    y, size = np.zeros((len(a), product.N)), np.zeros((len(a), product.N))
    for g in range(product.scales.shape[1]):
        run_of = slice(g * product.group, (g + 1) * product.group)
        x, w, weight_scale = a[:, run_of].astype(np.int64), codes[:, run_of].T, product.scales[:, g].astype(np.float64)
        y, size = y + (x @ w) * weight_scale, size + (np.abs(x) @ np.abs(w)) * np.abs(weight_scale)
    # A lane adds up its part of every 64 channels or of every group, in any order; then come the lanes and two scales.
    roundings = max(product.K // 64, product.scales.shape[1]) + 8
    scale = a_scale.astype(np.float64)[:, None]
    return y * scale, size * scale * roundings * 2.0**-24
