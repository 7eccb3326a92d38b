"""HTML as text: elements, tables that scroll by themselves, numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from catonnx.reporting.svg import element

NOTHING = "\u2013"


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = False) -> str:
    """Return a table; the first cell of a row names it.

    Args:
        caption: What the table is, in plain words.
        columns: Headings; one that begins with > is above numbers, one with = above words that may wrap. If none says
            anything, there is no row of them.
        rows: Cells, as markup.
        total: The last row sums up the others.
    """
    classes = [{">": "number", "=": "words"}.get(name[:1]) for name in columns]
    headings = [
        element("th", name.lstrip(">=") or "&#160;", scope="col", class_=own)
        for name, own in zip(columns, classes, strict=True)
    ]
    body = []
    for index, row in enumerate(rows):
        cells = [
            element("td" if column else "th", cell or "&#160;", class_=own, scope=None if column else "row")
            for column, (cell, own) in enumerate(zip(row, classes, strict=True))
        ]
        body.append(element("tr", *cells, class_="total" if total and index == len(rows) - 1 else None))
    inner = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *headings)) if any(name.lstrip(">=") for name in columns) else "",
        element("tbody", *body) if body else "",
    )
    return element("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def facts(rows: Sequence[tuple[str, str]], caption: str) -> str:
    """Return names and what is said of them, both as markup."""
    return table(caption, ("", "="), rows)


def tiles(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return figures to see first: name, figure, and a line below it."""
    boxes = [
        element("div", element("dt", name), element("dd", figure, element("small", below)), class_="tile")
        for name, figure, below in rows
    ]
    return element("dl", *boxes, class_="tiles")


def beside(*parts: str) -> str:
    """Return parts side by side where there is room."""
    return element("div", *(element("div", part) for part in parts), class_="beside")


def section(name: str, heading: str, *parts: str) -> str:
    """Return a section, or nothing if it has no parts."""
    inside = [part for part in parts if part]
    if not inside:
        return ""
    return element("section", element("h2", heading, id=name), *inside, aria_labelledby=name)


def paragraph(text: str) -> str:
    """Return a paragraph of markup."""
    return element("p", text)


def number(value: float | None, digits: int) -> str:
    """Return a number, or a dash for one that is not known."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "\u2212")


def percent(value: float | None, digits: int = 2) -> str:
    """Return a share as per cent."""
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"
