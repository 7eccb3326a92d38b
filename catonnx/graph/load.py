"""Read an ONNX model as data: checked, mapped rather than read, and in the one form that the passes work on.

What comes out of `load` has opset 21 to 26, no functions (inlined), every node and value named once, and its large
tensors memory-mapped from a file in our work folder; the source itself is only read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common as common_passes

from catonnx.errors import CatonnxError, ModelError, OutputError, root_cause
from catonnx.graph.external import check_external, external_locations, external_tensors
from catonnx.graph.normalize import normalize, quiet
from catonnx.graph.save import write_model
from catonnx.graph.soundness import check_sound

COPY = "source.onnx"
"""What `bring` calls its copy."""

_SPILL_BYTES = 1 << 24
"""Inline tensors that add up to more than this are moved to a mapped file."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model was read from.

    Attributes:
        path: The `.onnx` file.
        folder: The folder given by the user, or None when a file was given: what else lies in it goes along.
        chosen: Whether the file was named beside the folder: other models in it stay there.
    """

    path: Path
    folder: Path | None
    chosen: bool = False

    @functools.cached_property
    def locations(self) -> tuple[str, ...]:
        """The external data files that the model names, relative to it, sorted."""
        locations = tuple(sorted(external_locations(read(self.path))))
        gc.collect()  # a graph is made of cycles, and this one may hold the whole model
        return locations

    @functools.cached_property
    def own_files(self) -> frozenset[str]:
        """What of the folder does not go along with a result: the model, its data, and models that were not chosen."""
        others = self.path.parent.glob("*.onnx*") if self.chosen else ()
        return frozenset((self.path.name, *self.locations, *(path.name for path in others)))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the model file and all of its external data."""
        digest = hashlib.sha256()
        for file in (self.path, *(self.path.parent / location for location in self.locations)):
            try:
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            except OSError as error:
                raise ModelError(f"the model cannot be read: {error.strerror}", where=file) from error
        return digest.hexdigest()


def find(location: Path, file_name: str | None = None) -> Source:
    """Resolve a model file or a folder that holds one.

    Args:
        location: An `.onnx` file, or a folder with `model.onnx`, exactly one `.onnx` file, or a `genai_config.json`
            that says which one decodes.
        file_name: Of the model in a folder, where it holds several.

    Raises:
        ModelError: if there is no such file, or a folder holds several and none is `model.onnx`.
    """
    try:
        folder = location if location.is_dir() else None
        if file_name is None:
            path = _model_in(location) if folder else location
        elif Path(file_name).name == file_name:
            path = location / file_name
        else:
            raise ModelError("this is a path, not the name of a file", where=file_name, hint="name its folder instead")
        if path.exists() and not path.is_file():
            raise ModelError(
                "the model cannot be read: it is no file",
                where=path,
                hint="give an .onnx file or a folder that holds one",
            )
        if not path.exists():
            raise ModelError(
                "there is no such model", where=path, hint="give an .onnx file or a folder that holds model.onnx"
            )
        with path.open("rb"):
            return Source(path, folder, chosen=file_name is not None)
    except OSError as error:
        raise ModelError(f"the model cannot be read: {error.strerror}", where=error.filename or location) from error


def bring(source: Source, work: Path) -> Path:
    """Bring an unchanged copy of a model into the work folder, its tensors in files where they can be mapped.

    External data is copied rather than linked: readers of ONNX refuse a file with two names, and nothing that we write
    could reach the source through it. The model is checked on the way.

    Args:
        source: What to read.
        work: An existing, empty folder of ours.

    Returns:
        The copy.

    Raises:
        ModelError: as `read`.
        OutputError: if the copy cannot be written.
    """
    model = read(source.path)
    copy = work / COPY
    try:
        for location in sorted(external_locations(model)):
            (work / location).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path.parent / location, work / location)
        # Data of the user's may have the name of our copy: then they are moved to another file.
        if _inline_bytes(model) <= _SPILL_BYTES and COPY not in external_locations(model):
            shutil.copyfile(source.path, copy)
            return copy
    except OSError as error:
        raise OutputError(
            f"the model cannot be copied: {error.strerror}", where=work, hint="free some space"
        ) from error
    ir.external_data.set_base_dir(model.graph, work)
    write_model(model, copy)
    del model
    gc.collect()
    return copy


@contextlib.contextmanager
def naming(copy: Path, original: Path) -> Iterator[None]:
    """Let errors about a copy name what it was made from."""
    try:
        yield
    except CatonnxError as error:
        raise error.moved(copy, original) from error


def load(path: Path) -> ir.Model:
    """Read and normalize a model; its external tensors stay on disk.

    Args:
        path: A copy made by `bring`.

    Raises:
        ModelError: if the file is not a sound ONNX model, its external data is missing, too short or outside the
            model's folder, or its opset cannot be brought to 21.
    """
    model = read(path)
    normalize(model, path)
    ir.external_data.set_base_dir(model.graph, path.parent)  # the converter of old opsets forgets it in bodies
    return model


def runnable(path: Path) -> ir.Model:
    """Read a model for running in parts: as it is but for its order, and with no initializer among its inputs.

    Raises:
        ModelError: as `load`.
    """
    model = read(path)
    common_passes.RemoveInitializersFromInputsPass()(model)
    model.graph.sort()  # a cycle was refused by `load`
    return model


def read(path: Path) -> ir.Model:
    """Read a model as it is, external tensors mapped and checked against their files.

    Raises:
        ModelError: as `load`.
    """
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError("this is not an ONNX model, or it is truncated", where=path, hint="export it again") from error
    except OSError as error:
        raise ModelError(f"the model cannot be read: {error.strerror}", where=path) from error
    if proto.ir_version == 0 or not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError("this is not an ONNX model: it holds no graph", where=path, hint="export it again")
    check_sound(proto, path)
    try:
        with quiet("onnx_ir"):  # it warns of what `_check_whole` refuses
            model = ir.serde.deserialize_model(proto)
    except ir.serde.SerdeError as error:
        raise ModelError(f"the graph is not sound: {root_cause(error)}", where=path, hint="export it again") from error
    _check_whole(model, path)
    ir.external_data.set_base_dir(model.graph, path.parent)
    for tensor in external_tensors(model):
        check_external(tensor, path)
    return model


def _check_whole(model: ir.Model, path: Path) -> None:
    """Refuse a graph that reads or returns what nothing in it makes; onnx-ir only warns of it."""
    read = [(node.name, value) for node in ir.traversal.RecursiveGraphIterator(model.graph) for value in node.inputs]
    returned = [("the graph's outputs", value) for value in model.graph.outputs]
    for reader, value in (*read, *returned):
        if value is None or value.producer() or value.is_graph_input() or value.is_initializer():
            continue
        raise ModelError(
            f"nothing makes the value {value.name!r}", where=f"{path}, read by {reader}", hint="export it again"
        )


def _model_in(folder: Path) -> Path:
    preferred = folder / "model.onnx"
    if preferred.exists():
        return preferred
    found = sorted(folder.glob("*.onnx"))
    if len(found) > 1:
        found = [path for path in found if path.name == _decoder_of_genai(folder)] or found
    if len(found) == 1:
        return found[0]
    listing = ", ".join(path.name for path in found) or "none"
    raise ModelError(
        f"the folder holds no model.onnx (.onnx files: {listing})",
        where=folder,
        hint="optimize one of them with --file-name, or name the file itself" if found else "name that of an export",
    )


def _decoder_of_genai(folder: Path) -> object:
    """Return the file name that `genai_config.json` gives the model that decodes; None if there is no such file."""
    try:
        content = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        return content["model"]["decoder"]["filename"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None


def _inline_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None and not isinstance(tensor, ir.ExternalTensor))
