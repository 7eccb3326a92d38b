"""Plain data, as JSON gives it, made into dataclasses: every value is checked against its field's type."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Made = TypeVar("Made")

_LARGEST = 1 << 63
"""Whole numbers beyond this are no sizes or counts; some would not even fit into a float."""


class BrokenError(Exception):
    """Says which value is not what it should be."""


def read_plain(path: Path) -> Any:
    """Read a file of JSON.

    Raises:
        BrokenError: it is none, or holds a number that JSON does not know.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise BrokenError(f"it cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BrokenError(str(error)) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds the number {constant}")


def made(kind: type[Made], data: Any, where: str, given: Mapping[str, Any] | None = None) -> Made:
    """Return a dataclass of `kind` from plain data; keys that it does not know are of a later version.

    Args:
        kind: A dataclass; a field with a default may be missing.
        data: An object of JSON.
        where: What it is called in errors.
        given: Fields that are known.

    Raises:
        BrokenError: a value is missing, or not of its field's type.
    """
    if not isinstance(data, dict):
        raise BrokenError(f"{where} is {_short(data)}, not an object")
    hints, values = get_type_hints(kind), dict(given or {})
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        place = f"{where}.{field.name}".removeprefix(".")
        if field.name in data and field.name not in values:
            values[field.name] = converted(data[field.name], hints[field.name], place)
        elif field.name not in values and field.default is dataclasses.MISSING:
            raise BrokenError(f"{place} is missing")
    return kind(**values)


def converted(value: Any, hint: Any, where: str) -> Any:
    """Return a value of JSON as the type that it must have: lists as tuples, objects as dataclasses.

    Raises:
        BrokenError: it is not of that type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return made(hint, value, where)
    if origin is UnionType:  # X | None
        return None if value is None else converted(value, arguments[0], where)
    if origin is tuple and isinstance(value, list):
        wanted = [arguments[0]] * len(value) if arguments[1:] == (...,) else list(arguments)
        if len(wanted) == len(value):
            return tuple(
                converted(item, each, f"{where}[{index}]")
                for index, (item, each) in enumerate(zip(value, wanted, strict=True))
            )
    if origin is dict and isinstance(value, dict):
        return {name: converted(item, arguments[1], f"{where}.{name}") for name, item in value.items()}
    if type(value) is int and not -_LARGEST <= value <= _LARGEST:
        raise BrokenError(f"{where} is {_short(value)}, which is beyond all that is counted here")
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise BrokenError(f"{where} is {_short(value)}, not {_spelled(hint)}")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _spelled(hint: Any) -> str:
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    return names.get(hint, "a list" if get_origin(hint) is tuple else "an object")
