"""SVG as text: elements, markers and whole pictures. Colours are attributes: a style sheet may override them."""

from __future__ import annotations

import dataclasses
import html

from catonnx.naming import printable

INK = "#1b1f24"
MUTED = "#59636e"
GRID = "#d8dee4"

PALETTE = ("#0072b2", "#d55e00", "#00805d", "#b8508a", "#946a00", "#2a87bf", "#59636e")
"""Okabe and Ito's colours, the light ones darkened until they stand out on white (contrast 3 and more)."""

FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"

LONGEST_NAME = 120
"""Characters of a name that are shown; names in models may be of any length."""

_SHAPES = (
    "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0 -1 0Z",  # circle
    "M-.9 -.9H.9V.9H-.9Z",  # square
    "M0 -1.15L1.1 .85H-1.1Z",  # triangle
    "M0 -1.3L1.3 0L0 1.3L-1.3 0Z",  # diamond
    "M0 1.15L1.1 -.85H-1.1Z",  # triangle on its tip
    "M-.4 -1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z",  # cross
    "M0 -1.2L1.14 -.37L.71 .97H-.71L-1.14 -.37Z",  # pentagon
    "M-1.1 -.6L0 -1.2L1.1 -.6V.6L0 1.2L-1.1 .6Z",  # hexagon
)
"""Outlines around the origin, about 1 in radius. Their number and that of the colours share no divisor."""


def shown(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a text from a model as markup: nothing in it acts, and the middle of a long one is left out."""
    line = printable(text).replace("\n", " ")
    if len(line) > longest:
        half = (longest - 1) // 2
        line = f"{line[:half]}\u2026{line[-half:]}"
    return html.escape(line)


def element(name: str, *children: str, **attributes: object) -> str:
    """Return an element; `font_size=9` becomes `font-size="9"`, and `class_` is `class`.

    Args:
        name: Of the element.
        children: Markup, taken as it is.
        attributes: Numbers are rounded to hundredths, None is left out.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{pairs}>{''.join(children)}</{name}>" if children else f"<{name}{pairs}/>"


def label(x: float, y: float, text: str, **attributes: object) -> str:
    """Return a text of the picture itself; what comes from models goes through `shown` first."""
    return element("text", text, x=x, y=y, **({"fill": MUTED, "class_": "muted"} | attributes))


def marker(series: int, x: float, y: float, title: str, *, hollow: bool = False, size: float = 4.0) -> str:
    """Return a point of a series: its own colour and shape; a hollow one is seen through.

    Args:
        series: Number of the series.
        x: Its place.
        y: Its place.
        title: Markup that a pointer over it shows.
        hollow: Draw the outline only.
        size: Radius.
    """
    colour = PALETTE[series % len(PALETTE)]
    return element(
        "path",
        *([element("title", title)] if title else []),
        d=_SHAPES[series % len(_SHAPES)],
        transform=f"translate({x:.2f} {y:.2f}) scale({size:g})",
        class_=f"{'line' if hollow else 'fill'}{series % len(PALETTE)}",
        fill="none" if hollow else colour,
        stroke=colour if hollow else "none",
        stroke_width=0.45 if hollow else None,
    )


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: Of its file, and of what belongs to it in a page.
        title: What it shows, in a few words.
        description: What it shows, for those who do not see it.
        width: Of its coordinates.
        height: Of its coordinates.
        body: Its markup.
    """

    name: str
    title: str
    description: str
    width: float
    height: float
    body: str

    def inline(self) -> str:
        """Return the picture as part of a page."""
        return self._svg(f"{self.name}-", self.body, class_="picture")

    def standalone(self) -> str:
        """Return the picture as a file of its own, on white."""
        paper = element("rect", width=self.width, height=self.height, fill="#ffffff")
        size = {"xmlns": "http://www.w3.org/2000/svg", "width": self.width, "height": self.height}
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + self._svg("", paper + self.body, **size) + "\n"

    def _svg(self, prefix: str, body: str, **attributes: object) -> str:
        title, description = f"{prefix}title", f"{prefix}description"
        return element(
            "svg",
            element("title", shown(self.title), id=title),
            element("desc", shown(self.description, 1000), id=description),
            body,
            viewBox=f"0 0 {self.width:g} {self.height:g}",
            role="img",
            aria_labelledby=f"{title} {description}",
            font_family=FONT,
            font_size=12,
            **attributes,
        )


def side_by_side(name: str, pictures: list[Picture], columns: int, legend: Picture | None = None) -> Picture:
    """Return pictures of one size as one, in rows of `columns`, a legend below."""
    first, columns = pictures[0], min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    parts = [
        element("g", picture.body, transform=f"translate({index % columns * first.width:g} {top:g})")
        for index, picture in enumerate(pictures)
        for top in [index // columns * first.height]
    ]
    height = rows * first.height
    if legend is not None:
        parts.append(element("g", legend.body, transform=f"translate(0 {height:g})"))
        height += legend.height
    description = " ".join(dict.fromkeys(picture.description for picture in pictures))
    width = max(columns * first.width, legend.width if legend else 0)
    return Picture(name, first.title, description, width, height, "".join(parts))


def _attribute(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(str(value))
