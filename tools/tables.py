"""Rows of measurements: as a table for people, as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_HEADINGS = ("", "what", "bound", "measured", "")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        group: What it belongs to: a step, a model.
        what: What was measured.
        measured: The result in words, units included.
        bound: What it should be; empty if nothing is demanded.
        met: Whether it is; None if nothing is demanded or it could not be measured.
        values: The numbers behind `measured`.
        failed: The check itself broke, and `measured` says how.
    """

    group: str
    what: str
    measured: str
    bound: str = ""
    met: bool | None = None
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    failed: bool = False

    @property
    def verdict(self) -> str:
        """A word for the last column."""
        if self.failed:
            return "FAILED"
        return "" if self.met is None else ("ok" if self.met else "MISSED")

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data; numbers that are not finite become None."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}


def attempt(group: str, what: str, measure: Callable[[], Sequence[Row]]) -> list[Row]:
    """Return the rows of one measurement, or one row that says how it failed, so that the next can go on."""
    try:
        return list(measure())
    except Exception as error:  # whatever it is, it belongs into this row and must not end the others
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        return [Row(group, what, told, failed=True)]


def all_well(rows: Iterable[Row]) -> bool:
    """Return whether nothing failed and every bound was met."""
    return not any(row.failed or row.met is False for row in rows)


def markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table whose columns stand below each other, the group written where it changes."""
    groups = [row.group for row in rows]
    shown = [group if index == 0 or groups[index - 1] != group else "" for index, group in enumerate(groups)]
    cells = [
        tuple(text.replace("|", "/") for text in (group, row.what, row.bound, row.measured, row.verdict))
        for group, row in zip(shown, rows, strict=True)
    ]
    return aligned(_HEADINGS, cells)


def aligned(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns stand below each other."""
    widths = [max(3, *(len(line[column]) for line in (headings, *lines))) for column in range(len(headings))]
    ruled = [_line(headings, widths), _line(["-" * width for width in widths], widths)]
    return "\n".join([*ruled, *(_line(line, widths) for line in lines)])


def write_json(file: Path, data: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write `data` and the rows to a file, whose folder is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {key: _plain(value) for key, value in data.items()} | {"rows": [row.to_json() for row in rows]}
    file.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join(padded)} |"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
