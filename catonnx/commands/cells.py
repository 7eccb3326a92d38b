"""What tables on the terminal are made of: plain ASCII but for the lines, and safe for names from models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import RenderableType
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from catonnx.naming import printable


def fact_grid(facts: Sequence[tuple[str, str]]) -> Table:
    """Return names and what is said of them."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for fact in facts:
        grid.add_row(*(Text(printable(part)) for part in fact))
    return grid


class _PrintableTable(Table):
    """A table whose cells may hold names from models."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        safe = (printable(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*safe, style=style, end_section=end_section)


def new_table(*columns: str) -> Table:
    """Return a table; a name that begins with > or = asks for a column that is not folded, > for one aligned right."""
    table = _PrintableTable(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
    for name in columns:
        heading = name.removeprefix(">").removeprefix("=")
        justify: Literal["left", "right"] = "right" if name.startswith(">") else "left"
        table.add_column(Text(printable(heading)), justify=justify, no_wrap=name != heading, overflow="fold")
    return table


def figure(value: float | None, digits: int) -> str:
    """Return a number, or a dash for one that is not known."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if math.isfinite(value) else str(value)


def percent(value: float | None) -> str:
    """Return a share as per cent, or a dash for one that is not known."""
    return "-" if value is None else f"{100 * value:.2f} %"


def unit_of(sizes: Sequence[int]) -> tuple[str, float]:
    """Return the unit in which the largest size is a handy number."""
    largest = max(sizes, default=0)
    return next(((name, size) for name, size in (("GB", 1e9), ("MB", 1e6)) if largest >= size), ("kB", 1e3))


def written(files: Sequence[Path]) -> RenderableType:
    """Return what commands show that wrote files."""
    return fact_grid([("" if index else "written", str(file)) for index, file in enumerate(files)])
