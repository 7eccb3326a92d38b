"""Models that cannot be optimized: each is refused in one line, with its code, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from catonnx.graph.sites import Site
from catonnx.graph.writers import Writer, fold
from catonnx.passes import absorb
from tests.refusals import assert_refused
from tests.small_models import QUICK, Edit, edited, externalize, set_weight, write_feeds, write_mlp

Capture = pytest.CaptureFixture[str]


def _no_file(folder: Path) -> Path:
    return folder / "nothing.onnx"


def _no_model(folder: Path) -> Path:
    (folder / "model.onnx").unlink()
    return folder


def _two_models(folder: Path) -> Path:
    (folder / "model.onnx").rename(folder / "encoder.onnx")
    shutil.copy(folder / "encoder.onnx", folder / "decoder.onnx")
    return folder


def _empty(folder: Path) -> Path:
    (folder / "model.onnx").write_bytes(b"")
    return folder


def _no_protobuf(folder: Path) -> Path:
    (folder / "model.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    return folder


def _text(folder: Path) -> Path:
    return folder / "config.json"


def _git_pointer(folder: Path) -> Path:
    (folder / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 859153\n")
    return folder


def _truncated(share: float) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        content = (folder / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(content[: int(share * len(content))])
        return folder

    return change


def _data_missing(folder: Path) -> Path:
    externalize(folder)
    (folder / "model.onnx_data").unlink()
    return folder


def _data_short(folder: Path) -> Path:
    externalize(folder)
    os.truncate(folder / "model.onnx_data", 300_000)
    return folder


def _data_at(location: str) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        externalize(folder)
        (folder / "model.onnx_data").rename(folder.parent / "outside")
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location.format(folder.parent)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        (folder / "link").symlink_to(folder.parent / "outside")
        return folder

    return change


FILES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "no file": ("there is no such model (", _no_file),
    "no model": ("the folder holds no model.onnx (.onnx files: none)", _no_model),
    "two models": ("(.onnx files: decoder.onnx, encoder.onnx)", _two_models),
    "empty": ("this is not an ONNX model: it holds no graph", _empty),
    "noise": ("this is not an ONNX model, or it is truncated", _no_protobuf),
    "text": ("this is not an ONNX model", _text),
    "git pointer": ("this is not an ONNX model", _git_pointer),
    "truncated at the start": ("or it is truncated", _truncated(0.0001)),
    "truncated": ("or it is truncated", _truncated(0.5)),
    "truncated at the end": ("or it is truncated", _truncated(0.9999)),
    "data missing": ("external data file 'model.onnx_data' is missing", _data_missing),
    "data short": ("external data file 'model.onnx_data' has 300000 bytes, the tensor needs", _data_short),
    "data above": ("external data '../outside' lies outside the model's folder", _data_at("../outside")),
    "data elsewhere": ("/outside' lies outside the model's folder", _data_at("{}/outside")),
    "data linked": ("external data 'link' is a link out of the model's folder", _data_at("link")),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_hold_no_sound_model(case: str, tiny_llama: Path, tmp_path: Path, capfd: Capture) -> None:
    said, change = FILES[case]
    model = change(Path(shutil.copytree(tiny_llama, tmp_path / "model")))
    line = assert_refused(capfd, 3, said, model, tmp_path / "out" / "below", *QUICK)
    assert str(tmp_path / "model") in line
    assert "; " in line


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path, capfd: Capture) -> None:
    model = write_mlp(tmp_path / "m" / "model.onnx")
    write_feeds(tmp_path / "feeds.npz", 8, 64)
    model.chmod(0)
    options = "--calibration", tmp_path / "feeds.npz"
    assert_refused(capfd, 3, "the model cannot be read: Permission denied", model, tmp_path / "out", *options)


def _custom(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    node.domain, node.op_type = "my.own", "Wave"
    model.opset_import.append(helper.make_opsetid("my.own", 1))


def _misspelled(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Sigmoidal"


def _opset(number: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = number

    return edit


def _no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def _ir_version(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def _with(number: float) -> Edit:
    def change(weight: np.ndarray) -> np.ndarray:
        changed = weight.copy()
        changed.flat[7] = number
        return changed

    return set_weight("w0", change)


def _hole(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nobody"


def _circle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "h1"


GRAPHS: dict[str, tuple[int, str, Edit]] = {
    "custom operator": (3, "ONNX Runtime does not know the operator my.own:Wave (", _custom),
    "misspelled operator": (3, "ONNX Runtime does not know the operator Sigmoidal", _misspelled),
    "opset 99": (3, "the model's opset is 99; ONNX Runtime runs opsets up to 26 (", _opset(99)),
    "opset 0": (3, "opset", _opset(0)),
    "no opset": (3, "the model does not say which opset its operators are of (", _no_opset),
    "IR version 99": (3, "the model has IR version 99, and this ONNX Runtime reads up to", _ir_version),
    "nan": (3, "the weight holds NaN or Inf (fc0); ", _with(np.nan)),
    "inf": (3, "the weight holds NaN or Inf (fc0); ", _with(np.inf)),
    "value that nobody makes": (3, "nothing makes the value 'nobody'", _hole),
    "circle": (3, "the graph is not sound", _circle),
    "no operators": (3, "it holds no graph", lambda model: model.ClearField("graph")),
}


@pytest.mark.parametrize("transform", ["cat", "none"])
@pytest.mark.parametrize("case", GRAPHS)
def test_graphs_that_are_not_sound(case: str, transform: str, tmp_path: Path, capfd: Capture) -> None:
    code, said, edit = GRAPHS[case]
    model = write_mlp(tmp_path / "m" / "model.onnx", edit=edit)
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 64)
    line = assert_refused(capfd, code, said, model, tmp_path / "out", "--calibration", feeds, "--transform", transform)
    assert "; " in line
    assert str(model) in line or "fc0" in line


def test_nan_elsewhere_is_met_in_calibration(tiny_llama: Path, tmp_path: Path, capfd: Capture) -> None:
    nan = set_weight("model.embed_tokens.weight", lambda weight: weight * np.float32(np.nan))
    model = edited(tiny_llama, tmp_path / "model", nan)
    assert_refused(capfd, 5, "the model's logits hold NaN or Inf", model, tmp_path / "out", *QUICK)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--include", "nothing*"], "not named by --include"),
        (["--exclude", "*"], "named by --exclude *"),
    ],
)
def test_nothing_to_optimize(options: list[str], reason: str, tiny_llama: Path, tmp_path: Path, capfd: Capture) -> None:
    line = assert_refused(capfd, 4, "no linear layer to optimize", tiny_llama, tmp_path / "out", *QUICK, *options)
    assert reason in line
    assert "`catonnx inspect` lists them" in line


def test_a_model_without_any_linear(tmp_path: Path, capfd: Capture) -> None:
    def forget(model: onnx.ModelProto) -> None:
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.append(helper.make_node("Relu", ["x"], ["y"], "act"))

    model = write_mlp(tmp_path / "m" / "model.onnx", edit=forget)
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 64)
    assert_refused(capfd, 4, "no linear layer to optimize; ", model, tmp_path / "out", "--calibration", feeds)


def test_a_model_that_is_not_deterministic(tmp_path: Path, capfd: Capture) -> None:
    def shake(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "still"
        model.graph.node.append(helper.make_node("RandomNormalLike", ["still"], ["noise"], "noise"))
        model.graph.node.append(helper.make_node("Add", ["still", "noise"], ["y"], "shake"))

    model = write_mlp(tmp_path / "m" / "model.onnx", edit=shake)
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 64)
    said = "the transformed model differs from the source"
    line = assert_refused(capfd, 7, said, model, tmp_path / "out", "--calibration", feeds)
    assert "behind the last site" in line


MIDDLE = "/model/layers.1/mlp/Mul_output_0"


def test_a_wrong_fold_is_found_and_its_site_named(
    tiny_llama: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(writer: Writer, *rest: Any) -> np.ndarray:
        planted = writer.node.name == "/model/layers.1/mlp/up_proj/MatMul"
        return fold(writer, *rest) * (1.01 if planted else 1)

    monkeypatch.setattr(absorb, "fold", wrong)
    said = f", allowed 1e-04 (first at site {MIDDLE}, 1.0e-02); catonnx is wrong here"
    assert_refused(capfd, 7, said, tiny_llama, tmp_path / "out", *QUICK)


def test_a_weight_that_is_not_compensated_shows_at_the_next_site(
    tiny_llama: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = absorb.undo_in_readers

    def forgets(graph: Any, names: Any, site: Site, transform: Any) -> None:
        if site.name != MIDDLE:
            right(graph, names, site, transform)

    monkeypatch.setattr(absorb, "undo_in_readers", forgets)
    said = "(first at site /model/layers.2/input_layernorm/Mul_1_output_0, "
    assert_refused(capfd, 7, said, tiny_llama, tmp_path / "out", *QUICK)
