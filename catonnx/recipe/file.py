"""Recipes in TOML: every field of `Recipe` by its name, and `preset` and `target`.

    target = "cpu"
    lm_head = true
    group_size = "channel"           # or a number
    max_overhead = "5%"
    calibration = ["news.txt"]       # beside the file; or "self"

Underscores may be dashes, as on the command line. Calibration files are looked for in the folder of the recipe.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catonnx.errors import UsageError
from catonnx.recipe import SELF, Recipe
from catonnx.recipe.presets import NAMES
from catonnx.recipe.types import as_typed, hints_of

_WORDS = {"group_size": "channel", "activation_group_size": "token"}
"""Fields in which a word stands for None."""


class RecipeFileError(UsageError):
    """Something is wrong with the file of a recipe; names in the message are its keys."""


def read_recipe(path: Path) -> dict[str, Any]:
    """Return what a file says: fields of `Recipe`, in its own terms, and `preset` and `target`.

    Raises:
        RecipeFileError: if there is no such file, it is no TOML, or it names or says what no recipe has.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        what, hint = f"no recipe can be read: {error.strerror}", "give a TOML file"
        raise RecipeFileError(what, where=path, hint=hint) from None
    except (ValueError, RecursionError) as error:
        what, hint = f"this recipe is no TOML: {error}", 'write lines like: scheme = "w4a8"'
        raise RecipeFileError(what, where=path, hint=hint) from None
    try:
        found = _understood(said)
    except UsageError as error:
        raise RecipeFileError(error.what, where=path, hint=error.hint) from None
    if "calibration" in found:
        found["calibration"] = _beside(path, found["calibration"])
    return found


def _understood(said: Mapping[str, Any]) -> dict[str, Any]:
    fields = hints_of(Recipe)
    found: dict[str, Any] = {}
    for key, value in said.items():
        name = key.replace("-", "_")
        if name in found:
            raise UsageError(f"the recipe says {name} twice", hint="leave one of them out")
        if name in NAMES:
            if value not in NAMES[name]:
                raise UsageError(f"{name} is {value!r}", hint=f"choose one of {', '.join(NAMES[name])}")
            found[name] = value
        elif name in fields:
            found[name] = _settled(name, value, fields[name])
        else:
            near = difflib.get_close_matches(name, [*fields, *NAMES], 1)
            hint = f"did you mean {near[0]}?" if near else f"a recipe has: {', '.join([*NAMES, *fields])}"
            raise UsageError(f"a recipe has no {key!r}", hint=hint)
    return found


def _settled(name: str, value: Any, hint: Any) -> Any:
    """Return one value as the recipe has it."""
    if _WORDS.get(name) == value:
        return None
    if name == "max_overhead" and isinstance(value, str):
        return share(value)
    return as_typed(name, value, hint)


def _beside(path: Path, texts: str | tuple[str, ...]) -> str | tuple[str, ...]:
    places = tuple(
        text if text == SELF else str(path.parent / text) for text in ([texts] if isinstance(texts, str) else texts)
    )
    return places[0] if len(places) == 1 else places


def share(text: str) -> float:
    """Return `5%` or `0.05` as a number.

    Raises:
        UsageError: it is none, or looks like a number of percent.
    """
    try:
        part = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"max_overhead is {text!r}", hint="write 5% or 0.05") from None
    if part > 1 and not text.endswith("%"):
        raise UsageError(f"max_overhead {text} would be {100 * part:.0f} %", hint="write 5% or 0.05")
    return part
