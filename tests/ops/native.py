"""The kernels alone, compiled for the tests as a process that computes one case after the other.

Instruction sets that this machine lacks run under an emulator, where that and a compiler for it are there.
"""

from __future__ import annotations

import atexit
import functools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from catonnx.errors import RuntimeUnavailableError
from catonnx.ops.build import compilable, find_compiler
from catonnx.ops.place import sources, suffix
from tests.ops.compiler import keeping
from tests.workers import once

_AARCH64 = ("portable", "neon", "neondot")
_CPUINFO = Path("/proc/cpuinfo")
_AMX = ("amx",) if _CPUINFO.exists() and "amx_int8" in _CPUINFO.read_text() else ()
_X86_64 = ("portable", "avx2", "avx512", "avx512vnni", *_AMX)
ISAS = {"x86_64": _X86_64, "aarch64": _AARCH64, "arm64": _AARCH64}.get(platform.machine(), ("portable",))
"""What this kind of machine may have."""

ARM_EMULATED = () if "neon" in ISAS else ("emulated neon", "emulated neondot")
"""What runs under qemu."""

AMX_EMULATED = ("emulated amx",) if "avx512vnni" in ISAS else ()
"""What runs with the instructions for tiles written in C++."""

EMULATED = ARM_EMULATED + AMX_EMULATED

TILES = Path(__file__).with_name("amx.h")
WRAPPER = Path(__file__).with_name("kernels.cpp")
WARNINGS = ("-Wall", "-Wextra")
SANITIZERS = ("-fsanitize=address,undefined", "-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
"""As `catonnx.ops.build` has them: most objects are those of the library under sanitizers."""

CROSS_COMPILER, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"

_SHOWN = 3000  # characters of what a process said last


@dataclass(frozen=True)
class Product:
    """A weight [N, K] in 4 bits as the kernels take it."""

    K: int
    N: int
    group: int
    codes: np.ndarray  # uint8 [N, G, group / 2]
    scales: np.ndarray  # float32 [N, G]


class Server:
    """The process; started again where a case has ended it."""

    def __init__(self, folder: Path, *emulator: str) -> None:
        self.folder = folder
        """Where its objects lie."""
        self._command = [*emulator, str(folder / "kernels")]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._process: subprocess.Popen[bytes] | None = None
        self.available = self._started().split()
        """The instruction sets of its processor that there is code for, the best one last."""

    def _started(self) -> str:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )
        atexit.register(self._process.kill)
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode()

    def ask(self, line: str, *operands: np.ndarray, results: int) -> bytes:
        """Send one case and return so many bytes of results."""
        if self._process is None or self._process.poll() is not None:
            self._started()
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line.encode() + b"\n" + b"".join(operand.tobytes() for operand in operands))
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said, and why nothing comes back, is shown below
        answer = self._process.stdout.read(results) if results else b""
        if len(answer) == results:
            return answer
        code = self._process.wait()
        self._said.seek(0)
        pytest.fail(f"{line}\nended with {code}\n{self._said.read().decode()[-_SHOWN:]}")


@dataclass(frozen=True)
class Kernels:
    """The kernels of one instruction set."""

    server: Server
    isa: str

    def quantize_rows(self, x: np.ndarray, bits: int, clip: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes int8 [rows, K] and the scales float32 [rows] of x float32 [rows, K]."""
        assert x.dtype == np.float32
        rows, K = x.shape
        line = f"quantize {self.isa} {rows} {K} {bits} {clip}"
        answer = self.server.ask(line, x, results=rows * K + rows * 4)
        return np.frombuffer(answer, np.int8, rows * K).reshape(x.shape), np.frombuffer(
            answer, np.float32, -1, rows * K
        )

    def multiply(
        self, product: Product, a: np.ndarray, a_scale: np.ndarray, columns: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Return y float32 [rows, N], NaN outside of the range of columns."""
        rows, (first, last) = len(a), columns or (0, product.N)
        line = f"multiply {self.isa} {product.K} {product.N} {product.group} {rows} {first} {last}"
        answer = self.server.ask(line, product.codes, product.scales, a, a_scale, results=rows * product.N * 4)
        return np.frombuffer(answer, np.float32).reshape(rows, product.N)

    def transform(self, op: str, x: np.ndarray, scale: np.ndarray, *matrices: np.ndarray) -> np.ndarray:
        """Return what one of the three transforms makes of x float32 or float16 [rows, channels]."""
        (rows, channels), half = x.shape, x.dtype == np.float16
        counts = (len(matrices[0]), len(matrices[-1])) if op == "KroneckerTransform" else (1, len(matrices[0]))
        if op == "BlockTransform":
            counts = matrices[0].shape[:2]
        line = f"transform {self.isa} {half:d} {rows} {channels} {len(scale)} {op == 'KroneckerTransform':d}"
        operands = [operand.astype(np.float32) for operand in (scale, *matrices)]
        answer = self.server.ask(f"{line} {counts[0]} {counts[1]}", x, *operands, results=x.nbytes)
        return np.frombuffer(answer, x.dtype).reshape(x.shape)

    def knows(self, matrix: np.ndarray) -> bool:
        """Return whether a left factor of a Kronecker product runs as a few sums."""
        answer = self.server.ask(f"known {self.isa} {len(matrix)}", matrix.astype(np.float32), results=1)
        return bool(answer[0])


def kernels(isa: str) -> Kernels:
    """Return the kernels of an instruction set, emulated or not. Skips the test where there are none."""
    name = isa.removeprefix("emulated ")
    if isa in ARM_EMULATED:
        return Kernels(arm(), name)
    if isa in AMX_EMULATED:
        kernels("avx512vnni")  # the rest is done so
        return Kernels(with_tiles(), name)
    if isa not in server().available:
        pytest.skip(f"this processor has no {isa}")
    return Kernels(server(), isa)


@functools.cache
def server(*flags: str) -> Server:
    """Compile the kernels for this machine, once for all tests. Skips the test where there is no compiler."""
    return Server(compiled(*flags))


@functools.cache
def arm(processor: str = "max") -> Server:
    """Compile the kernels for aarch64, to run under qemu as if on `processor`. Skips the test where that is missing."""
    for program in (CROSS_COMPILER, QEMU):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")
    return Server(compiled("-static", compiler=CROSS_COMPILER, machine="aarch64"), QEMU, "-cpu", processor)


@functools.cache
def with_tiles(*flags: str) -> Server:
    """Compile the kernels for this machine and AMX, whose instructions are emulated."""
    return Server(compiled(*flags, tiles=True))


@functools.cache
def compiled(*flags: str, compiler: str | None = None, machine: str | None = None, tiles: bool = False) -> Path:
    """Return a folder with the objects of the kernels and with the program `kernels` made of them.

    With `tiles`, the instructions for them are emulated: what uses them takes no flag that a compiler may not know.
    """
    try:
        command = find_compiler(compiler)
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    rooms = ("cpu", "memory", "product", "quantize", "transform")
    found = sources(machine=machine) if tiles else compilable(command, machine=machine)
    files = {file: own for file, own in found.items() if file.name.startswith(rooms)}
    include = f"-I{next(iter(files)).parent}"
    files[WRAPPER] = (*next(own for file, own in files.items() if file.name == "cpu.cpp"), include)
    if tiles:
        files[WRAPPER] = (*files[WRAPPER], "-DTILES_EMULATED")
        for file in files:
            if suffix(file) == "amx":
                known = (flag for flag in files[file] if not flag.startswith("-mamx"))
                files[file] = (*known, "-include", str(TILES))

    def compile_all(folder: Path) -> None:
        def compile_one(file: Path, own: Sequence[str]) -> Path:
            target = folder / f"{file.stem}.o"
            run([*keeping(command), *own, *WARNINGS, *flags, "-Werror", "-c", str(file), "-o", str(target)])
            return target

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, files, files.values()))
        run([*command, *flags, *map(str, objects), "-o", str(folder / "kernels")])

    return once(f"kernels-{'tiles' if tiles else machine or 'own'}-{'-'.join(flags)}", compile_all)


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
