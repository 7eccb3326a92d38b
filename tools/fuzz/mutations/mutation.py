"""What a mutation is, and what several kinds of them share."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from models.dressing import tensors_of

SECRET = "secret.bin"
HUGE = (-1, 0, 1, 2, -(2**63), 2**31 - 1, 2**31, 2**32, 2**40, 2**60, 2**62, 2**63 - 1)


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One way to break a model.

    Attributes:
        change: Changes a folder; does nothing where it finds nothing to change.
        refused: Whether a model that was changed must be refused.
    """

    change: Callable[[Path, random.Random], bool | None]
    refused: bool = False


Edit = Callable[[onnx.ModelProto, random.Random], None]


def edited(edit: Edit) -> Callable[[Path, random.Random], bool]:
    """Return what changes the model itself, as a message."""

    def change(folder: Path, choose: random.Random) -> bool:
        path = folder / "model.onnx"
        try:
            model = onnx.load(path, load_external_data=False)
        except DecodeError:
            return False
        before: bytes = model.SerializeToString(deterministic=True)
        edit(model, choose)
        after: bytes = model.SerializeToString(deterministic=True)
        path.write_bytes(after)
        return before != after

    return change


def weight(model: onnx.ModelProto, choose: random.Random) -> TensorProto:
    """Return one of the tensors of a model; an empty one if it has none."""
    tensors = [tensor for tensor in tensors_of(model) if len(tensor.dims) > 0]
    return choose.choice(tensors) if tensors else TensorProto()


def free(path: Path) -> Path:
    """Remove what is at a path, and return the path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path
