"""Write models: external data beside them, whole or not at all, never where they came from."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from catonnx.errors import CatonnxError, OutputError, root_cause

OPSET = 21
"""What we write: the first opset with int4 tensors and blocked DequantizeLinear."""

IR_VERSION = 10

RESULT_MARK = "catonnx.json"
"""The report that every result holds; `--force` replaces no folder without it."""

_INLINE_BYTES = 1024
"""Smaller tensors stay in the model file, where shape inference and readers of the graph see them."""


def write_model(model: ir.Model, path: Path) -> None:
    """Write a model to `path` and its tensors to `path` + `_data`, streaming one tensor at a time.

    Args:
        model: Opset and IR version are written as they are, but IR 10 at least.
        path: A new file in an existing folder.

    Raises:
        OutputError: if the disk is full or the folder not writable.
        VerificationError: if a pending fold overflows its type.
    """
    model.ir_version = max(IR_VERSION, min(model.ir_version, 13))
    with _explained(path):
        ir.save(
            model,
            path,
            external_data=f"{path.name}_data",
            size_threshold_bytes=_INLINE_BYTES,
            max_workers=1,
            max_in_flight_bytes=1 << 28,
        )


def write_beside(model: ir.Model, path: Path) -> None:
    """Write a model that keeps referring to external data beside `path`; other tensors go to `path` + `_data`.

    Args:
        model: Its external tensors lie in `path.parent`; if a file of theirs has that name, it ends in `__data`.
        path: A new file there.

    Raises:
        OutputError, VerificationError: as `write_model`.
    """
    model.ir_version = max(IR_VERSION, min(model.ir_version, 13))
    own = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and not isinstance(value.const_value, ir.ExternalTensor)
        and value.const_value.nbytes > _INLINE_BYTES
    ]
    before = [value.const_value for value in own]
    try:
        with _explained(path):
            tensors = [tensor for tensor in before if tensor is not None]
            if tensors:  # without any, an empty file would be written
                moved = ir.external_data.convert_tensors_to_external(tensors, path.parent, _free_name(path, "_data"))
                for value, external in zip(own, moved, strict=True):
                    value.const_value = external
            ir.save(model, path)
    finally:
        for value, tensor in zip(own, before, strict=True):
            value.const_value = tensor


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one of ours, and let go through what pending folds raise."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"the model cannot be written: {error.strerror or error}", where=path.parent, hint="free some space"
        ) from error
    except ir.serde.SerdeError as error:  # around whatever a tensor raised that is small enough for the model file
        cause = root_cause(error)
        if isinstance(cause, CatonnxError):
            raise cause from None
        raise


Spill: TypeAlias = Callable[[ir.TensorProtocol], ir.TensorProtocol]
"""Takes a tensor out of memory, and returns the same where it lies now."""


def spilling(path: Path) -> Spill:
    """Return what moves tensors into a new file; they are read from there when the model is written."""
    path.unlink(missing_ok=True)

    def spill(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if tensor.nbytes <= _INLINE_BYTES:
            return tensor
        try:
            with path.open("ab") as file:
                offset = file.tell()
                file.write(tensor.tobytes())
        except OSError as error:
            raise OutputError(
                f"rounded weights cannot be kept: {error.strerror or error}", where=path.parent, hint="free some space"
            ) from error
        return ir.ExternalTensor(
            path.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            base_dir=path.parent,
        )

    return spill


def held(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Leave a tensor in memory."""
    return tensor


def _free_name(path: Path, suffix: str) -> str:
    """Return a name beside `path` that no file has: it may be that of the user's data, which is still needed."""
    while path.with_name(path.name + suffix).exists():
        suffix = f"_{suffix}"
    return path.name + suffix


def copy_companions(model: Path, out: Path, skip: set[str]) -> tuple[str, ...]:
    """Copy every other file of the source folder (config, tokenizer, chat template) to the output.

    Args:
        model: The model in the source folder.
        out: The output folder.
        skip: Paths relative to the source folder that are not copied: the model and its data.

    Returns:
        The relative paths, sorted, of links out of the folder, which are not followed.

    Raises:
        OutputError: if a file cannot be copied.
    """
    left = []
    for path in sorted(model.parent.rglob("*")):
        relative = path.relative_to(model.parent)
        if not path.is_file() or str(relative) in skip or (out / relative).exists():
            continue
        if not is_inside(path, model):
            left.append(str(relative))
            continue
        try:
            (out / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / relative)
        except OSError as error:
            raise OutputError(f"the file cannot be carried along: {error.strerror or error}", where=path) from error
    return tuple(left)


def is_inside(file: Path, model: Path) -> bool:
    """Whether a file really lies beside or below a model.

    A Hugging Face cache is the one lawful exception: all files of a model are links into one folder of blobs.
    """
    try:
        real = file.resolve()
    except (OSError, RuntimeError):  # a link to itself
        return False
    return real.is_relative_to(model.parent.resolve()) or (model.is_symlink() and real.parent == model.resolve().parent)


def is_companion(file: Path) -> bool:
    """Whether a file beside a model really lies there, or where the model's own link leads."""
    return any(is_inside(file, model) for model in (file.with_name("model.onnx"), *file.parent.glob("*.onnx")))
