"""The pictures of a report: sizes, SQNR layer by layer, concentration against alignment, sensitivity by depth.

All numbers come from the report as they stand there; a point's title says them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from catonnx.math.sqnr import decibels, intervals
from catonnx.naming import shortened
from catonnx.report import Report, SiteRow
from catonnx.reporting.axes import LEFT, RIGHT, Axis, Frame
from catonnx.reporting.svg import GRID, INK, MUTED, PALETTE, Picture, element, label, marker, shown, side_by_side

PANEL_WIDTH, PANEL_HEIGHT = 460.0, 270.0
_WIDE, _HIGH = 620.0, 440.0

_MOST_PANELS = 12
"""More kinds of layers than this, or kinds of one site only, share one panel."""

_BEFORE, _AFTER = 1, 0
"""Series of what was before and of what is now: vermillion squares and blue circles."""

_BITS_OF_LINES = 4
"""The lines of equal SQNR are those of 4-bit weights."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """All sites of one kind, in graph order: how deep a site lies is its number among them.

    Attributes:
        series: Its colour and shape.
        name: What its linears are called, as markup.
        sites: At least one.
    """

    series: int
    name: str
    sites: tuple[SiteRow, ...]


def kinds(report: Report) -> list[Kind]:
    """Return the sites of a report by kind, the first one first."""
    groups: dict[str, list[SiteRow]] = {}
    for row in report.sites:
        groups.setdefault(row.kind, []).append(row)
    names = shortened(list(groups))
    return [
        Kind(index, shown(name, 44), tuple(rows))
        for index, (name, rows) in enumerate(zip(names, groups.values(), strict=True))
    ]


def rounded(row: SiteRow) -> float | None:
    """Return the SQNR of a site as it was really rounded, in dB: of weights and activation where that was measured."""
    return row.sqnr_weights if row.sqnr_outputs is None else row.sqnr_outputs


def noise_percent(sqnr_db: float) -> float:
    """Return the energy of an error in per cent of the signal's."""
    return float(100 * 10 ** (-sqnr_db / 10))


def sqnr_panels(report: Report) -> list[Picture]:
    """Return SQNR by layer, before and after: a panel for every kind of layer, all on one scale."""
    found = [kind for kind in kinds(report) if any(_decibel_values(row) for row in kind.sites)]
    if not found:
        return []
    if len(found) > _MOST_PANELS or all(len(kind.sites) == 1 for kind in found):
        found = [Kind(0, "all sites, in graph order", tuple(row for kind in found for row in kind.sites))]
    axis = Axis.over([value for kind in found for row in kind.sites for value in _decibel_values(row)])
    return [_sqnr_panel(kind, axis) for kind in found]


def sqnr_legend(report: Report) -> Picture | None:
    """Return what the marks in the panels mean; None if there are none."""
    if not any(_decibel_values(row) for row in report.sites):
        return None
    y = 16.0
    body = [
        marker(_BEFORE, 60, y - 4, "", hollow=True),
        label(70, y, "before, predicted", class_="ink", fill=INK),
        marker(_AFTER, 206, y - 4, ""),
        label(216, y, "after, predicted", class_="ink", fill=INK),
        element("line", x1=337, x2=351, y1=y - 4, y2=y - 4, stroke=INK, stroke_width=2, class_="axis"),
        label(356, y, "as rounded", class_="ink", fill=INK),
    ]
    return Picture("sqnr-legend", "Legend", "What the marks mean.", PANEL_WIDTH, 30, "".join(body))


def scatter(report: Report) -> Picture | None:
    """Return concentration against alignment, before and after; None if the report does not tell them."""
    moves = [(kind, row, _ends(row)) for kind in kinds(report) for row in kind.sites]
    known = [(kind, row, ends) for kind, row, ends in moves if ends is not None]
    if not known:
        return None
    told = list({kind.series: kind for kind, _, _ in known}.values())
    rows = math.ceil(len(told) / 2)
    places = [end for _, _, ends in known for end in ends]
    frame = Frame(
        _WIDE, _HIGH, Axis.over([end[0] for end in places], count=7), Axis.over([end[1] for end in places], count=7)
    )
    parts = [_equal_sqnr(frame), frame.drawn("Every site, before and after", "alignment A, dB", "concentration C, dB")]
    for _, _, (old, new) in known:
        ends = {"x1": frame.x(old[0]), "y1": frame.y(old[1]), "x2": frame.x(new[0]), "y2": frame.y(new[1])}
        parts.append(element("line", **ends, stroke=MUTED, stroke_width=0.7, stroke_opacity=0.35, class_="axis"))
    for kind, row, (old, new) in known:
        for word, hollow, (alignment, concentration) in (("before", True, old), ("after", False, new)):
            title = f"{_name(row)}, {word}: concentration {concentration:.2f} dB, alignment {alignment:.2f} dB"
            parts.append(marker(kind.series, frame.x(alignment), frame.y(concentration), title, hollow=hollow))
    parts += _kind_legend(told, _HIGH, "hollow: before, filled: after; dashed: equal SQNR of 4-bit weights")
    return Picture(
        "scatter",
        "Concentration against alignment",
        "Each site before (hollow) and after (filled) the change of basis. Up means fewer outliers, to the right "
        "better aligned; both raise the SQNR. The table of sites has the numbers.",
        _WIDE,
        _HIGH + 22 * rows + 26,
        "".join(parts),
    )


def depth(report: Report) -> Picture | None:
    """Return the error that rounding leaves, by depth, a line for every kind of layer; None if it is not known."""
    lines = []
    for kind in kinds(report):
        values = [(index, row, rounded(row)) for index, row in enumerate(kind.sites)]
        known = [(index, row, value) for index, row, value in values if value is not None]
        if known:
            lines.append((kind, known))
    if not lines:
        return None
    noises = [noise_percent(value) for _, known in lines for _, _, value in known]
    deepest = max(known[-1][0] for _, known in lines)
    frame = Frame(_WIDE, 320, Axis.counting(deepest + 1), Axis.over(noises, zero=True))
    parts = [frame.drawn("What rounding leaves, by depth", "depth, counted for each kind", "noise, % of the signal")]
    for kind, known in lines:
        places = [(frame.x(index), frame.y(noise_percent(value))) for index, _, value in known]
        colour = kind.series % len(PALETTE)
        parts.append(
            element(
                "polyline",
                points=" ".join(f"{x:.2f},{y:.2f}" for x, y in places),
                fill="none",
                stroke=PALETTE[colour],
                stroke_width=1.2,
                stroke_opacity=0.6,
                class_=f"line{colour}",
            )
        )
        for (x, y), (_, row, value) in zip(places, known, strict=True):
            title = f"{_name(row)}: {value:.2f} dB, {noise_percent(value):.3g} % of the signal"
            parts.append(marker(kind.series, x, y, title))
    parts += _kind_legend([kind for kind, _ in lines], 320, "")
    return Picture(
        "depth",
        "Sensitivity by depth",
        "Energy of the error that rounding leaves in the outputs of each site, in per cent of the outputs' energy, "
        "from the first layer to the last, a line for every kind of layer.",
        _WIDE,
        320 + 22 * math.ceil(len(lines) / 2) + 8,
        "".join(parts),
    )


def sizes(report: Report) -> Picture:
    """Return the size of the files before and after, rounded weights and all the rest apart."""
    parts, left, width = [], 64.0, PANEL_WIDTH * 1.35
    room = width - left - 110
    largest = max(report.size_before, report.size_after, 1)
    rows = (
        ("before", report.size_before, sum(row.bytes_before for row in report.sites)),
        ("after", report.size_after, sum(row.bytes_after for row in report.sites)),
    )
    for index, (word, size, linears) in enumerate(rows):
        y = 12.0 + 34 * index
        part = min(linears, size)  # weights that sites share are counted at each of them
        ends = room * part / largest, room * size / largest
        parts += [
            label(left - 8, y + 17, word, text_anchor="end", class_="ink", fill=INK),
            element("rect", element("title", f"rounded linears: {spelled(part)}"), x=left, y=y, width=ends[0],
                    height=24, fill=PALETTE[_AFTER], class_=f"fill{_AFTER}"),
            element("rect", element("title", f"all else: {spelled(size - part)}"), x=left + ends[0], y=y,
                    width=ends[1] - ends[0], height=24, fill=GRID, stroke=MUTED, class_="rest"),
            label(left + ends[1] + 8, y + 17, spelled(size), class_="ink", fill=INK),
        ]  # fmt: skip
    y = 12.0 + 34 * len(rows) + 14
    parts += [
        element("rect", x=left, y=y - 10, width=12, height=12, fill=PALETTE[_AFTER], class_=f"fill{_AFTER}"),
        label(left + 18, y, "weights of the rounded linears"),
        element("rect", x=left + 220, y=y - 10, width=12, height=12, fill=GRID, stroke=MUTED, class_="rest"),
        label(left + 238, y, "all else"),
    ]
    return Picture(
        "sizes",
        "Size on disk",
        f"{spelled(report.size_before)} before, {spelled(report.size_after)} after.",
        width,
        y + 14,
        "".join(parts),
    )


def all_pictures(report: Report) -> list[Picture]:
    """Return every picture that the report has the numbers for, one for a file."""
    panels = sqnr_panels(report)
    found = [sizes(report), scatter(report), depth(report)]
    if panels:
        found.append(side_by_side("sqnr", panels, 2, sqnr_legend(report)))
    return [picture for picture in found if picture is not None]


def spelled(size: int) -> str:
    """Return a number of bytes in a handy unit."""
    unit, scale = next(((name, unit) for name, unit in (("GB", 1e9), ("MB", 1e6)) if size >= unit), ("kB", 1e3))
    return f"{size / scale:.1f} {unit}"


def _sqnr_panel(kind: Kind, axis: Axis) -> Picture:
    frame = Frame(PANEL_WIDTH, PANEL_HEIGHT, Axis.counting(len(kind.sites)), axis)
    parts = [frame.drawn(kind.name, "depth", "SQNR, dB")]
    for index, row in enumerate(kind.sites):
        x, name, real = frame.x(index), _name(row), rounded(row)
        before, after = row.sqnr_before, row.sqnr_after
        if before is not None and after is not None:
            ends = {"x1": x, "x2": x, "y1": frame.y(before), "y2": frame.y(after)}
            parts.append(element("line", **ends, stroke=MUTED, stroke_opacity=0.5, class_="axis"))
        if before is not None:
            parts.append(marker(_BEFORE, x, frame.y(before), f"{name}, before: {before:.2f} dB", hollow=True, size=3.4))
        if after is not None:
            parts.append(marker(_AFTER, x, frame.y(after), f"{name}, after: {after:.2f} dB", size=3.4))
        if real is not None:
            title = element("title", f"{name}, as rounded: {real:.2f} dB")
            ends = {"x1": x - 5.5, "x2": x + 5.5, "y1": frame.y(real), "y2": frame.y(real)}
            parts.append(element("line", title, **ends, stroke=INK, stroke_width=2, class_="axis rounded"))
    return Picture(
        f"sqnr-{kind.series}",
        "SQNR layer by layer",
        "Signal over rounding noise in dB, predicted before and after the change of basis, and as really rounded; "
        "higher is better.",
        PANEL_WIDTH,
        PANEL_HEIGHT,
        "".join(parts),
    )


def _name(row: SiteRow) -> str:
    more = f" (+{len(row.linears) - 1})" if len(row.linears) > 1 else ""
    return shown(row.linears[0] if row.linears else row.site) + more


def _decibel_values(row: SiteRow) -> list[float]:
    return [value for value in (row.sqnr_before, row.sqnr_after, rounded(row)) if value is not None]


def _ends(row: SiteRow) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return (alignment, concentration) before and after; None if one of them is not told."""
    old, new = (row.alignment_before, row.concentration_before), (row.alignment_after, row.concentration_after)
    if old[0] is None or old[1] is None or new[0] is None or new[1] is None:
        return None
    return (old[0], old[1]), (new[0], new[1])


def _equal_sqnr(frame: Frame) -> str:
    """Return dashed lines on which the prediction is the same, every 10 dB: SQNR = 12 N^2 C A."""
    offset = decibels(12 * intervals(_BITS_OF_LINES) ** 2, 1.0)
    x_axis, y_axis = frame.x_axis, frame.y_axis
    lowest, highest = offset + x_axis.low + y_axis.low, offset + x_axis.high + y_axis.high
    parts = []
    for sqnr in range(math.ceil(lowest / 5) * 5, math.floor(highest / 5) * 5 + 1, 5):
        total = sqnr - offset  # concentration + alignment
        left, right = max(x_axis.low, total - y_axis.high), min(x_axis.high, total - y_axis.low)
        if right - left < (x_axis.high - x_axis.low) / 8:
            continue  # a corner: no room for its name
        ends = {
            "x1": frame.x(left),
            "y1": frame.y(total - left),
            "x2": frame.x(right),
            "y2": frame.y(total - right),
        }
        parts.append(element("line", **ends, stroke=MUTED, stroke_dasharray="3 4", stroke_opacity=0.6, class_="axis"))
        parts.append(label(ends["x1"] + 11, ends["y1"] + (14 if left > x_axis.low else 4), f"{sqnr} dB", font_size=10))
    return "".join(parts)


def _kind_legend(told: Sequence[Kind], top: float, note: str) -> list[str]:
    parts = []
    for index, kind in enumerate(told):
        x, y = LEFT + index % 2 * (_WIDE - LEFT - RIGHT) / 2, top + 14 + 22 * (index // 2)
        parts.append(marker(kind.series, x + 5, y - 4, ""))
        parts.append(label(x + 16, y, kind.name, class_="ink", fill=INK))
    if note:
        parts.append(label(LEFT, top + 14 + 22 * math.ceil(len(told) / 2), note))
    return parts
