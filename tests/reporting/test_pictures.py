"""Every number in a picture is the one in the JSON report, at its place."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from catonnx.report import Report, SiteRow
from catonnx.reporting.axes import Axis
from catonnx.reporting.pictures import all_pictures, depth, kinds, scatter, sizes, sqnr_panels
from catonnx.reporting.svg import PALETTE, marker
from tests.reporting.reading import number_at, place_of, titles

NEAR = 0.02
"""Measured 0.006 dB at most: places are rounded to hundredths of a unit, of which some 3 are a dB."""


def row(**changes: Any) -> SiteRow:
    site = SiteRow(
        "x",
        ("fc0",),
        ((64, 48),),
        ("scale",),
        (),
        "",
        20.0,
        25.0,
        24.0,
        None,
        4,
        "",
        1000,
        200,
        12.0,
        15.0,
        -27.0,
        -24.0,
    )
    return dataclasses.replace(site, **changes)


def parsed(picture: Any) -> ElementTree.Element:
    return ElementTree.fromstring(picture.standalone())


def first_names(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {site["linears"][0]: site for site in told["sites"]}


def test_concentration_and_alignment_of_the_report_add_up_to_its_sqnr(told: dict[str, Any]) -> None:
    assert {site["bits"] for site in told["sites"]} == {4, 8}
    for site in told["sites"]:
        for when in ("before", "after"):
            steps = 20 * math.log10(2 ** site["bits"] - 1) + 10 * math.log10(12)
            parts = steps + site[f"concentration_{when}"] + site[f"alignment_{when}"]
            assert parts == pytest.approx(site[f"sqnr_{when}"], abs=0.016)  # three numbers rounded to hundredths


def test_sqnr_panels_show_every_site_where_the_report_has_it(report: Report, told: dict[str, Any]) -> None:
    sites, seen = first_names(told), 0
    fields = {"before": "sqnr_before", "after": "sqnr_after", "as rounded": "sqnr_outputs"}
    for panel in sqnr_panels(report):
        picture = parsed(panel)
        for mark, title in titles(picture):
            match = re.fullmatch(r"(\S+)(?: \(\+\d\))?, (before|after|as rounded): ([\d.-]+) dB", title)
            assert match, title
            wanted = sites[match[1]][fields[match[2]]]
            assert float(match[3]) == wanted
            assert number_at(picture, "y", place_of(mark)[1]) == pytest.approx(wanted, abs=NEAR)
            seen += 1
    assert seen == 3 * len(sites)


def test_depth_is_the_number_of_a_site_among_its_kind(report: Report) -> None:
    for kind, panel in zip(kinds(report), sqnr_panels(report), strict=True):
        picture = parsed(panel)
        befores = [place_of(mark)[0] for mark, title in titles(picture) if ", before" in title]
        assert [round(number_at(picture, "x", place), 2) for place in befores] == [*range(len(kind.sites))]


def test_scatter_shows_concentration_and_alignment_of_every_site(report: Report, told: dict[str, Any]) -> None:
    found = scatter(report)
    assert found is not None
    picture, sites, seen = parsed(found), first_names(told), 0
    for mark, title in titles(picture):
        match = re.fullmatch(
            r"(\S+)(?: \(\+\d\))?, (before|after): concentration ([\d.-]+) dB, alignment ([\d.-]+) dB", title
        )
        assert match, title
        wanted = [sites[match[1]][f"{name}_{match[2]}"] for name in ("concentration", "alignment")]
        assert [float(match[3]), float(match[4])] == wanted
        x, y = place_of(mark)
        assert number_at(picture, "y", y) == pytest.approx(wanted[0], abs=NEAR)
        assert number_at(picture, "x", x) == pytest.approx(wanted[1], abs=NEAR)
        assert (mark.get("fill") == "none") == (match[2] == "before")
        seen += 1
    assert seen == 2 * len(sites)


def test_lines_of_equal_sqnr_lie_where_the_formula_says(report: Report) -> None:
    lines = dataclasses.replace(
        report,
        sites=(row(alignment_before=-30.0, alignment_after=-10.0, concentration_before=5.0, concentration_after=20.0),),
    )
    found = scatter(lines)
    assert found is not None
    picture = parsed(found)
    dashed = [line for line in picture.iter() if line.get("stroke-dasharray")]
    names = [text.text or "" for text in picture.iter() if re.fullmatch(r"\d+ dB", text.text or "")]
    assert len(dashed) == len(names) >= 3
    for line, name in zip(dashed, names, strict=True):
        for end in "12":
            alignment = number_at(picture, "x", float(line.get(f"x{end}", "")))
            concentration = number_at(picture, "y", float(line.get(f"y{end}", "")))
            # 10 log10(12 * 15^2) = 34.31 dB for 4 bits
            assert 34.31 + alignment + concentration == pytest.approx(int(name.split()[0]), abs=0.05)


def test_sensitivity_is_the_noise_of_every_site(report: Report, told: dict[str, Any]) -> None:
    found = depth(report)
    assert found is not None
    picture, sites, seen = parsed(found), first_names(told), 0
    for mark, title in titles(picture):
        match = re.fullmatch(r"(\S+)(?: \(\+\d\))?: ([\d.-]+) dB, ([\d.e-]+) % of the signal", title)
        assert match, title
        wanted = sites[match[1]]["sqnr_outputs"]
        noise = 100 * 10 ** (-wanted / 10)
        assert float(match[2]) == wanted
        assert float(match[3]) == pytest.approx(noise, rel=5e-3)
        assert number_at(picture, "y", place_of(mark)[1]) == pytest.approx(noise, abs=0.01)
        seen += 1
    assert seen == len(sites)


def test_bars_are_as_long_as_files_are_large(report: Report, told: dict[str, Any]) -> None:
    linears = [sum(site[f"bytes_{when}"] for site in told["sites"]) for when in ("before", "after")]
    bars = [mark for mark, _ in titles(parsed(sizes(report)))]
    widths = [float(bar.get("width", "")) for bar in bars]
    assert len(widths) == 4
    unit = (widths[0] + widths[1]) / told["size_before"]
    wanted = [linears[0], told["size_before"] - linears[0], linears[1], told["size_after"] - linears[1]]
    assert widths == pytest.approx([unit * size for size in wanted], abs=0.02)


def test_without_figures_there_are_no_pictures_of_them(report: Report) -> None:
    blank = row(sqnr_before=None, sqnr_after=None, sqnr_weights=None, concentration_before=None)
    names = [picture.name for picture in all_pictures(dataclasses.replace(report, sites=(blank,)))]
    assert names == ["sizes"]


def test_what_is_missing_leaves_the_rest_standing(report: Report) -> None:
    lossless = row(linears=("fc0",), sqnr_weights=None, concentration_after=None)
    shown = dataclasses.replace(report, sites=(lossless, row(linears=("fc1",))))
    assert [picture.name for picture in all_pictures(shown)] == ["sizes", "scatter", "depth", "sqnr"]
    said = [title for picture in all_pictures(shown) for _, title in titles(parsed(picture))]
    assert [title for title in said if "fc0" in title] == ["fc0, before: 20.00 dB", "fc0, after: 25.00 dB"]


def test_kinds_of_one_site_share_a_panel(report: Report) -> None:
    sites = tuple(row(linears=(f"fc{index}",)) for index in range(5))
    panels = sqnr_panels(dataclasses.replace(report, sites=sites))
    assert len(panels) == 1
    assert len(list(titles(parsed(panels[0])))) == 15


def test_kinds_differ_in_colour_and_shape() -> None:
    looks = {
        tuple(re.findall(r'(?: d| fill)="([^"]*)"', marker(series, 0, 0, ""))) for series in range(len(PALETTE) * 8)
    }
    assert len(looks) == len(PALETTE) * 8
    near = [re.findall(r' d="([^"]*)"', marker(series, 0, 0, ""))[0] for series in range(8)]
    assert len(set(near)) == 8


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_stand_out_on_paper_and_in_the_dark() -> None:
    style = Path(__file__).resolve().parents[2] / "catonnx" / "reporting" / "page.css"
    roots = re.findall(r":root \{(.*?)\}", style.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(roots) == 3  # light, dark, print
    for root in roots:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", root))
        for name, colour in colours.items():
            # WCAG 2.2: 4.5 for text, 3 for what a picture is made of
            least = 3.0 if re.fullmatch(r"c\d", name) else 4.5 if name in ("ink", "muted", "link") else 1.0
            assert contrast(colour, colours["paper"]) >= least, (name, colour)
    light = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", roots[0]))
    assert [light[f"c{index}"] for index in range(len(PALETTE))] == list(PALETTE)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([19.2, 27.9], 18, 28),
        ([0.0013, 0.0018], 0.0013, 0.0018),
        ([5.0], 4, 6),
        ([-3.0, -3.0], -4, -2),
        ([1e9, 2e9], 1e9, 2e9),
        ([-1e-30, 1e-30], -1e-30, 1e-30),
    ],
)
def test_axes_hold_their_values(values: list[float], low: float, high: float) -> None:
    axis = Axis.over(values)
    assert axis.low <= low
    assert axis.high >= high
    assert 2 <= len(axis.ticks) <= 8
    assert all(0 <= axis.place(value) <= 1 for value in values)
    assert len({axis.spelled(tick) for tick in axis.ticks}) == len(axis.ticks)


def test_pictures_of_a_large_model_stay_small(report: Report) -> None:
    sites = tuple(row(linears=(f"layers.{index}/{name}",)) for index in range(200) for name in "qkvo")
    for picture in all_pictures(dataclasses.replace(report, sites=sites)):
        assert len(picture.standalone()) < 1_500_000
