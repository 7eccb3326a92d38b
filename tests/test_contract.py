"""What toolchains rely on: exit codes, and the keys of the JSON report; and models that are handed on as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import catonnx
from catonnx import errors
from catonnx.errors import CatonnxError, NothingToOptimizeError
from catonnx.report import FORMAT
from tests.small_models import catonnx_, externalize, session, snapshot, write_feeds, write_mlp

README = Path(__file__).resolve().parent.parent / "README.md"

KEYS = {
    "format", "source", "out", "digest", "recipe", "unchanged", "sites", "left", "turned", "changed_caches",
    "not_copied", "verification", "steps", "size_before", "size_after", "peak_memory", "multiply_adds",
    "online_multiply_adds", "dampings", "calibration_rows", "versions", "genai", "narrowed",
}  # fmt: skip
SITE_KEYS = {
    "site", "linears", "shapes", "absorbed", "online", "why", "sqnr_before", "sqnr_after", "sqnr_weights",
    "sqnr_outputs", "bits", "activation", "bytes_before", "bytes_after", "concentration_before",
    "concentration_after", "alignment_before", "alignment_after",
}  # fmt: skip
CODES = {
    "UsageError": 2,
    "ModelError": 3,
    "NothingToOptimizeError": 4,
    "CalibrationError": 5,
    "OutputError": 6,
    "VerificationError": 7,
    "RuntimeUnavailableError": 8,
}


def test_keys_of_the_report_are_those_of_its_version(tmp_path: Path) -> None:
    model, feeds = write_mlp(tmp_path / "m" / "model.onnx"), write_feeds(tmp_path / "feeds.npz", 4, 64)
    catonnx.optimize(model, tmp_path / "out", catonnx.Recipe(calibration=str(feeds)))
    told = json.loads((tmp_path / "out" / "catonnx.json").read_text())
    assert FORMAT == told["format"] == 1  # a key that goes away or changes its meaning makes it 2
    assert set(told) == KEYS
    assert all(set(row) == SITE_KEYS for row in told["sites"])
    assert set(told["verification"]) == {
        "transform_relative_l2", "float32_twin", "deployed", "linears", "fused", "not_fused", "remarks",
    }  # fmt: skip
    assert told["unchanged"] == ""


def test_exit_codes_are_what_they_were_and_the_readme_lists_them() -> None:
    assert {
        kind.__name__: kind.exit_code for kind in CatonnxError.__subclasses__() if kind.__module__ == errors.__name__
    } == CODES
    listed = re.search(r"Exit codes: (.*?interrupted)", README.read_text(encoding="utf-8"), re.DOTALL)
    assert listed
    assert set(map(int, re.findall(r"\b\d+\b", listed[1]))) == {0, 1, *CODES.values(), 130}


def _without_linears(folder: Path) -> Path:
    """Return a folder whose model has nothing to optimize, its constants in a file of their own."""
    folder.mkdir()
    write_mlp(folder / "net.onnx", dtype="float64")

    (folder / "config.json").write_text("{}")
    return folder


def test_a_model_with_nothing_to_optimize_is_refused_unless_it_may_go_on_as_it_is(tmp_path: Path) -> None:
    source = _without_linears(tmp_path / "source")
    before = snapshot(source)
    refused = catonnx_("optimize", source, "-o", tmp_path / "out")
    assert refused.exit_code == NothingToOptimizeError.exit_code
    assert not (tmp_path / "out").exists()
    plan, report = tmp_path / "plan.npz", tmp_path / "report.json"
    options = ["--allow-unchanged", "--save-plan", plan, "--report-json", report]
    done = catonnx_("optimize", source, "-o", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    assert "no linear layer to optimize" in done.stdout
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["catonnx.json", "config.json", "model.onnx"]
    assert (out / "model.onnx").read_bytes() == (source / "net.onnx").read_bytes()
    told = json.loads(report.read_text())
    assert set(told) == KEYS
    assert told["unchanged"].startswith("no linear layer to optimize")
    assert told["sites"] == []
    assert len(told["left"]) == 3
    assert told["size_before"] == told["size_after"] == (out / "model.onnx").stat().st_size
    assert not plan.exists()
    assert snapshot(source) == before


def test_data_of_a_model_that_goes_on_as_it_is_keeps_its_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_mlp(source / "model.onnx", dtype="float64")
    externalize(source, "net.bin")
    catonnx.optimize(source, tmp_path / "out", allow_unchanged=True)
    for name in ("model.onnx", "net.bin"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_a_model_of_ours_goes_on_as_it_is(tmp_path: Path) -> None:
    model, feeds = write_mlp(tmp_path / "m" / "model.onnx"), write_feeds(tmp_path / "feeds.npz", 4, 64)
    catonnx.optimize(model, tmp_path / "out", catonnx.Recipe(calibration=str(feeds)))
    again = catonnx.optimize(tmp_path / "out", tmp_path / "again", allow_unchanged=True)
    assert "made this model already" in again.unchanged
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()


@pytest.mark.parametrize("allow", [False, True])
def test_permission_changes_nothing_where_there_is_something_to_do(tmp_path: Path, allow: bool) -> None:
    model, feeds = write_mlp(tmp_path / "m" / "model.onnx"), write_feeds(tmp_path / "feeds.npz", 4, 64)
    recipe = catonnx.Recipe(calibration=str(feeds))
    assert catonnx.optimize(model, tmp_path / "out", recipe, allow_unchanged=allow).sites


@pytest.mark.parametrize("taken", ["model.onnx", "catonnx.json"])
def test_data_with_a_name_that_is_taken_moves(taken: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_mlp(source / "net.onnx", dtype="float64")
    net = onnx.load(source / "net.onnx")
    (source / "net.onnx").unlink()
    onnx.save(net, source / "net.onnx", save_as_external_data=True, location=taken, size_threshold=0)
    catonnx.optimize(source / "net.onnx", tmp_path / "out", allow_unchanged=True)
    sample = {"x": np.ones((2, 64))}
    before, after = (session(tmp_path / file).run(None, sample) for file in ("source/net.onnx", "out/model.onnx"))
    np.testing.assert_array_equal(before[0], after[0])
