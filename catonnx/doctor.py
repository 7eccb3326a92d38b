"""What is installed, which execution providers really work, which kernels there are, and what to install."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any, Literal

from catonnx.cores import usable_cores
from catonnx.errors import RuntimeUnavailableError
from catonnx.ops.build import COMPILERS, find_compiler
from catonnx.ops.nvcc import require_nvcc
from catonnx.ops.place import BUILD, has_cuda, library
from catonnx.runtime.library import instruction_set
from catonnx.runtime.probe import why_not
from catonnx.runtime.sessions import import_onnxruntime

State = Literal["ok", "absent", "broken"]

_CORE = ("catonnx", "onnx", "onnx-ir", "onnxscript", "numpy", "scipy")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_EXTRAS = {
    "tokenizers": ("text for calibration and evaluation", "pip install tokenizers"),
    "torch": ("learned transforms, and exporting models", 'pip install "catonnx[learned]"'),
    "transformers": ("exporting models", 'pip install "catonnx[export]"'),
    "optimum": ("optimum-cli, and exporting models", 'pip install "catonnx[export]"'),
    "optimum-onnx": ("exporting models", 'pip install "catonnx[export]"'),
    "onnxruntime-genai": ("running models with --genai", "pip install onnxruntime-genai"),
}
"""Distribution -> what it is for, and how to get it."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: Its name.
        state: `ok`; `absent`, which is a choice; `broken`: there, and of no use.
        found: Version, place, or what is wrong.
        advice: What to do to have it; empty where nothing is to be done.
    """

    what: str
    state: State
    found: str
    advice: str = ""


def examine() -> tuple[Finding, ...]:
    """Look at everything that catonnx may use; nothing is installed, built or changed."""
    return (*_packages(), *_providers(), *_kernels(), *_extras())


def works(findings: tuple[Finding, ...]) -> bool:
    """Say whether models can be optimized here: all that needs is ONNX Runtime on the CPU."""
    return any(finding.what == "provider cpu" and finding.state == "ok" for finding in findings)


def to_json(findings: tuple[Finding, ...]) -> dict[str, Any]:
    """Return findings as plain data."""
    return {"works": works(findings), "findings": [dataclasses.asdict(finding) for finding in findings]}


def version(distribution: str) -> str | None:
    """Return the version of an installed distribution, which is not imported for that."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("processor", "ok", f"{usable_cores()} cores to use")
    for name in _CORE:
        found = version(name)
        yield Finding(
            name, "ok" if found else "absent", found or "not installed", "" if found else f"pip install {name}"
        )


def _providers() -> Iterator[Finding]:
    installed = {name: found for name in _RUNTIMES if (found := version(name))}
    told = ", ".join(f"{name} {found}" for name, found in installed.items())
    try:
        runtime = import_onnxruntime()
    except RuntimeUnavailableError as error:
        yield Finding("ONNX Runtime", "broken" if installed else "absent", told or error.what, error.hint or "")
        return
    if len(installed) == len(_RUNTIMES):
        advice = "uninstall both, then install one: they overwrite each other's files"
        yield Finding("ONNX Runtime", "broken", told, advice)
    else:
        yield Finding("ONNX Runtime", "ok", told or str(runtime.__version__))
    for provider in ("cpu", "cuda"):
        why = why_not(provider)
        absent = "onnxruntime-gpu" not in installed and provider == "cuda"
        if not why:
            yield Finding(f"provider {provider}", "ok", "a model ran on it")
        elif absent:
            advice = 'for an NVIDIA GPU: pip uninstall onnxruntime, then pip install "catonnx[gpu]"'
            yield Finding(f"provider {provider}", "absent", "this ONNX Runtime was built without it", advice)
        else:
            yield Finding(f"provider {provider}", "broken", why)


def _kernels() -> Iterator[Finding]:
    try:
        compiler = " ".join(find_compiler())
        yield Finding("compiler", "ok", compiler)
    except RuntimeUnavailableError as error:
        yield Finding("compiler", "absent", f"none of {', '.join(COMPILERS)}", error.hint or "")
    try:
        yield Finding("nvcc", "ok", require_nvcc())
    except RuntimeUnavailableError as error:
        yield Finding("nvcc", "absent", error.what, error.hint or "")
    try:
        path = library()
    except RuntimeUnavailableError as error:
        yield Finding("operators' library", "broken", error.what, error.hint or "")
        return
    if path is None:
        yield Finding("operators' library", "absent", "not built: form op runs as functions, slower", BUILD)
        return
    try:
        isa = instruction_set()
    except RuntimeUnavailableError as error:
        place = f" ({error.where})" if error.where else ""
        yield Finding("operators' library", "broken", f"{error.what}{place}", error.hint or "")
    else:
        cuda = " and CUDA" if has_cuda(path) else ""
        yield Finding("operators' library", "ok", f"{path}, with kernels for {isa}{cuda}")


def _extras() -> Iterator[Finding]:
    for name, (use, advice) in _EXTRAS.items():
        yield _distribution(name, f"for {use}", advice)


def _distribution(name: str, without: str, advice: str) -> Finding:
    found = version(name)
    return Finding(name, "ok", found) if found else Finding(name, "absent", without, advice)
