"""Read back what `optimize` told about a model: the `catonnx.json` beside it, checked value by value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from catonnx.errors import UsageError
from catonnx.graph.save import RESULT_MARK
from catonnx.planning.siteplan import Plan
from catonnx.report import FORMAT, Report
from catonnx.reporting.plaindata import BrokenError, converted, made, read_plain

_HINT = "name a folder that catonnx optimize wrote, or the file of its --report-json"

_MOST_DECIBELS = 1000
"""No ratio is larger: not even that of the largest float32 to the smallest."""

_FIGURES: Mapping[str, Any] = {"sqnr_db": float | None, "kl_nats": float | None, "top1_agreement": float | None}
_VERIFICATION: Mapping[str, Any] = {
    "transform_relative_l2": float,
    "float32_twin": bool,
    "deployed": dict[str, Any],
    "linears": int,
    "fused": int,
    "not_fused": tuple[str, ...],
    "remarks": tuple[str, ...],
}
_RECIPE: Mapping[str, Any] = {"scheme": str, "transform": str, "form": str, "rounding": str}
"""What every recipe says, by name; the rest may differ from version to version."""


def load_report(place: Path) -> Report:
    """Read a report.

    Args:
        place: A folder with `catonnx.json`, or such a file.

    Returns:
        The report, with an empty plan. Figures that its version did not tell are None.

    Raises:
        UsageError: if there is none, or it is broken or of another version.
    """
    try:
        path = place / RESULT_MARK if place.is_dir() else place
        found = path.is_file()
    except OSError:  # a name that no file may have
        path, found = place, False
    if not found:
        raise UsageError("there is no report", where=path, hint=_HINT)
    try:
        data = read_plain(path)
    except BrokenError as error:
        raise UsageError(f"the report is broken: {error}", where=path, hint=_HINT) from error
    if not isinstance(data, dict) or "format" not in data:
        raise UsageError("this is no report of catonnx", where=path, hint=_HINT)
    if data["format"] != FORMAT:
        versions = data.get("versions")
        by = f" of catonnx {versions.get('catonnx')}" if isinstance(versions, dict) else ""
        raise UsageError(
            f"the report{by} has format {data['format']!r}, and this catonnx reads {FORMAT}",
            where=path,
            hint="take the catonnx that made it, or optimize again",
        )
    try:
        return _report(data)
    except BrokenError as error:
        raise UsageError(f"the report is broken: {error}", where=path, hint=_HINT) from error


def _report(data: Mapping[str, Any]) -> Report:
    told = dict(data)
    steps = told.get("steps")
    told["steps"] = [list(step) for step in steps.items()] if isinstance(steps, dict) else steps
    report = made(Report, told, "", {"plan": Plan(())})
    _checked(report.recipe, _RECIPE, "recipe", _RECIPE)
    _checked(report.verification, _VERIFICATION, "verification")
    for name, row in report.verification.get("deployed", {}).items():
        where = f"verification.deployed.{name}"
        _checked(converted(row, dict[str, Any], where), _FIGURES, where, _FIGURES)
    for index, site in enumerate(report.sites):
        for field, value in vars(site).items():
            if isinstance(value, float) and abs(value) > _MOST_DECIBELS:
                raise BrokenError(f"sites[{index}].{field} is {value:g} dB")
    calibration = report.recipe.get("calibration")
    if not (calibration is None or isinstance(calibration, str)):
        converted(calibration, tuple[str, ...], "recipe.calibration")
    if report.sites and "transform_relative_l2" not in report.verification:
        raise BrokenError("verification.transform_relative_l2 is missing")
    return report


def _checked(data: Mapping[str, Any], hints: Mapping[str, Any], where: str, needed: Iterable[str] = ()) -> None:
    for name in needed:
        if name not in data:
            raise BrokenError(f"{where}.{name} is missing")
    for name in hints.keys() & data.keys():
        converted(data[name], hints[name], f"{where}.{name}")
