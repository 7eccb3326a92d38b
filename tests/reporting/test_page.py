"""The page: sound HTML that loads and runs nothing, whatever a model's names hold, and tells what the report does."""

from __future__ import annotations

import dataclasses
import html
import json
from pathlib import Path
from typing import Any

import pytest

import catonnx
from catonnx.report import Report
from catonnx.reporting.measured import Answers, Measured
from catonnx.reporting.page import page
from catonnx.reporting.reportfile import load_report
from tests.reporting.reading import Page, pictures_in
from tests.small_models import write_mlp

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src="https://example.invalid/x" onerror="alert(1)">',
    "'><svg onload=alert(1)>",
    "</title></style><style>@import url(https://example.invalid)</style>",
    "&lt;b&gt; &#60;b> <!-- ]]> ${1}",
    "\u202egnp.exe\u0000\u001b[31m\ud800",
    "n" * 100_000,
)


def replaced(value: Any, text: str) -> Any:
    """Return plain data with every text in it replaced, keys of free objects too."""
    if isinstance(value, str):
        return text
    if isinstance(value, list):
        return [replaced(item, text) for item in value]
    return {key: replaced(item, text) for key, item in value.items()} if isinstance(value, dict) else value


def test_the_page_is_sound_and_reaches_for_nothing_outside(report: Report) -> None:
    text = page(report)
    read = Page(text)
    assert read.reaches_outside == []
    assert "default-src 'none'" in text
    assert read.tags[:2] == ["html", "head"]
    assert len(pictures_in(text)) == 1 + 4 + 1 + 1 + 1  # sizes, four kinds and their legend, scatter, depth


def test_every_part_has_a_heading_and_every_picture_a_name(report: Report) -> None:
    text = page(report)
    read = Page(text)
    named = [value for _, name, value in read.attributes if name == "id"]
    assert len(named) == len(set(named))
    asked = [value for _, name, value in read.attributes if name == "aria-labelledby"]
    assert len(asked) >= 18
    assert {name for value in asked for name in value.split()} <= set(named)
    links = {value.removeprefix("#") for tag, name, value in read.attributes if (tag, name) == ("a", "href")}
    assert links <= set(named)
    wanted = {"done", "quality", "speed", "layers", "theory", "sensitivity", "plan", "skipped", "remarks", "run"}
    assert links == wanted
    for picture in pictures_in(text):
        assert picture.get("role") == "img"
        assert all((picture.find(name) is not None) for name in ("title", "desc"))


def test_the_page_tells_what_the_report_does(report: Report, told: dict[str, Any]) -> None:
    text = Page(page(report)).texts
    for value in (told["source"], told["digest"], told["versions"]["onnxruntime"], "4-bit weights and activations"):
        assert value in text
    deployed = told["verification"]["deployed"]["as deployed"]
    assert f"{deployed['kl_nats']:.4f}" in text
    assert f"{100 * deployed['top1_agreement']:.2f} %" in text
    for site in told["sites"]:
        assert all(name in text for name in site["linears"])
        for name in ("sqnr_before", "sqnr_after", "sqnr_outputs", "concentration_after", "alignment_after"):
            assert f"{site[name]:.2f}".replace("-", "\u2212") in text
    for node, _, reason in told["left"]:
        assert node in text
        assert reason in text
    for step in told["steps"]:
        assert step in text
    assert "8" in {str(site["bits"]) for site in told["sites"]}


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_from_models_do_nothing(name: str, told: dict[str, Any], tmp_path: Path) -> None:
    kept = {key: told[key] for key in ("format", "recipe")}
    free = {"versions": {name: name}, "dampings": {name: 0.5}, "unchanged": ""}
    steps = {name: 1.0}
    deployed = {name: next(iter(told["verification"]["deployed"].values()))}
    verification = told["verification"] | {"deployed": deployed, "remarks": [name], "not_fused": [name]}
    data = replaced(told, name) | kept | free | {"steps": steps, "verification": verification}
    data["recipe"] = kept["recipe"] | {"calibration": name, "include": [name], name: name}
    for key in ("changed_caches", "not_copied", "turned"):
        data[key] = [name, name]
    (tmp_path / "catonnx.json").write_text(json.dumps(data))
    report = load_report(tmp_path)
    text = page(report, [Measured(name, 1, 2.0, 0.1, 0.5, 10.0, 5.0)])
    read, plain = Page(text), Page(page(load_report_of(told, tmp_path)))
    assert read.reaches_outside == []
    assert set(read.tags) == set(plain.tags)
    assert {name for _, name, _ in read.attributes} == {name for _, name, _ in plain.attributes}
    assert not {"\u202e", "\x00", "\x1b", "\ud800"} & set(text)
    assert len(text) < 400_000  # nothing of 100,000 characters is shown as it is
    pictures_in(text)
    text.encode()


def load_report_of(told: dict[str, Any], folder: Path) -> Report:
    file = folder / "plain.json"
    file.write_text(json.dumps(told))
    return load_report(file)


def test_a_report_that_does_not_tell_concentration_says_so(told: dict[str, Any], tmp_path: Path) -> None:
    for site in told["sites"]:
        for key in [key for key in site if key.startswith(("concentration_", "alignment_"))]:
            del site[key]
    text = page(load_report_of(told, tmp_path))
    assert "an older catonnx made it" in text
    assert "Concentration against alignment" not in text
    Page(text)


def test_a_copy_says_why_it_is_one(tmp_path: Path) -> None:
    source = write_mlp(tmp_path / "m" / "model.onnx", dtype="float64")
    catonnx.optimize(source, tmp_path / "out", allow_unchanged=True)
    text = page(load_report(tmp_path / "out"))
    assert "no linear layer to optimize" in text
    assert Page(text).reaches_outside == []
    assert "SQNR" not in Page(text).texts


def test_transforms_alone_have_a_page(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = catonnx.Recipe(scheme="float", samples=2, seq_len=16)
    catonnx.optimize(tiny_llama, tmp_path / "out", recipe)
    text = page(load_report(tmp_path / "out"))
    assert "nothing rounded" in text
    Page(text)


def test_speed_is_shown_where_it_is_known(report: Report) -> None:
    answers = (Answers("arc<i>", "acc", 0.4375, 0.0125), Answers("read", "bits_per_byte", None, None))
    measured = [
        Measured("ours", 1_500_000, 22.914, 0.0123, 0.87, 465.2, 56.9, answers),
        Measured("theirs", tasks=answers[:1]),
    ]
    read = Page(page(report, measured))
    text = read.texts
    for part in ("22.914", "0.0123", "87.00 %", "465.2", "56.9", "1.5 MB", "theirs", "arc<i>", "0.4375 \u00b1 0.0125"):
        assert part in text
    assert "i" not in read.tags
    assert "Not measured here" not in text
    assert "Not measured here" in Page(page(report)).texts


def test_numbers_and_words_of_the_report_are_markup_nowhere(report: Report) -> None:
    sneaky = dataclasses.replace(report, turned=("<b>turned</b>",), not_copied=("<i>",))
    text = page(sneaky)
    assert html.escape("<b>turned</b>") in text
    assert "<b>" not in text
