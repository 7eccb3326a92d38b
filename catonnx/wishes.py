"""From what was typed to a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catonnx.errors import UsageError
from catonnx.recipe import PRESETS, Preset, Recipe
from catonnx.terminal import Terminal

if TYPE_CHECKING:
    from catonnx.siteplan import Plan


_FIELDS = frozenset(field.name for field in dataclasses.fields(Recipe))


def wishes_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was said of the recipe, in its own terms; what was not said is left out.

    Args:
        parameters: Everything that a command was called with, by name; what is named as a field of `Recipe` counts.

    Raises:
        UsageError: if a share is no number.
    """
    # A flag that was not given is False, a repeatable option None or empty; 0 is a wish.
    said = {name: value for name, value in parameters.items() if value is not None and value is not False}
    wishes = {name: value for name, value in said.items() if name in _FIELDS and value != []}
    for name in ("include", "exclude", "w8", "calibration"):
        if name in wishes:
            wishes[name] = tuple(wishes[name])
    if len(wishes.get("calibration", ())) == 1:
        (wishes["calibration"],) = wishes["calibration"]
    for name in ("group_size", "activation_group_size"):
        if name in wishes:
            wishes[name] = int(wishes[name]) if wishes[name].isdigit() else None
    if wishes.get("form") == "integer":
        wishes.setdefault("group_size", None)
    if wishes.get("form") == "op" and wishes.get("scheme") in ("w4a8", "w4a4"):
        wishes.setdefault("activation_range", "symmetric")
    if "tied_embeddings" in wishes:
        wishes["tied_embeddings"] = int(wishes["tied_embeddings"])
    if "max_overhead" in wishes:
        wishes["max_overhead"] = _share(wishes["max_overhead"])
    return wishes


def check_idle(wishes: Mapping[str, Any], option: str) -> None:
    """Refuse wishes beside an option that looks at a model as it is.

    Raises:
        UsageError: naming them.
    """
    idle = sorted(wishes.keys() - {"provider", "seed"})  # these two are always there
    if idle:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise UsageError(f"{option} looks at the model as it is, without {told}", hint="leave one of them out")


def _share(text: str) -> float:
    """Return `5%` or `0.05` as a number."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"max_overhead is {text!r}", hint="write 5% or 0.05") from None
    if share > 1 and not text.endswith("%"):
        raise UsageError(f"max_overhead {text} would be {100 * share:.0f} %", hint="write 5% or 0.05")
    return share


def _effort(preset: Preset | None, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a preset sets, without what a wish leaves nothing to do for."""
    effort = dict(PRESETS[preset]) if preset else {}
    if wishes.get("rounding") == "sequential" or wishes.get("scheme") == "float":
        effort.pop("correct_bias", None)
    return effort


def with_plan(
    preset: Preset | None, wishes: dict[str, Any], file: Path | None, model: Path, terminal: Terminal
) -> tuple[Recipe, Plan | None]:
    """Return the whole recipe, and the plan if one was given: that has settled what shapes a plan.

    Args:
        preset: What was wished as a whole.
        wishes: What was wished one by one; goes before it.
        file: The plan.
        model: What is optimized; a plan for another one is noted.
        terminal: Shows the note.

    Raises:
        UsageError: if the file is no plan, or something was wished that it has settled.
    """
    effort = _effort(preset, wishes)
    if file is None:
        return Recipe(**(effort | wishes)), None

    from catonnx.graph.load import find
    from catonnx.planfile import SHAPING, load_plan

    saved = load_plan(file)
    given = [name for name in wishes if name in SHAPING and _plain(wishes[name]) != saved.shaping[name]]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{names} and --plan contradict each other", hint="a plan has settled that already")
    if saved.digest != find(model).digest:
        terminal.note("the plan was made for another model; it is taken if it fits this one")
    return Recipe(**(effort | wishes | dict(saved.shaping))), saved.plan


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
