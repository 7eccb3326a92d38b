"""From what was typed, and what a recipe file says, to a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catonnx.commands.terminal import Terminal
from catonnx.errors import UsageError
from catonnx.recipe import Recipe
from catonnx.recipe.file import read_recipe, share
from catonnx.recipe.presets import NAMES, settled

if TYPE_CHECKING:
    from catonnx.planning.siteplan import Plan


_FIELDS = frozenset(field.name for field in dataclasses.fields(Recipe)) | NAMES.keys()


def wishes_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was said of the recipe, in its own terms; what was not said is left out.

    Args:
        parameters: Everything that a command was called with, by name; what is named as a field of `Recipe` counts, and
            `preset` and `target`. What the file `recipe_file` says comes after what was typed.

    Raises:
        UsageError: if a share is no number, or the file is no recipe.
    """
    wishes = _typed(parameters)
    for name in ("include", "exclude", "w8", "calibration"):
        if name in wishes:
            wishes[name] = tuple(wishes[name])
    if len(wishes.get("calibration", ())) == 1:
        (wishes["calibration"],) = wishes["calibration"]
    for name in ("group_size", "activation_group_size"):
        if name in wishes:
            wishes[name] = int(wishes[name]) if wishes[name].isdigit() else None
    if "tied_embeddings" in wishes:
        wishes["tied_embeddings"] = int(wishes["tied_embeddings"])
    if "max_overhead" in wishes:
        wishes["max_overhead"] = share(wishes["max_overhead"])
    file = parameters.get("recipe_file")
    return wishes if file is None else read_recipe(file) | wishes


def spelled_as_options(parameters: Mapping[str, Any]) -> Collection[str]:
    """Return the fields that errors shall spell as options: what was typed, and all without a recipe file.

    Args:
        parameters: As of `wishes_of`.
    """
    return _FIELDS if parameters.get("recipe_file") is None else _typed(parameters).keys()


def _typed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    # What was not given is None, a repeatable option None or empty; 0 and a flag's False are wishes.
    return {name: value for name, value in parameters.items() if name in _FIELDS and value is not None and value != []}


def check_idle(wishes: Mapping[str, Any], option: str) -> None:
    """Refuse wishes beside an option that looks at a model as it is.

    Raises:
        UsageError: naming them.
    """
    idle = sorted(wishes.keys() - {"provider", "seed"})
    if idle:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise UsageError(f"{option} looks at the model as it is, without {told}", hint="leave one of them out")


def with_plan(
    wishes: Mapping[str, Any], file: Path | None, model: Path, terminal: Terminal
) -> tuple[Recipe, Plan | None]:
    """Return the whole recipe, and the plan if one was given: that has settled what shapes a plan.

    Args:
        wishes: Of `wishes_of`.
        file: The plan.
        model: What is optimized; a plan for another one is noted.
        terminal: Shows the note.

    Raises:
        UsageError: if the file is no plan, or something was wished that it has settled.
    """
    whole = settled(wishes)
    if file is None:
        return Recipe(**whole), None

    from catonnx.graph.load import find
    from catonnx.planning.planfile import SHAPING, load_plan

    saved = load_plan(file)
    own = settled({name: value for name, value in wishes.items() if name not in NAMES})
    given = [name for name in own if name in SHAPING and _plain(own[name]) != saved.shaping[name]]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{names} and --plan contradict each other", hint="a plan has settled that already")
    if saved.digest != find(model).digest:
        terminal.note("the plan was made for another model; it is taken if it fits this one")
    return Recipe(**(whole | dict(saved.shaping))), saved.plan


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
