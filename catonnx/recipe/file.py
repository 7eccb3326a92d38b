"""Recipes in TOML: every field of `Recipe` by its name, and `preset` and `target`.

    target = "cpu"
    lm_head = true
    group_size = "channel"           # or a number
    max_overhead = "5%"
    calibration = ["news.txt"]       # beside the file; or "self"

Underscores may be dashes, as on the command line. Calibration files are looked for in the folder of the recipe.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any, get_args, get_type_hints

from catonnx.errors import UsageError
from catonnx.recipe import SELF, Recipe
from catonnx.recipe.presets import NAMES

_WORDS = {"group_size": "channel", "activation_group_size": "token"}
"""Fields in which a word stands for None."""

_LARGEST = 1 << 63

_SPELLED: dict[type, str] = {
    tuple: "a list of texts",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def read_recipe(path: Path) -> dict[str, Any]:
    """Return what a file says: fields of `Recipe`, in its own terms, and `preset` and `target`.

    Raises:
        UsageError: if there is no such file, it is no TOML, or it names or says what no recipe has.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"no recipe can be read: {error.strerror}", where=path, hint="give a TOML file") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"this recipe is no TOML: {error}", where=path, hint='write lines like: scheme = "w4a8"'
        ) from None
    hints = get_type_hints(Recipe)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(Recipe)}
    found: dict[str, Any] = {}
    for key, value in said.items():
        name = key.replace("-", "_")
        if name in found:
            raise UsageError(f"the recipe says {name} twice", where=path, hint="leave one of them out")
        if name in NAMES:
            if value not in NAMES[name]:
                raise UsageError(f"{name} is {value!r}", where=path, hint=f"choose one of {', '.join(NAMES[name])}")
            found[name] = value
        elif name in fields:
            found[name] = _settled(name, value, fields[name], path)
        else:
            near = difflib.get_close_matches(name, [*fields, *NAMES], 1)
            hint = f"did you mean {near[0]}?" if near else f"a recipe has: {', '.join([*NAMES, *fields])}"
            raise UsageError(f"a recipe has no {key!r}", where=path, hint=hint)
    if "calibration" in found:
        found["calibration"] = _beside(path, found["calibration"])
    return found


def _settled(name: str, value: Any, hint: Any, path: Path) -> Any:
    """Return one value as the recipe has it."""
    if _WORDS.get(name) == value:
        return None
    if name == "max_overhead" and isinstance(value, str):
        return share(value)
    kinds = _kinds(hint)
    if tuple in kinds and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if float in kinds and type(value) is int and abs(value) < _LARGEST:
        return float(value)
    if type(value) not in kinds:
        wanted = " or ".join(sorted(_SPELLED[kind] for kind in kinds))
        raise UsageError(f"{name} is {value!r}", where=path, hint=f"it must be {wanted}")
    return value


def _kinds(hint: Any) -> set[type]:
    """Return the types of the values of a field."""
    if isinstance(hint, type):
        return {hint} - {type(None)}
    arguments = get_args(hint)
    if arguments and all(isinstance(argument, str | int) for argument in arguments):  # a Literal
        return {type(argument) for argument in arguments}
    if getattr(hint, "__origin__", None) is tuple:
        return {tuple}
    return set().union(*(_kinds(argument) for argument in arguments))


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
