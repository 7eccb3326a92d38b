"""Plans in files: what was chosen for every site, with its numbers, to be shown or applied again.

A file is an .npz of plain arrays: those of `Plan.to_arrays`, and one string of JSON about where the plan came from.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from catonnx.errors import UsageError
from catonnx.files import write_whole
from catonnx.planning.siteplan import Plan
from catonnx.recipe import Recipe

FORMAT = 4
"""Version of the layout."""

SHAPING = (
    "scheme",
    "transform",
    "block_size",
    "hadamard_size",
    "permute",
    "rotate",
    "refine",
    "online",
    "max_overhead",
    "activations",
    "activation_range",
    "activation_group_size",
    "clip",
    "w8",
    "keep_8bit",
    "target_bits",
    "tied_embeddings",
    "dtype",
)
"""What of a recipe has become factors, bits and ranges: a saved plan brings its own."""

_HEADER = "about"
_HINT = "write one with --save-plan"

_BROKEN = (EOFError, KeyError, MemoryError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise where an archive, its compression or an array's header is not sound."""


@dataclasses.dataclass(frozen=True, eq=False)
class SavedPlan:
    """A plan and where it came from.

    Attributes:
        plan: The changes of basis.
        digest: SHA-256 of the model that it was made for, as in `Report.digest`.
        shaping: The recipe's values under the names in `SHAPING`, and the seed of a stream that was turned.
    """

    plan: Plan
    digest: str
    shaping: Mapping[str, Any]

    def recipe(self, wanted: Recipe) -> Recipe:
        """Return a recipe that tells the truth about this plan: the wish, but for what the plan has settled."""
        return dataclasses.replace(wanted, **self.shaping)


def save_plan(path: Path, plan: Plan, digest: str, recipe: Mapping[str, Any]) -> None:
    """Write a plan, whole or not at all; a file that stood there is replaced.

    Args:
        path: The .npz file.
        plan: What to save.
        digest: Of the model that it was made for.
        recipe: That it was made with, as `Recipe.to_json` gives it.

    Raises:
        OutputError: if the file cannot be written.
    """
    about = {"format": FORMAT, "digest": digest, "shaping": {name: recipe[name] for name in _shaping(recipe)}}
    arrays: dict[str, Any] = {_HEADER: np.array(json.dumps(about), dtype=np.str_)} | plan.to_arrays()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def _shaping(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a plan brings: where the stream was turned, the seed of that too."""
    return (*SHAPING, "seed") if recipe.get("rotate") else SHAPING


def load_plan(path: Path) -> SavedPlan:
    """Read a plan.

    Raises:
        UsageError: if there is no such file, or it holds no plan of this version.
    """
    arrays = _arrays(path)
    digest, shaping = _about(arrays.pop(_HEADER, None), path)
    names = arrays.get("sites")
    if names is None or names.ndim != 1 or names.dtype.kind != "U":
        raise UsageError("this is no plan: it names no sites", where=path, hint=_HINT)
    return SavedPlan(Plan.from_arrays(arrays), digest, shaping)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UsageError("there is no such plan", where=path, hint=_HINT)
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("the file holds a single array")
            with archive:
                return {name: archive[name] for name in archive.files}
    except _BROKEN as error:
        raise UsageError(f"this is no plan: {error}", where=path, hint=_HINT) from error


def _about(header: np.ndarray | None, path: Path) -> tuple[str, dict[str, Any]]:
    try:
        about = json.loads(str(header)) if header is not None and header.ndim == 0 else None
    except ValueError:
        about = None
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("digest"), str):
        raise UsageError(f"this is no plan of format {FORMAT}", where=path, hint=_HINT)
    shaping = about.get("shaping")
    if not isinstance(shaping, dict) or set(shaping) != set(_shaping(shaping)):
        raise UsageError("the plan does not say how it was made", where=path, hint=_HINT)
    try:
        Recipe(**shaping)
    except (TypeError, UsageError) as error:
        raise UsageError(f"the plan was made in an impossible way: {error}", where=path, hint=_HINT) from error
    return about["digest"], shaping
