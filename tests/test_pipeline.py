"""`optimize` from end to end on the tiny models: OUT holds the same model, smaller, and says how it was made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import catonnx
from catonnx import Recipe, Report
from models.dressing import halve
from tests.small_models import (
    edited,
    first_sample,
    language_feeds,
    relative,
    run,
    signature,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("all_cores")

NAMES = ["tiny_llama", "tiny_gpt2", "tiny_bert", "tiny_vit", "tiny_llama_dynamo", "tiny_llama_opset23"]
LINEARS = {
    "tiny_llama": 21,
    "tiny_gpt2": 8,
    "tiny_bert": 12,
    "tiny_vit": 12,
    "tiny_llama_dynamo": 21,
    "tiny_llama_opset23": 21,
}
QUICK: dict[str, Any] = {"samples": 4, "seq_len": 48}


@dataclass(frozen=True)
class Done:
    """One run: where from, where to, with what, and what was reported."""

    source: Path
    out: Path
    recipe: Recipe
    report: Report
    before: dict[str, tuple[str, int]]

    def feeds(self) -> dict[str, np.ndarray]:
        """Return inputs that it was not calibrated on."""
        if (self.source / "feeds.npz").exists():
            return first_sample(self.source / "feeds.npz")
        return language_feeds(self.source)


Optimized = Callable[..., Done]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 60, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def optimized(request: pytest.FixtureRequest, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Optimized:
    """Return what optimizes a model by the name of its fixture; the same wish is fulfilled once."""
    kept: dict[str, Done] = {}

    def optimize(name: str, **wishes: Any) -> Done:
        key = repr((name, sorted(wishes.items())))
        if key not in kept:
            source: Path = request.getfixturevalue(name)
            feeds = source / "feeds.npz"
            given = (
                str(feeds) if feeds.exists() else "self" if (source / "generation_config.json").exists() else str(text)
            )
            recipe = Recipe(**{"calibration": given, **QUICK, **wishes})
            out, before = tmp_path_factory.mktemp("out") / "out", snapshot(source)
            kept[key] = Done(source, out, recipe, catonnx.optimize(source, out, recipe), before)
        return kept[key]

    return optimize


@pytest.mark.parametrize("name", NAMES)
def test_the_result_stands_in_for_the_source(name: str, optimized: Optimized) -> None:
    done = optimized(name)
    assert signature(done.out) == signature(done.source)
    assert all(np.isfinite(value).all() for value in run(done.out, done.feeds()).values())


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_is_rounded_and_fused(name: str, optimized: Optimized) -> None:
    done = optimized(name)
    checked = done.report.verification
    assert checked["linears"] == checked["fused"] == LINEARS[name]
    assert checked["not_fused"] == []
    proto = onnx.load(done.out / "model.onnx", load_external_data=False)
    packed = [tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.INT4]
    assert len(packed) == LINEARS[name]
    assert proto.ir_version == 10
    assert max(imported.version for imported in proto.opset_import if not imported.domain) in (21, 23)


@pytest.mark.parametrize("name", NAMES)
def test_the_source_stays_and_its_other_files_go_along(name: str, optimized: Optimized) -> None:
    done = optimized(name)
    assert snapshot(done.source) == done.before
    others = {path.name for path in done.source.iterdir()} - {"model.onnx"}
    assert {path.name for path in done.out.iterdir()} == others | {"model.onnx", "model.onnx_data", "catonnx.json"}
    assert all((done.out / other).read_bytes() == (done.source / other).read_bytes() for other in others)
    assert [path.name for path in done.out.parent.iterdir()] == ["out"]


def test_catonnx_json_tells_what_was_done(optimized: Optimized) -> None:
    done = optimized("tiny_llama")
    told = json.loads((done.out / "catonnx.json").read_text())
    assert told == json.loads(json.dumps(done.report.to_json()))
    assert told["format"] == 1
    assert told["recipe"] == json.loads(json.dumps(done.recipe.to_json()))
    assert told["digest"] == done.report.digest
    assert len(told["sites"]) == 12
    site = told["sites"][0]
    assert site["absorbed"] == ["scale"]
    assert site["online"] == ["hadamard 32"]
    assert site["sqnr_before"] + 10 < site["sqnr_weights"]  # measured: 2 dB and 21 dB
    assert site["bytes_after"] < site["bytes_before"] / 6
    assert told["left"] == [["/lm_head/MatMul", "MatMul", "output head; --lm-head includes it"]]
    assert told["not_copied"] == []
    assert told["verification"]["transform_relative_l2"] < 1e-4
    assert set(told["verification"]["deployed"]) == {"as deployed", "exact activations"}
    assert {"catonnx", "onnx-ir", "onnxruntime", "python"} <= set(told["versions"])
    assert {"load", "calibrate", "plan", "transform", "verify", "round", "save"} == set(told["steps"])
    assert told["size_after"] < told["size_before"] / 2
    assert told["calibration_rows"] == 4 * 48


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_vit"])
def test_the_same_wish_gives_the_same_bytes(name: str, optimized: Optimized, tmp_path: Path) -> None:
    done = optimized(name)
    catonnx.optimize(done.source, tmp_path / "again", done.recipe)
    for file in ("model.onnx", "model.onnx_data"):
        assert (tmp_path / "again" / file).read_bytes() == (done.out / file).read_bytes()


def test_another_seed_writes_another_text(optimized: Optimized) -> None:
    first, second = optimized("tiny_llama"), optimized("tiny_llama", seed=1)
    assert (first.out / "model.onnx_data").read_bytes() != (second.out / "model.onnx_data").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_scheme_float_is_the_same_function(name: str, optimized: Optimized) -> None:
    done = optimized(name, scheme="float")
    feeds, changed = done.feeds(), done.report.changed_caches
    before, after = run(done.source, feeds), run(done.out, feeds)
    errors = {key: relative(before[key], after[key]) for key in before if key not in changed}
    assert max(errors.values()) <= 1e-4, errors  # measured: 2e-6
    proto = onnx.load(done.out / "model.onnx", load_external_data=False)
    assert onnx.TensorProto.INT4 not in {tensor.data_type for tensor in proto.graph.initializer}
    assert done.report.verification.keys() == {"transform_relative_l2", "float32_twin"}


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_vit"])
def test_form_nbits_computes_what_qdq_does_with_exact_activations(name: str, optimized: Optimized) -> None:
    standard, direct = optimized(name), optimized(name, form="nbits")
    feeds = standard.feeds()
    before, after = run(standard.out, feeds, exact=True), run(direct.out, feeds)
    assert max(relative(before[key], after[key]) for key in before) <= 1e-5  # measured: 0 to 3e-7
    proto = onnx.load(direct.out / "model.onnx", load_external_data=False)
    assert sum(node.op_type == "MatMulNBits" for node in proto.graph.node) == LINEARS[name]


def test_caches_stay_as_they_were_where_that_is_asked(optimized: Optimized) -> None:
    changed, exact = optimized("tiny_llama", scheme="float"), optimized("tiny_llama", scheme="float", caches="exact")
    assert len(changed.report.changed_caches) == 3
    assert exact.report.changed_caches == ()
    feeds = language_feeds(exact.source, past=5)
    before, after = run(exact.source, feeds), run(exact.out, feeds)
    assert max(relative(before[key], after[key]) for key in before) <= 1e-4  # measured: 1e-6
    other = run(changed.out, changed.feeds())
    same = run(changed.source, changed.feeds())
    assert all(relative(same[key], other[key]) > 0.1 for key in changed.report.changed_caches)


def _figure(done: Done) -> float:
    """Return the noise of the rounded model: KL where there is one, else the share of the error in the outputs."""
    figures = done.report.verification["deployed"]["exact activations"]
    return float(10 ** (-figures["sqnr_db"] / 10) if figures["kl_nats"] is None else figures["kl_nats"])


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_bert", "tiny_vit"])
def test_cat_is_better_than_nothing_where_there_are_outliers(name: str, optimized: Optimized) -> None:
    assert _figure(optimized(name)) < _figure(optimized(name, transform="none"))


@pytest.mark.parametrize("transform", ["none", "scale", "hadamard", "cat"])
def test_every_transform_works(transform: str, optimized: Optimized) -> None:
    report = optimized("tiny_llama", transform=transform).report
    assert report.verification["fused"] == 21
    made = {factor for row in report.sites for factor in (*row.absorbed, *row.online)}
    expected = {
        "none": set(),
        "scale": {"scale"},
        "hadamard": {"hadamard 32"},
        "cat": {"scale", "blocks 16", "hadamard 32"},
    }
    assert made == expected[transform]


def test_online_none_leaves_nothing_but_what_is_absorbed(optimized: Optimized) -> None:
    done = optimized("tiny_llama", online="none")
    assert all(not row.online for row in done.report.sites)
    assert all(row.absorbed for row in done.report.sites)
    assert any("left out" in row.why for row in done.report.sites)
    before, after = (onnx.load(f / "model.onnx", load_external_data=False) for f in (done.source, done.out))
    count = [sum(node.op_type == "Reshape" for node in proto.graph.node) for proto in (before, after)]
    assert count[0] == count[1]


def test_lm_head_include_and_exclude_choose_linears(optimized: Optimized) -> None:
    assert optimized("tiny_llama", lm_head=True).report.verification["linears"] == 22
    chosen = optimized("tiny_llama", include=("*mlp*",), exclude=("*layers.1*",)).report
    assert chosen.verification["linears"] == 6
    reasons = {reason for _, _, reason in chosen.left}
    assert reasons == {"not named by --include", "named by --exclude *layers.1*"}


def test_a_half_precision_model_stays_one(tiny_llama: Path, tmp_path: Path) -> None:
    source = edited(tiny_llama, tmp_path / "half", halve)
    report = catonnx.optimize(source, tmp_path / "out", Recipe(**QUICK))
    assert signature(tmp_path / "out") == signature(source)
    assert {kind for values in signature(source) for _, kind, _ in values} == {"tensor(int64)", "tensor(float16)"}
    assert report.verification["fused"] == 21
    assert report.verification["transform_relative_l2"] < 2e-2  # measured: 3e-3
    before, after = (run(folder, language_feeds(source))["logits"] for folder in (source, tmp_path / "out"))
    assert relative(before, after) < 0.6
