"""Where the sources of the operators' library lie, and where the library does once it is built.

A library belongs to its sources: it is kept under their hash, so that an upgrade of catonnx never loads an old one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path

from catonnx.errors import RuntimeUnavailableError

SOURCE = Path(__file__).resolve().parent / "source"
NAME = "libcatonnx_ops.so"
VARIABLE = "CATONNX_OPS"
"""Environment variable that names another library file."""

BUILD = "python -m catonnx.ops build"
BUILD_CUDA = f"{BUILD} --cuda"

_BASE = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_VNNI = (*_AVX512, "-mavx512vnni")
_ARM = {"neon": (), "neondot": ("-march=armv8.2-a+dotprod",)}
_CUDA = ("-DCATONNX_CUDA",)
CUDA_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-cudart=static")
ARCHITECTURES = ("80", "86", "89", "90")
"""Compute capabilities, times ten, for which the CUDA kernels are compiled; of the last PTX too, for newer devices."""

_FLAGS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx2": _AVX2,
        "avx512": _AVX512,
        "avx512vnni": _VNNI,
        "amx": (*_VNNI, "-mamx-tile", "-mamx-int8"),
    },
    "aarch64": _ARM,
    "arm64": _ARM,  # what macOS calls it
}
"""Machine -> suffix of a source file's name -> what its instruction set takes."""

PROBES: Mapping[str, str] = {"amx": 'void probe() { asm("tdpbssd %tmm2, %tmm1, %tmm0"); }'}
"""Suffix of files that are left out where the compiler does not know their flags or cannot compile this with them."""


def library() -> Path | None:
    """Return the library to use: the file that CATONNX_OPS names, or what was built; None if nothing was.

    Raises:
        RuntimeUnavailableError: CATONNX_OPS names what is no file.
    """
    named = os.environ.get(VARIABLE)
    for path in (Path(named).absolute(),) if named else (default_place(cuda=True), default_place()):
        with contextlib.suppress(OSError):  # a name that no file may have
            if path is not None and path.is_file():
                return path
    if not named:
        return None
    raise RuntimeUnavailableError(
        f"{VARIABLE} names a file that is not there", where=path, hint=f"unset it, or: {BUILD} --output {path}"
    )


def has_cuda(path: Path) -> bool:
    """Return whether a library has kernels for CUDA."""
    return b"CUDAExecutionProvider" in path.read_bytes()


def default_place(*, cuda: bool = False) -> Path | None:
    """Return where the library of these sources is kept for this user and kind of machine; None without a home.

    The one with CUDA kernels has a place of its own, and is the one that is used if both are there.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return cache / "catonnx" / f"ops-{digest()[:16]}-{platform.machine()}{'-cuda' if cuda else ''}" / NAME


def digest(source: Path = SOURCE) -> str:
    """Return a SHA-256 over all sources and the flags that they are compiled with."""
    whole = hashlib.sha256(repr((_BASE, _FLAGS, PROBES, CUDA_FLAGS, ARCHITECTURES)).encode())
    for file in sorted(file for file in source.rglob("*") if file.suffix in (".cpp", ".h", ".cu", ".cuh")):
        whole.update(file.relative_to(source).as_posix().encode() + b"\0")
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def suffix(file: Path) -> str:
    """Return the part of a source file's name that may be that of an instruction set."""
    return file.stem.rpartition("_")[2]


def sources(
    source: Path = SOURCE, machine: str | None = None, without: Collection[str] = (), *, cuda: bool = False
) -> dict[Path, tuple[str, ...]]:
    """Return the C++ files for a kind of machine (this one unless given), each with its compiler flags.

    The files of the suffixes `without` are left out, which the others are told. Those of CUDA are in if asked for; what
    nvcc compiles is not among them, see `cuda_sources`.
    """
    known = {name for names in _FLAGS.values() for name in names}
    base = (*_BASE, *(_CUDA if cuda else ()), *(f"-DCATONNX_WITHOUT_{name.upper()}" for name in without))
    own = _FLAGS.get(platform.machine() if machine is None else machine, {})
    files: dict[Path, tuple[str, ...]] = {}
    for file in sorted(source.glob("*.cpp")):
        name = suffix(file)
        if name == "cuda":
            if cuda:
                files[file] = base
        elif name not in known:
            files[file] = base
        elif name in own and name not in without:
            files[file] = (*base, *own[name])
    return files


def cuda_sources(source: Path = SOURCE) -> list[Path]:
    """Return the files that nvcc compiles."""
    return sorted(source.glob("*.cu"))
