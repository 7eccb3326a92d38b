"""A report comes back as it was written, or is refused with one line that says what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import catonnx
from catonnx.errors import UsageError
from catonnx.reporting.measured import Answers, Measured, load_measured
from catonnx.reporting.reportfile import load_report
from tests.small_models import write_feeds, write_mlp

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reportfile")
    model, feeds = write_mlp(folder / "m" / "model.onnx"), write_feeds(folder / "feeds.npz", 4, 64)
    catonnx.optimize(model, folder / "out", catonnx.Recipe(scheme="w4a8", calibration=str(feeds)))
    return folder / "out"


def test_what_was_written_comes_back(out: Path) -> None:
    told = json.loads((out / "catonnx.json").read_text())
    assert json.loads(json.dumps(load_report(out).to_json())) == told
    assert load_report(out / "catonnx.json").sites == load_report(out).sites


def test_what_was_not_told_is_not_known(out: Path, tmp_path: Path) -> None:
    told = json.loads((out / "catonnx.json").read_text())
    for site in told["sites"]:
        del site["alignment_before"]
    told["later"] = told["sites"][0]["later"] = 1  # of a version to come
    (tmp_path / "catonnx.json").write_text(json.dumps(told))
    assert {site.alignment_before for site in load_report(tmp_path).sites} == {None}


def delete(*path: str | int) -> Change:
    def change(data: dict[str, Any]) -> None:
        target: Any = data
        for step in path[:-1]:
            target = target[step]
        del target[path[-1]]

    return change


def put(value: Any, *path: str | int) -> Change:
    def change(data: dict[str, Any]) -> None:
        target: Any = data
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value

    return change


BROKEN: dict[str, tuple[Change, str]] = {
    "format 2": (put(2, "format"), r"the report of catonnx 0\.\d\.\d has format 2, and this catonnx reads 1"),
    "format 0": (put(0, "format"), "has format 0"),
    "no format": (delete("format"), "this is no report of catonnx"),
    "no sites": (delete("sites"), "sites is missing"),
    "sites": (put("many", "sites"), 'sites is "many", not a list'),
    "a site": (put(7, "sites", 1), r"sites\[1\] is 7, not an object"),
    "a number": (put("24", "sites", 0, "sqnr_before"), r'sites\[0\].sqnr_before is "24", not a number'),
    "a yes": (put(True, "sites", 0, "bits"), r"sites\[0\].bits is true, not a whole number"),
    "a shape": (put([1, 2, 3], "sites", 0, "shapes", 0), r"sites\[0\].shapes\[0\] is \[1, 2, 3\], not a list"),
    "no size": (delete("size_after"), "size_after is missing"),
    "a large number": (put(10**400, "size_after"), "size_after is 1000.* beyond all"),
    "a large rate": (put(10**400, "sites", 0, "sqnr_before"), "sqnr_before is 1000.* beyond all"),
    "null": (put(None, "size_after"), "size_after is null"),
    "recipe": (delete("recipe", "scheme"), r"recipe\.scheme is missing"),
    "steps": (put({"load": "long"}, "steps"), r'steps\[0\]\[1\] is "long"'),
    "verification": (put({}, "verification"), "verification.transform_relative_l2 is missing"),
    "deployed": (put({"as deployed": {}}, "verification", "deployed"), "deployed.as deployed.sqnr_db is missing"),
    "deployed too": (put({"as deployed": 1}, "verification", "deployed"), "deployed.as deployed is 1, not an object"),
    "remarks": (put([1], "verification", "remarks"), r"verification\.remarks\[0\] is 1, not a text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_report_is_refused(name: str, out: Path, tmp_path: Path) -> None:
    change, said = BROKEN[name]
    data = copy.deepcopy(json.loads((out / "catonnx.json").read_text()))
    change(data)
    (tmp_path / "catonnx.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=said) as caught:
        load_report(tmp_path)
    assert str(tmp_path / "catonnx.json") in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("field", ["alignment_after", "concentration_before", "sqnr_outputs", "sqnr_before"])
@pytest.mark.parametrize("value", [1e9, -100000.0])
def test_no_ratio_has_so_many_decibels(field: str, value: float, out: Path, tmp_path: Path) -> None:
    data = json.loads((out / "catonnx.json").read_text())
    data["sites"][1][field] = value
    (tmp_path / "catonnx.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=rf"sites\[1\].{field} is "):
        load_report(tmp_path)


def test_a_calibration_is_a_text_or_several(out: Path, tmp_path: Path) -> None:
    data = json.loads((out / "catonnx.json").read_text())
    data["recipe"]["calibration"] = 5
    (tmp_path / "catonnx.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"recipe\.calibration is 5"):
        load_report(tmp_path)


def test_a_number_beyond_all_is_no_number(out: Path, tmp_path: Path) -> None:
    text = (out / "catonnx.json").read_text()
    value = json.loads(text)["sites"][0]["sqnr_before"]
    (tmp_path / "catonnx.json").write_text(text.replace(f'"sqnr_before": {value}', '"sqnr_before": 1e999', 1))
    with pytest.raises(UsageError, match="sqnr_before is Infinity, not a number"):
        load_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the report is broken"),
        (b'{"format": 1', "the report is broken"),
        (b"\xff\xfe", "the report is broken"),
        (b"[1]", "this is no report"),
        (b'{"format": 1, "peak_memory": NaN}', "holds the number NaN"),
        (b"[" * 100_000, "the report is broken"),
    ],
)
def test_what_is_no_report_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "catonnx.json").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        load_report(tmp_path)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing", tmp_path / "report.json"):
        with pytest.raises(UsageError, match="there is no report"):
            load_report(place)


def test_figures_come_back(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    rows = [{"model": "a", "disk_bytes": 5, "perplexity": 3.5, "cosine": None}, {"model": "b", "disk_bytes": 6}]
    file.write_text(json.dumps({"rows": 4, "models": rows}))
    assert load_measured(file) == (Measured("a", 5, 3.5), Measured("b", 6))
    answer = {"task": "arc", "metric": "acc", "value": 0.5, "error": None, "samples": 8}
    file.write_text(json.dumps({"models": [{"model": "a", "tasks": [answer]}]}))
    assert load_measured(file) == (Measured("a", tasks=(Answers("arc", "acc", 0.5, None),)),)


@pytest.mark.parametrize("content", ["", "{}", '{"models": [{"model": 1}]}', '{"models": [{"disk_bytes": 1}]}'])
def test_what_is_no_figures_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    with pytest.raises(UsageError, match="there are no such figures"):
        load_measured(file)
    file.write_text(content)
    with pytest.raises(UsageError, match="these are no figures of catonnx"):
        load_measured(file)
