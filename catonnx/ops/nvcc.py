"""The CUDA compiler: where it is, and whether it can compile for all GPUs that our kernels are for."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from catonnx.errors import RuntimeUnavailableError
from catonnx.ops.place import ARCHITECTURES, CUDA_FLAGS

HOMES = ("CUDA_HOME", "CUDA_PATH")
INSTALL_NVCC = (
    "install NVIDIA's CUDA toolkit, 12.0 or newer, and let CUDA_HOME or PATH lead to nvcc; or build with --no-cuda"
)


def find_nvcc() -> str | None:
    """Return nvcc of the toolkit that CUDA_HOME or CUDA_PATH names, or the one in PATH; None if there is none."""
    for home in filter(None, map(os.environ.get, HOMES)):
        nvcc = Path(home) / "bin" / "nvcc"
        if os.access(nvcc, os.X_OK):
            return str(nvcc)
    return shutil.which("nvcc")


def require_nvcc() -> str:
    """Return nvcc.

    Raises:
        RuntimeUnavailableError: there is none, or it does not know all of our architectures.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeUnavailableError("there is no CUDA compiler nvcc", hint=INSTALL_NVCC)
    done = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"sm_(\d+)", done.stdout))
    missing = [f"sm_{number}" for number in ARCHITECTURES if number not in known]
    if done.returncode != 0 or missing:
        what = f"does not know {', '.join(missing)}" if known else "does not say for which GPUs it compiles"
        raise RuntimeUnavailableError(f"this nvcc {what}", where=nvcc, hint=INSTALL_NVCC)
    return nvcc


def compile_command(nvcc: str, host: Sequence[str], file: Path, target: Path) -> list[str]:
    """Return what compiles one file for all architectures."""
    oldest, *others, newest = ARCHITECTURES
    first = ",".join(f"sm_{number}" for number in (oldest, *others))
    codes = [
        f"-gencode=arch=compute_{oldest},code=[{first}]",
        f"-gencode=arch=compute_{newest},code=[sm_{newest},compute_{newest}]",
    ]
    return [nvcc, *_host(host), *CUDA_FLAGS, *codes, "-c", str(file), "-o", str(target)]


def link_command(nvcc: str, host: Sequence[str], objects: Sequence[str], target: Path) -> list[str]:
    """Return what links a library with CUDA's runtime in it, which it keeps to itself."""
    hidden = "-Xlinker=--exclude-libs,ALL"
    return [nvcc, *_host(host), "-shared", "-cudart=static", hidden, *objects, "-o", str(target)]


def _host(command: Sequence[str]) -> list[str]:
    flags = [f"-Xcompiler={shlex.quote(flag)}" for flag in command[1:]]
    return [f"-ccbin={command[0]}", *flags]
