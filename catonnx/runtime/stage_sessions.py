"""Open a session for one stage of a model: written to a file for a moment, its tensors where they lie."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from catonnx.errors import CatonnxError
from catonnx.graph.constants import tensor_array
from catonnx.graph.save import write_beside
from catonnx.graph.twin import widen
from catonnx.runtime.sessions import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def free_path(folder: Path) -> Path:
    """Return a name for a model in a folder that no file has."""
    return folder / f"catonnx-{secrets.token_hex(8)}.onnx"


@contextlib.contextmanager
def stage_session(model: ir.Model, path: Path, what: str, **options: Any) -> Iterator[InferenceSession]:
    """Write a stage to a file, as its float32 twin if it holds bfloat16, open it, and remove the file in the end.

    Args:
        model: Made by `Stage.model`; its tensors are let go of.
        path: A free name. External tensors in the same folder are referred to, others are copied: ONNX Runtime follows
            no ".." and no link.
        what: What errors call it.
        options: Of `open_session`.

    Raises:
        ModelError, OutputError: as `open_session` and `write_beside`.
    """
    _gather_tensors(model, path.parent)
    widen(model)
    try:
        write_beside(model, path)
        for value in model.graph.initializers.values():
            value.const_value = None  # a graph is made of cycles, which Python would free much later
        yield open_session(path, arena=False, **options)
    except CatonnxError as error:
        raise error.moved(path, what) from error
    finally:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}_data").unlink(missing_ok=True)


def _gather_tensors(model: ir.Model, folder: Path) -> None:
    """Let external tensors that lie elsewhere be written with a model in `folder`."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and Path(tensor.base_dir).resolve() != folder.resolve():
                value.const_value = ir.LazyTensor(_reader(tensor), dtype=tensor.dtype, shape=tensor.shape, cache=False)


def _reader(tensor: ir.ExternalTensor) -> Callable[[], ir.TensorProtocol]:
    return lambda: ir.Tensor(tensor_array(tensor), dtype=tensor.dtype)
