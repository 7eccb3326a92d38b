"""`catonnx report` and `--report-html`: files where they were asked for, or one line and a code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from catonnx.reporting.page import page
from catonnx.reporting.pictures import all_pictures
from catonnx.reporting.reportfile import load_report
from tests.small_models import QUICK, catonnx_, snapshot, write_feeds, write_mlp


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a result `out`, and the page and the report that optimize wrote beside it."""
    folder = tmp_path_factory.mktemp("command")
    model, feeds = write_mlp(folder / "m" / "model.onnx"), write_feeds(folder / "feeds.npz", 4, 64)
    places = ("--report-html", folder / "page.html", "--report-json", folder / "report.json")
    result = catonnx_("optimize", model, "-o", folder / "out", "--calibration", feeds, *places)
    assert result.exit_code == 0, result.output
    return folder


def test_optimize_writes_the_page_of_its_report(made: Path) -> None:
    assert (made / "page.html").read_text(encoding="utf-8") == page(load_report(made / "out"))


def test_report_writes_the_same_page_and_shows_the_same_tables(made: Path, tmp_path: Path) -> None:
    result = catonnx_("report", made / "out")
    assert result.exit_code == 0, result.output
    written = made / "out" / "catonnx.html"
    assert written.read_bytes() == (made / "page.html").read_bytes()
    assert str(written) in result.stdout.replace("\n", "").replace(" ", "")
    assert "relative L2" in result.stdout
    written.unlink()
    quiet = catonnx_("report", made / "report.json", "-q", "--html", tmp_path / "own.html")
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert (tmp_path / "own.html").read_bytes() == (made / "page.html").read_bytes()


def test_pictures_are_files_of_their_own(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def svg2png(*, bytestring: bytes, scale: float) -> bytes:
        asked.append(bytestring)
        return b"\x89PNG %d" % scale

    monkeypatch.setitem(sys.modules, "cairosvg", SimpleNamespace(svg2png=svg2png))
    result = catonnx_("report", made / "out", "--pictures", tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    wanted = {picture.name: picture.standalone().encode() for picture in all_pictures(load_report(made / "out"))}
    assert {"sizes", "scatter", "depth", "sqnr"} == wanted.keys()
    files = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert {name.removesuffix(".svg"): text for name, text in files.items() if name.endswith(".svg")} == wanted
    assert {name.removesuffix(".png") for name in files if name.endswith(".png")} == wanted.keys()
    assert sorted(asked) == sorted(wanted.values())
    assert not (made / "out" / "catonnx.html").exists()


def test_png_is_what_the_library_makes_of_them(made: Path, tmp_path: Path) -> None:
    try:
        import cairosvg  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"cairosvg does not load: {error}")
    result = catonnx_("report", made / "out", "-q", "--pictures", tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    content = (tmp_path / "pictures" / "scatter.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width = next(picture.width for picture in all_pictures(load_report(made / "out")) if picture.name == "scatter")
    assert int.from_bytes(content[16:20], "big") == 3 * width


def test_png_without_the_library_is_refused_and_svg_is_not(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    refused = catonnx_("report", made / "out", "--pictures", tmp_path / "pictures")
    assert refused.exit_code == 8
    assert "catonnx[pictures]" in refused.stderr
    assert "--no-png" in refused.stderr
    assert not any(tmp_path.iterdir())
    done = catonnx_("report", made / "out", "--pictures", tmp_path / "pictures", "--no-png")
    assert done.exit_code == 0, done.output
    assert {path.suffix for path in (tmp_path / "pictures").iterdir()} == {".svg"}


def test_figures_stand_on_the_page(made: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps({"models": [{"model": "ours", "disk_bytes": 9, "perplexity": 12.345}]}))
    result = catonnx_("report", made / "out", "-q", "--html", tmp_path / "page.html", "--figures", figures)
    assert result.exit_code == 0, result.output
    assert "12.345" in (tmp_path / "page.html").read_text(encoding="utf-8")


FAILURES = {
    "no report": (2, "there is no report", ("report", "{tmp}")),
    "no folder": (2, "there is no report", ("report", "{tmp}/nothing")),
    "another file": (2, "this is no report", ("report", "{made}/m/config.json")),
    "a model": (2, "the report is broken", ("report", "{made}/out/model.onnx")),
    "no place": (6, "the folder does not exist", ("report", "{made}/out", "--html", "{tmp}/a/b.html")),
    "a folder": (6, "this is a folder", ("report", "{made}/out", "--html", "{tmp}")),
    "pictures nowhere": (6, "cannot be made", ("report", "{made}/out", "--no-png", "--pictures", "{tmp}/a/b")),
    "pictures in a file": (6, "cannot be made", ("report", "{made}/out", "--no-png", "--pictures", "{made}/page.html")),
    "no figures": (2, "no such figures", ("report", "{made}/out", "--figures", "{tmp}/f.json")),
    "optimize nowhere": (
        6, "does not exist", ("optimize", "{made}/m/model.onnx", "-o", "{tmp}/o", "--report-html", "{tmp}/a/b")
    ),
    "into the source": (
        6, "into the model", ("optimize", "{made}/m", "-o", "{tmp}/o", "--report-html", "{made}/m/page.html")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_failures_end_with_their_code_and_leave_nothing(name: str, made: Path, tmp_path: Path) -> None:
    code, said, command = FAILURES[name]
    (made / "m" / "config.json").write_text("[]")
    before = snapshot(made)
    result = catonnx_(*(part.format(made=made, tmp=tmp_path) for part in command))
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert not result.stdout
    assert not any(tmp_path.iterdir())
    assert snapshot(made) == before


def test_a_report_that_is_cut_off_leaves_the_old_page(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    place.write_text("old")
    (tmp_path / "report.json").write_text((made / "report.json").read_text()[:-100])
    assert catonnx_("report", tmp_path / "report.json", "--html", place).exit_code == 2
    assert place.read_text() == "old"


def test_quick_models_have_reports_too(tiny_gpt2: Path, tmp_path: Path) -> None:
    result = catonnx_("optimize", tiny_gpt2, "-o", tmp_path / "out", "-q", *QUICK, "--report-html", tmp_path / "p.html")
    assert result.exit_code == 0, result.output
    assert "attn/c_attn" in (tmp_path / "p.html").read_text(encoding="utf-8")
