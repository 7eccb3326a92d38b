"""Read pages and pictures back: what they show, where, and whether they reach for anything outside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

VOID = {"meta", "br"}
SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """A page as a browser takes it apart: every element must be closed where it was opened.

    Attributes:
        tags: Names of all elements.
        attributes: (element, name, value) of all attributes.
        texts: All texts, joined.
        styles: What stands in style elements.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts = ""
        self.styles = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in what opens an element."""
        self._seen(tag, attrs)
        self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in an element that closes itself, which HTML knows only in pictures."""
        assert tag in VOID or "svg" in self._open, f"a browser leaves <{tag}/> open"
        self._seen(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        """Take in what closes an element."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Take in a text."""
        if self._open[-1:] == ["style"]:
            self.styles += data
        else:
            self.texts += data

    def _seen(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of <{tag}> stands there twice"
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    @property
    def reaches_outside(self) -> list[object]:
        """Everything that would load or run something."""
        loading = {
            "src",
            "srcset",
            "href",
            "xlink:href",
            "data",
            "action",
            "formaction",
            "poster",
            "background",
            "ping",
        }
        found: list[object] = [
            tag for tag in self.tags if tag in {"script", "link", "iframe", "object", "embed", "base"}
        ]
        found += [
            entry
            for entry in self.attributes
            if (entry[1] in loading and not entry[2].startswith("#"))
            or entry[1].startswith("on")
            or entry[1] == "style"
        ]
        return found + re.findall(r"url\(|@import|expression\(", self.styles)


def pictures_in(text: str) -> list[ElementTree.Element]:
    """Return the pictures of a page, in order."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL)]


def titles(picture: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, str]]:
    """Yield every mark that has a title, and the title."""
    for mark in picture.iter():
        for child in mark:
            if child.tag.removeprefix(SVG) == "title" and mark.tag.removeprefix(SVG) != "svg":
                yield mark, child.text or ""


def number_at(picture: ElementTree.Element, axis: str, place: float) -> float:
    """Return the number that stands at a place of an axis, "x" or "y", as its written ticks say."""
    ticks = [
        (float(text.get(axis, "")) - (4 if axis == "y" else 0), float((text.text or "").replace("\u2212", "-")))
        for text in picture.iter()
        if f"tick-{axis}" in text.get("class", "").split()
    ]
    places, numbers = zip(*ticks, strict=True)
    slope, offset = np.polyfit(np.array(places), np.array(numbers), 1)
    return float(slope * place + offset)


def place_of(mark: ElementTree.Element) -> tuple[float, float]:
    """Return where the middle of a mark lies."""
    moved = re.match(r"translate\(([-\d.]+) ([-\d.]+)\)", mark.get("transform", ""))
    if moved:
        return float(moved[1]), float(moved[2])
    return (float(mark.get("x1", "")) + float(mark.get("x2", ""))) / 2, float(mark.get("y1", ""))
