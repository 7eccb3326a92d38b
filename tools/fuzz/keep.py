"""Keep a failing case: the model, its inputs, what was asked for and what happened, as it was and made smaller."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tools.fuzz.cases import Case
from tools.fuzz.graphs import Outcome, judge, recipe_of
from tools.fuzz.shrink import shrink


def keep_graph(place: Path, case: Case, outcome: Outcome, scratch: Path, seconds: float) -> Case:
    """Write a failing case to a new folder, with a smaller one in `shrunk`, which is returned."""
    shutil.rmtree(place, ignore_errors=True)
    _write(place, case, outcome)
    smaller = shrink(case, lambda other: judge(other, scratch).kind == outcome.kind, seconds)
    _write(place / "shrunk", smaller, judge(smaller, scratch))
    return smaller


def _write(place: Path, case: Case, outcome: Outcome) -> None:
    case.write(place)
    (place / "recipe.json").write_text(json.dumps(recipe_of(case), indent=1) + "\n", encoding="utf-8")
    (place / "outcome.txt").write_text(f"{outcome.kind}\n\n{outcome.detail}\n", encoding="utf-8")
