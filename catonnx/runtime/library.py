"""The operators' library in ONNX Runtime sessions. See `catonnx.ops`."""

from __future__ import annotations

import ctypes
import mmap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import DecodeError

from catonnx.errors import ModelError, RuntimeUnavailableError
from catonnx.graph.load import find
from catonnx.graph.operators import DOMAIN
from catonnx.ops.build import find_compiler
from catonnx.ops.place import BUILD, BUILD_CUDA, has_cuda, library
from catonnx.runtime.sessions import import_onnxruntime, open_session, runtime_errors

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

_MARK = "catonnx.ops"
"""Session configuration entry: a second registration with the same options would make the session fail."""


def register(session_options: SessionOptions) -> None:
    """Let sessions with these options run our operators with the kernels of our library.

    Any number of options may be registered, and the same ones twice. With a library that was built without CUDA, the
    operators of a CUDA session run on the CPU, between copies: `session` leaves such a library out.

    Args:
        session_options: `onnxruntime.SessionOptions`.

    Raises:
        RuntimeUnavailableError: the library is not built, or does not fit this ONNX Runtime or processor.
    """
    path = library()
    if path is None:
        raise _not_built()
    if _is_registered(session_options):
        return
    try:
        session_options.register_custom_ops_library(str(path))
    except runtime_errors() as error:
        raise _not_registered(error, path) from error
    session_options.add_session_config_entry(_MARK, str(path))


def instruction_set() -> str:
    """Return the instruction set whose kernels the library uses here, such as `avx512vnni`.

    Raises:
        RuntimeUnavailableError: as `register`.
    """
    register(import_onnxruntime().SessionOptions())
    named = ctypes.CDLL(str(library())).catonnx_instruction_set
    named.restype = ctypes.c_char_p
    return bytes(named()).decode()


def session(path: str | Path, provider: str = "cpu", *, config: Mapping[str, str] | None = None) -> InferenceSession:
    """Open a model, with our library if it is built and the model uses our operators.

    Where the library is missing, does not fit, or has no kernel for the model's types or provider (for CUDA it has
    them if it was built with nvcc), the operators run as the functions that the model holds. Of a library that is
    there but cannot be used, a warning tells.

    Args:
        path: An .onnx file, or the folder of one.
        provider: "cpu" or "cuda".
        config: Session configuration entries of ONNX Runtime.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        RuntimeUnavailableError: ONNX Runtime or the provider is not there.
        UsageError: an unknown provider.
    """
    return open_model(find(Path(path)).path, provider=provider, config=config)


def open_model(path: str | Path, *, provider: str = "cpu", **options: Any) -> InferenceSession:
    """Open a session as `open_session` does, with our library as `session` does.

    Args:
        path: The .onnx file.
        provider: "cpu" or "cuda".
        options: Of `open_session`.

    Raises:
        CatonnxError: as `open_session`.
    """
    path = Path(path)
    if not path.is_file() or not _uses_domain(path):
        return open_session(path, provider=provider, **options)
    try:
        found = library()
        if found is None:
            return open_session(path, provider=provider, **options)
        if provider == "cuda" and not has_cuda(found):  # each node would run on the CPU, between two copies
            raise RuntimeUnavailableError(
                "it has no kernels for CUDA", where=found, hint=f"build it anew: {BUILD_CUDA}"
            )
        return open_session(path, provider=provider, prepare=register, **options)
    except (ModelError, RuntimeUnavailableError) as error:
        opened = open_session(path, provider=provider, **options)
        warnings.warn(f"the model runs without the library of catonnx's operators: {error}", stacklevel=3)
        return opened


def _uses_domain(path: Path) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(DOMAIN.encode()) < 0:
            return False  # most models: none is parsed for that, and some hold all of their weights
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return False  # ONNX Runtime will say more
    return any(opset.domain == DOMAIN for opset in model.opset_import)


def _is_registered(session_options: SessionOptions) -> bool:
    try:
        return bool(session_options.get_session_config_entry(_MARK))
    except runtime_errors():  # that is how it says no
        return False


def _not_built() -> RuntimeUnavailableError:
    try:
        find_compiler()
        hint = f"build it: {BUILD}"
    except RuntimeUnavailableError as error:
        hint = f"{error.hint}; then: {BUILD}"
    return RuntimeUnavailableError("the library of catonnx's operators is not built", hint=hint)


def _not_registered(error: Exception, path: Path) -> RuntimeUnavailableError:
    text = " ".join(str(error).split())
    if "CATONNX_ISA" in text:
        return RuntimeUnavailableError(text.partition("catonnx: ")[2], hint="unset CATONNX_ISA, or name one of these")
    if "of the API of ONNX Runtime" in text:
        hint = f"upgrade onnxruntime, or build the library of this catonnx: {BUILD}"
        return RuntimeUnavailableError(text.partition("catonnx: ")[2], where=path, hint=hint)
    return RuntimeUnavailableError(
        f"the library of catonnx's operators cannot be loaded: {text}", where=path, hint=f"build it again: {BUILD}"
    )
