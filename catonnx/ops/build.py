"""Compile the operators' library: all it takes is a C++17 compiler, and nvcc for its CUDA part."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from catonnx.errors import OutputError, RuntimeUnavailableError
from catonnx.ops.nvcc import compile_command, find_nvcc, link_command, require_nvcc
from catonnx.ops.place import NAME, PROBES, SOURCE, cuda_sources, default_place, sources, suffix

COMPILERS = ("g++", "clang++", "c++")
INSTALL_COMPILER = "install a C++ compiler: apt install g++, dnf install gcc-c++, or the like"

_JOBS = 2
_SHOWN_LINES = 20  # of a compiler's complaints


def build(
    output: Path | None = None,
    *,
    compiler: str | None = None,
    sanitize: str | None = None,
    flags: Sequence[str] = (),
    source: Path = SOURCE,
    cuda: bool | None = None,
) -> Path:
    """Compile the library, and return where it lies.

    Args:
        output: The library file; the place where `catonnx.ops.library` looks unless given.
        compiler: Command of a C++ compiler; unless given the environment variable CXX, or else the first of g++,
            clang++ and c++ that is there.
        sanitize: Sanitizers to build in, as "address,undefined".
        flags: Further flags, for the C++ compiler and, without CUDA, for the linker.
        source: Folder of the sources.
        cuda: Whether to compile the CUDA kernels too; unless given, if there is an nvcc.

    Raises:
        OutputError: the library cannot be written there.
        RuntimeUnavailableError: there is no compiler, or no nvcc where one is needed, or it fails.
    """
    command = find_compiler(compiler)
    if cuda is None:
        cuda = bool(cuda_sources(source)) and find_nvcc() is not None
    nvcc = require_nvcc() if cuda else None
    place = default_place(cuda=cuda) if output is None else output
    if place is None:
        raise OutputError("this user has no home where the library could be kept", hint="give --output and CATONNX_OPS")
    if sanitize:
        # Under sanitizers g++ 12 takes 8 minutes at -O3, and 20 seconds so.
        slow = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
        flags = (f"-fsanitize={sanitize}", *slow, *flags)
    try:
        if output is None:
            place.parent.mkdir(parents=True, exist_ok=True)
        # Built beside its place and renamed: whoever looks there meanwhile finds a whole library or none.
        with tempfile.TemporaryDirectory(prefix=".building-", dir=place.absolute().parent) as folder:
            built = _compile(command, nvcc, source, flags, Path(folder))
            built.replace(place)
    except OSError as error:
        raise OutputError(
            f"the library cannot be written: {error.strerror}", where=place, hint="choose another --output"
        ) from error
    return place


def find_compiler(wished: str | None = None) -> list[str]:
    """Return the command of a C++ compiler.

    Raises:
        RuntimeUnavailableError: there is none, or not the one that was asked for.
    """
    asked = wished or os.environ.get("CXX")
    if asked:
        try:
            command = shlex.split(asked)
        except ValueError:  # a quote without its partner
            command = [asked]
        if not command or shutil.which(command[0]) is None:
            raise RuntimeUnavailableError(
                f"there is no compiler {command[0] if command else repr(asked)}", hint=INSTALL_COMPILER
            )
        return command
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise RuntimeUnavailableError(f"there is no C++ compiler: none of {', '.join(COMPILERS)}", hint=INSTALL_COMPILER)


def compilable(
    command: Sequence[str], source: Path = SOURCE, machine: str | None = None, *, cuda: bool = False
) -> dict[Path, tuple[str, ...]]:
    """Return the source files and their flags as `sources` does, without those that the compiler is too old for."""
    flags = {suffix(file): own for file, own in sources(source, machine).items()}
    without = [name for name, probe in PROBES.items() if name in flags and not _compiles(command, flags[name], probe)]
    return sources(source, machine, without, cuda=cuda)


def _compiles(command: Sequence[str], flags: Sequence[str], text: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        call = [*command, *flags, "-x", "c++", "-c", "-", "-o", f"{folder}/probe.o"]
        return subprocess.run(call, input=text, capture_output=True, text=True, check=False).returncode == 0


def _compile(command: Sequence[str], nvcc: str | None, source: Path, flags: Sequence[str], folder: Path) -> Path:
    own_flags = compilable(command, source, cuda=nvcc is not None)
    jobs = [
        [*command, *own, "-Wall", "-Wextra", *flags, "-c", str(file), "-o", str(_object(folder, file))]
        for file, own in own_flags.items()
    ]
    files = list(own_flags)
    if nvcc is not None:  # these take longest
        kernels = cuda_sources(source)
        jobs = [*(compile_command(nvcc, command, file, _object(folder, file)) for file in kernels), *jobs]
        files += kernels
    with ThreadPoolExecutor(_JOBS) as pool:
        for _ in pool.map(_run, jobs):
            pass
    built = folder / NAME
    objects = [str(_object(folder, file)) for file in files]
    if nvcc is None:
        link = [*command, "-shared", *flags, *objects, "-o", str(built)]
    else:
        link = link_command(nvcc, command, objects, built)
    _run(link)
    if not built.is_file():
        raise RuntimeUnavailableError(
            "the compiler ended well and wrote nothing", where=shlex.join(link), hint=INSTALL_COMPILER
        )
    return built


def _object(folder: Path, file: Path) -> Path:
    return folder / f"{file.name}.o"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    complaints = (done.stderr or done.stdout).strip().splitlines()[:_SHOWN_LINES]
    if any("unsupported" in line and "version" in line for line in complaints):
        raise RuntimeUnavailableError(
            "\n".join(["nvcc refuses the C++ compiler", *complaints]),
            where=shlex.join(command),
            hint="name an older one that is installed, as --compiler g++-13; or install a newer CUDA toolkit",
        )
    raise RuntimeUnavailableError(
        "\n".join([f"the compiler failed with code {done.returncode}", *complaints]),
        where=shlex.join(command),
        hint="another compiler may do: --compiler clang++; it must know C++17",
    )
