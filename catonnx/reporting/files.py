"""The page and the pictures of a report, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catonnx.errors import OutputError, RuntimeUnavailableError
from catonnx.files import write_whole
from catonnx.report import Report
from catonnx.reporting.measured import Measured
from catonnx.reporting.page import page
from catonnx.reporting.pictures import all_pictures

_PNG_SCALE = 3
"""Pixels for a unit of a picture: about 300 a inch where it is as wide as a column of text."""


def write_page(path: Path, report: Report, measured: Sequence[Measured] = ()) -> None:
    """Write the page of a report, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_whole(path, page(report, measured).encode())


def write_pictures(folder: Path, report: Report, *, png: bool = True) -> list[Path]:
    """Write every picture of a report as SVG, and as PNG on white.

    Args:
        folder: Made if it is not there.
        report: As it was read from JSON.
        png: As PNG too, which needs a library.

    Returns:
        The files.

    Raises:
        OutputError: they cannot be written.
        RuntimeUnavailableError: the library for PNG is not there; nothing is written then.
    """
    convert = png_converter() if png else None
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder cannot be made: {error.strerror}", where=folder, hint="name another") from error
    written = []
    for picture in all_pictures(report):
        text = picture.standalone().encode()
        contents = {".svg": text} | ({} if convert is None else {".png": convert(text)})
        for suffix, content in contents.items():
            written.append(folder / f"{picture.name}{suffix}")
            write_whole(written[-1], content)
    return written


def png_converter() -> Any:
    """Return a function from SVG to PNG.

    Raises:
        RuntimeUnavailableError: cairosvg, or the library cairo that it uses, is not there.
    """
    hint = 'pip install "catonnx[pictures]", which needs the system\'s cairo (libcairo2); or pass --no-png'
    try:
        import cairosvg
    except (ImportError, OSError) as error:  # cairocffi raises OSError where it finds no cairo
        reason = " ".join(str(error).split())
        raise RuntimeUnavailableError(f"PNG needs cairosvg, which cannot be loaded: {reason}", hint=hint) from error

    def convert(text: bytes) -> bytes:
        content: bytes = cairosvg.svg2png(bytestring=text, scale=_PNG_SCALE)  # it loads nothing from outside
        return content

    return convert
