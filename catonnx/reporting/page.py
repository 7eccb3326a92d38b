"""One HTML page that shows a report: no network, no script, readable in the dark and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from catonnx.report import Report, SiteRow
from catonnx.reporting.markup import number, paragraph, percent, section, tiles
from catonnx.reporting.measured import Measured
from catonnx.reporting.pictures import spelled
from catonnx.reporting.sections import SECTIONS
from catonnx.reporting.svg import element, shown

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser that follows it loads nothing and runs nothing, whatever a model's names may hold."""


def page(report: Report, measured: Sequence[Measured] = ()) -> str:
    """Return the page of a report.

    Args:
        report: As it was read from JSON.
        measured: What `evaluate` or `compare` measured of this model and others.
    """
    style = resources.files("catonnx.reporting").joinpath("page.css").read_text(encoding="utf-8")
    parts = [(name, heading, content) for name, heading, make in SECTIONS for content in [make(report, measured)]]
    told = [(name, heading, content) for name, heading, content in parts if any(content)]
    links = "".join(element("a", heading, href=f"#{name}") for name, heading, _ in told)
    title = f"catonnx: {shown(report.out)}"
    head = element(
        "head",
        '<meta charset="utf-8"/>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        element("title", title),
        element("style", style),
    )
    body = element(
        "body",
        element("header", element("h1", shown(report.out)), element("p", _lead(report), class_="lead"),
                element("nav", links, aria_label="sections") if links else "", _tiles(report)),
        element("main", *(section(*each) for each in _spread(told))),
        element("footer", paragraph(f"Written by catonnx {shown(report.versions.get('catonnx', ''))} from its JSON "
                                    "report; every number stands there too.")),
    )  # fmt: skip
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


def _spread(parts: Sequence[tuple[str, str, list[str]]]) -> list[tuple[str, ...]]:
    return [(name, heading, *content) for name, heading, content in parts]


def _lead(report: Report) -> str:
    source = f"made from {element('code', shown(report.source))}"
    if report.unchanged:
        return f"a copy, {source}: {shown(report.unchanged)}"
    return f"{source}: {shown(_scheme(report.recipe), 400)}"


def _scheme(recipe: dict[str, Any]) -> str:
    if recipe["scheme"] == "float":
        return f"transform {recipe['transform']}, nothing rounded"
    group = recipe.get("group_size")
    shared = f"groups of {group}" if group else "one scale per output channel"
    bits = {
        "w4a16": "4-bit weights",
        "w4a8": "4-bit weights, 8-bit activations",
        "w4a4": "4-bit weights and activations",
    }
    told = bits.get(recipe["scheme"], str(recipe["scheme"]))
    return f"{told}, {shared}, transform {recipe['transform']}, rounding {recipe['rounding']}, form {recipe['form']}"


def _tiles(report: Report) -> str:
    before, after = report.size_before, report.size_after
    smaller = f"{before / after:.1f} \u00d7 smaller" if before > after > 0 else f"{spelled(before)} before"
    rows = [("size on disk", spelled(after), f"{smaller}, {spelled(before)} before" if before > after else smaller)]
    deployed = next(iter(report.verification.get("deployed", {}).items()), None)
    if deployed:
        name, figures = deployed
        if figures["kl_nats"] is not None:
            rows.append(("KL from the source", f"{figures['kl_nats']:.4f}", f"nats a token, {shown(name)}"))
        if figures["top1_agreement"] is not None:
            rows.append(("same top token", percent(figures["top1_agreement"], 1), "as the source"))
        if figures["sqnr_db"] is not None:
            rows.append(("SQNR of outputs", f"{number(figures['sqnr_db'], 1)} dB", "against the source"))
    old, new = _mean(report.sites, "sqnr_before"), _mean(report.sites, "sqnr_after")
    if old is not None and new is not None:
        rows.append(("SQNR of layers", f"{number(new - old, 1)} dB", f"{number(old, 1)} \u2192 {number(new, 1)}, mean"))
        sign = "+" if new > old else ""
        rows[-1] = ("SQNR of layers", f"{sign}{number(new - old, 1)} dB", rows[-1][2])
    if "fused" in report.verification:
        checked = report.verification
        rows.append(("linears fused", f"{checked['fused']} of {checked['linears']}", "in ONNX Runtime"))
    if report.steps:
        rows.append(
            ("time", f"{sum(seconds for _, seconds in report.steps):.0f} s", f"{spelled(report.peak_memory)} at most")
        )
    return tiles(rows)


def _mean(sites: Sequence[SiteRow], field: str) -> float | None:
    values = [value for row in sites for value in [getattr(row, field)] if value is not None]
    return sum(values) / len(values) if values else None
