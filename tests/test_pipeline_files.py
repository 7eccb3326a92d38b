"""`optimize` and files: models in one file or several, mapped, linked; what goes along; what OUT may replace."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import catonnx
from catonnx import Recipe
from catonnx.errors import OutputError
from catonnx.graph import load
from tests.small_models import (
    QUICK,
    catonnx_,
    externalize,
    first_sample,
    relative,
    run,
    session,
    snapshot,
    write_feeds,
    write_mlp,
)

RECIPE = Recipe(samples=2, seq_len=16)


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("model.onnx", "model.onnx_data")]


@pytest.fixture(scope="module")
def plain(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Return what is written for the model in one file."""
    out = tmp_path_factory.mktemp("plain") / "out"
    catonnx.optimize(tiny_llama, out, RECIPE)
    return _bytes(out)


@pytest.fixture
def source(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "source"))


def _beside(folder: Path) -> None:
    externalize(folder)


def _below(folder: Path) -> None:
    (folder / "data").mkdir()
    externalize(folder, "data/weights.bin")


def _roundabout(folder: Path) -> None:
    externalize(folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = f"./{entry.value}" if entry.key == "location" else entry.value
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def _named_like_ours(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        externalize(folder, f"{name}.onnx_data")
        (folder / "model.onnx").rename(folder / f"{name}.onnx")

    return change


def _two_names(folder: Path) -> None:
    externalize(folder)
    (folder / "model.onnx_data").rename(folder.parent / "weights")
    (folder / "model.onnx_data").hardlink_to(folder.parent / "weights")


def _hub_cache(folder: Path) -> None:
    """All files are links into a folder of blobs, as the cache of a Hugging Face hub has them."""
    externalize(folder)
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"{number:064x}")
        file.symlink_to(Path("..") / "blobs" / f"{number:064x}")


LAYOUTS = {
    "beside": _beside,
    "below": _below,
    "roundabout": _roundabout,
    "two names": _two_names,
    "hub cache": _hub_cache,
    **{f"called {name}": _named_like_ours(name) for name in ("source", "transformed", "calibrate")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_external_data_makes_no_difference(layout: str, source: Path, plain: list[bytes], tmp_path: Path) -> None:
    LAYOUTS[layout](source)
    before = snapshot(source)
    report = catonnx.optimize(source, tmp_path / "out", RECIPE)
    assert snapshot(source) == before
    assert _bytes(tmp_path / "out") == plain
    assert report.size_before > 700_000
    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    others = {"config.json", "generation_config.json", "tokenizer.json"}
    assert made == others | {"model.onnx", "model.onnx_data", "catonnx.json"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_large_inline_tensors_are_mapped(
    source: Path, plain: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_SPILL_BYTES", 0)
    (tmp_path / "work").mkdir()
    model = load.load(load.bring(load.find(source), tmp_path / "work"))
    tensors = [value.const_value for value in model.graph.initializers.values()]
    large = [tensor for tensor in tensors if tensor is not None and tensor.nbytes > 1024]
    assert len(large) > 20
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in large)
    catonnx.optimize(source, tmp_path / "out", RECIPE)
    assert _bytes(tmp_path / "out") == plain


@pytest.mark.parametrize("layout", ["beside", "two names", "hub cache"])
def test_large_inline_tensors_beside_external_data(
    layout: str, source: Path, plain: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_SPILL_BYTES", 0)
    whole = onnx.load(source / "model.onnx")
    LAYOUTS[layout](source)
    model = onnx.load(source / "model.onnx", load_external_data=False)
    for tensor, inline in list(zip(model.graph.initializer, whole.graph.initializer, strict=True))[::2]:
        tensor.CopyFrom(inline)
    (source / "model.onnx").write_bytes(model.SerializeToString())
    catonnx.optimize(source, tmp_path / "out", RECIPE)
    assert _bytes(tmp_path / "out") == plain


def test_a_file_in_place_of_a_folder_brings_nothing_else(source: Path, plain: list[bytes], tmp_path: Path) -> None:
    (source / "model.onnx").rename(source / "another.onnx")
    catonnx.optimize(source / "another.onnx", tmp_path / "out", RECIPE)
    assert _bytes(tmp_path / "out") == plain
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.onnx_data", "catonnx.json"}


def test_other_files_go_along_but_not_through_links_out_of_the_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("not yours")
    (source / "more" / "deep").mkdir(parents=True)
    (source / "more" / "deep" / "notes.md").write_text("notes")
    (source / "inside.md").symlink_to("more/deep/notes.md")
    (source / "key.txt").symlink_to(tmp_path / "secret" / "key.txt")
    (source / "secret").symlink_to(tmp_path / "secret")
    (source / "nowhere.txt").symlink_to("nothing")
    (source / "catonnx.json").write_text("of another run")
    os.mkfifo(source / "pipe")
    report = catonnx.optimize(source, tmp_path / "out", RECIPE)
    out = tmp_path / "out"
    assert (out / "more" / "deep" / "notes.md").read_text() == (out / "inside.md").read_text() == "notes"
    assert report.not_copied == ("key.txt",)
    assert not {"key.txt", "secret", "nowhere.txt", "pipe"} & {path.name for path in out.iterdir()}
    assert (out / "catonnx.json").read_text() != "of another run"


@pytest.fixture
def small(tmp_path: Path) -> tuple[object, ...]:
    """Return a command that optimizes a small model; OUT comes last."""
    model = write_mlp(tmp_path / "m" / "model.onnx")
    feeds = write_feeds(tmp_path / "m" / "feeds.npz", 16, 64)
    return "optimize", model, "--calibration", feeds, "--out"


def test_folders_above_out_are_made(small: tuple[object, ...], tmp_path: Path) -> None:
    assert catonnx_(*small, tmp_path / "a" / "b" / "out").exit_code == 0
    assert (tmp_path / "a" / "b" / "out" / "model.onnx").exists()


def test_force_replaces_the_whole_folder(small: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    (tmp_path / "out" / "catonnx.json").write_text("{}")
    assert catonnx_(*small, tmp_path / "out", "--force").exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.onnx_data", "catonnx.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"m", "out"}


def test_force_replaces_a_link_and_not_what_it_points_to(small: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thing.txt").write_text("thing")
    (tmp_path / "out").symlink_to("precious")
    assert catonnx_(*small, tmp_path / "out", "--force").exit_code == 0
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "precious" / "thing.txt").read_text() == "thing"
    assert {path.name for path in tmp_path.iterdir()} == {"m", "out", "precious"}


def test_names_of_all_sorts(small: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("out/", "with space", "ünïcode-名", "[brackets]", "a.onnx", "-dash"):
        result = catonnx_(*small[:-1], f"--out={name}", *QUICK)
        assert result.exit_code == 0, (name, result.output)
        assert (tmp_path / name / "model.onnx").exists()


def test_a_folder_with_one_model_of_another_name(tmp_path: Path) -> None:
    write_mlp(tmp_path / "m" / "encoder.onnx")
    feeds = write_feeds(tmp_path / "feeds.npz", 16, 64)
    catonnx.optimize(tmp_path / "m", tmp_path / "out", Recipe(calibration=str(feeds)))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.onnx_data", "catonnx.json"}
    assert np.load(feeds)["0/x"].shape == (16, 64)


@pytest.mark.parametrize("scheme", ["float", "w4a16"])
def test_weights_in_constant_nodes_with_data_of_their_own(
    scheme: Literal["float", "w4a16"], source: Path, tmp_path: Path
) -> None:
    model = onnx.load(source / "model.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [helper.make_node("Constant", [], [name], value=tensor) for name, tensor in tensors.items()]
    del model.graph.initializer[:]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    onnx.save(
        model,
        source / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=4096,
        convert_attribute=True,
    )
    catonnx.optimize(source, tmp_path / "out", dataclasses.replace(RECIPE, scheme=scheme))
    session(tmp_path / "out" / "model.onnx")
    assert not (tmp_path / "out" / "weights.bin").exists()


def test_data_called_like_our_copy_are_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    write_mlp(folder / "model.onnx")
    externalize(folder, "source.onnx")
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 64)
    catonnx.optimize(folder, tmp_path / "out", catonnx.Recipe(scheme="float", calibration=str(feeds)))
    sample = first_sample(feeds)
    assert relative(run(folder, sample)["y"], run(tmp_path / "out", sample)["y"]) < 1e-5


def test_a_place_that_is_none(tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in (tmp_path / "loop", Path("a\0b")):
        with pytest.raises(OutputError, match=r"no place for an output|exists|nothing can be written"):
            catonnx.optimize(model, place)
