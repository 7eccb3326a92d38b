"""Small files that the user asked for, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catonnx.errors import OutputError

STDOUT = Path("-")
"""What stands for the standard output where a file is named."""


def check_place(path: Path, source: Path | None = None) -> None:
    """Refuse a place where no file can be written, before long work is done for it.

    Args:
        path: Where a file is wanted.
        source: A model, file or folder, that must stay as it is.

    Raises:
        OutputError: if the folder is missing or not writable, `path` is a folder, or it belongs to the source.
    """
    if path == STDOUT:
        raise OutputError("only JSON can go to stdout", hint="name a file")
    if source is not None and _belongs_to(path.resolve(), source.resolve()):
        raise OutputError("this would write into the model that is optimized", where=path, hint="choose another place")
    if path.is_dir():
        raise OutputError("this is a folder, not a file", where=path, hint="name a file in it")
    if not path.absolute().parent.is_dir():
        raise OutputError("the folder does not exist", where=path.absolute().parent, hint="make it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise OutputError("nothing can be written there", where=path.absolute().parent, hint="choose another place")


def check_json(file: Path | None, *inputs: Path | None) -> None:
    """Refuse a place where JSON cannot be written, or would replace something that is read; `-` is one that it can.

    Raises:
        OutputError: as `check_place` and `check_kept`.
    """
    if file is not None and file != STDOUT:
        check_place(file)
        check_kept(file, *inputs)


def check_kept(path: Path, *inputs: Path | None) -> None:
    """Refuse a place where an input, or a file of the folder or model that it is, would be replaced.

    Raises:
        OutputError: naming the place.
    """
    place = path.resolve()
    for given in (given.resolve() for given in inputs if given is not None):
        if place == given or (place.exists() and _belongs_to(place, given)):
            raise OutputError("this would replace a file of what is read", where=path, hint="choose another place")


def _belongs_to(path: Path, source: Path) -> bool:
    """Whether a file lies in a model's folder, or is a model file or its data beside it."""
    if source.is_dir():
        return path.is_relative_to(source)
    return path.parent == source.parent and path.name.startswith(source.name)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, then rename it; a file that stood there is replaced.

    Raises:
        OutputError: if it cannot be written; what stood there still does.
    """
    check_place(path)
    umask = os.umask(0)
    os.umask(umask)
    part: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent, prefix=f".{path.name}.", delete=False) as file:
            part = Path(file.name)
            file.write(content)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"the file cannot be written: {reason}", where=path, hint="free some space") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data as JSON, to stdout if the path is `-`.

    Raises:
        OutputError: as `write_whole`.
        ValueError: if a number is NaN or Inf, which JSON does not know.
    """
    text = json.dumps(data, indent=1, allow_nan=False)
    if path == STDOUT:
        print(text)
    else:
        write_whole(path, f"{text}\n".encode())
