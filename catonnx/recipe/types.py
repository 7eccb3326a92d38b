"""Of what type each field of a recipe is: refused where it is of another, whoever wrote it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from catonnx.errors import UsageError

if TYPE_CHECKING:
    from catonnx.recipe import Recipe

_LARGEST = 1 << 63
"""Whole numbers beyond this would not even fit into a float."""

_SPELLED: dict[type, str] = {
    tuple: "a list of texts",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


@functools.cache
def hints_of(recipe: type[Recipe]) -> Mapping[str, Any]:
    """Return the type of every field."""
    hints = get_type_hints(recipe)
    return {name: hints[name] for name in recipe.__dataclass_fields__}


def as_typed(name: str, value: Any, hint: Any) -> Any:
    """Return a value of a field as its type: a list of texts as a tuple, a whole number as the number that it is.

    Args:
        name: Of the field.
        value: What was said.
        hint: Its type, of `hints_of`.

    Raises:
        UsageError: it is of another type.
    """
    kinds = _kinds(hint)
    if tuple in kinds and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if float in kinds and type(value) is int and abs(value) < _LARGEST:
        return float(value)
    # A truth value is an int to Python, and nobody means that.
    if not isinstance(value, tuple(kinds - {tuple})) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(sorted(_SPELLED[kind] for kind in kinds - {NoneType}))
        raise UsageError(f"{name} is {value!r}", hint=f"it must be {wanted}")
    return value


def _kinds(hint: Any) -> set[type]:
    """Return the types of the values of a field."""
    if isinstance(hint, type):
        return {hint}
    arguments = get_args(hint)
    if arguments and all(isinstance(argument, str | int) for argument in arguments):  # a Literal
        return {type(argument) for argument in arguments}
    if getattr(hint, "__origin__", None) is tuple:
        return {tuple}
    return set().union(*(_kinds(argument) for argument in arguments))
