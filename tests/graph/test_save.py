"""Writing: beside, whole or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from catonnx.errors import OutputError
from catonnx.graph import load
from catonnx.graph.edits import Names, float64_of, set_folded
from catonnx.graph.save import RESULT_MARK, copy_companions, staged, write_beside, write_model
from tests.graph.builder import Net, run

X = {"x": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)}


@pytest.fixture
def net() -> Net:
    net = Net(seed=1)
    net.output(net.op("MatMul", net.input("x", ["rows", 8]), net.normal(8, 64, hint="weight"), result="y"))
    return net


def test_large_tensors_go_to_one_file_beside_the_model_and_small_ones_stay(net: Net, tmp_path: Path) -> None:
    net.output(net.op("Mul", "y", net.constant(2.0), result="z"))
    model = net.model()
    write_model(model, tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx_data"]
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert [len(tensor.external_data) > 0 for tensor in proto.graph.initializer] == [True, False]
    np.testing.assert_array_equal(run(load.load(tmp_path / "model.onnx"), X)["y"], run(net.proto(), X)["y"])


@pytest.mark.parametrize(("before", "after"), [(8, 10), (10, 10), (11, 11), (14, 13)])
def test_the_ir_version_holds_int4_and_is_one_that_onnx_runtime_loads(
    net: Net, tmp_path: Path, before: int, after: int
) -> None:
    model = net.model()
    model.ir_version = before
    write_model(model, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx", load_external_data=False).ir_version == after


def test_pending_folds_are_written_and_stay_pending_in_memory(net: Net, tmp_path: Path) -> None:
    model = net.model()
    node, original = model.graph[0], float64_of(model.graph[0].inputs[1])  # type: ignore[arg-type]
    set_folded(model.graph, Names(model.graph), node, 1, lambda: original() * 3, (8, 64), ir.DataType.FLOAT, "three")
    pending = node.inputs[1].const_value  # type: ignore[union-attr]
    write_beside(model, tmp_path / "first.onnx")
    write_beside(model, tmp_path / "second.onnx")
    assert node.inputs[1].const_value is pending  # type: ignore[union-attr]
    expected = 3 * run(net.proto(), X)["y"]
    for name in ("first", "second"):
        np.testing.assert_allclose(run(load.load(tmp_path / f"{name}.onnx"), X)["y"], expected, rtol=1e-5)


def test_a_model_written_beside_its_data_refers_to_it_instead_of_copying_it(net: Net, tmp_path: Path) -> None:
    write_model(net.model(), tmp_path / "source.onnx")
    write_beside(load.load(tmp_path / "source.onnx"), tmp_path / "other.onnx")
    assert load.external_locations(load.read(tmp_path / "other.onnx")) == {"source.onnx_data"}
    assert not (tmp_path / "other.onnx_data").exists()


def test_a_folder_that_cannot_be_written_is_an_output_error(net: Net, tmp_path: Path) -> None:
    for write in (write_model, write_beside):
        with pytest.raises(OutputError, match="cannot be written"):
            write(net.model(), tmp_path / "nowhere" / "model.onnx")


def test_the_output_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staged(out, force=False) as stage:
        (stage / "file").write_text("content")
        assert not out.exists()
    assert (out / "file").read_text() == "content"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with contextlib.suppress(error), staged(tmp_path / "out", force=False) as stage:
        (stage / "file").write_text("content")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), staged(tmp_path / "out", force=False):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused_and_replaced_whole_with_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / RESULT_MARK).write_text("old")
    with pytest.raises(OutputError, match=r"exists.*--force"), staged(out, force=False):
        pytest.fail("the block must not run")
    with contextlib.suppress(ValueError), staged(out, force=True) as stage:
        (stage / "new").write_text("new")
        raise ValueError
    assert [path.name for path in out.iterdir()] == [RESULT_MARK]
    with staged(out, force=True) as stage:
        (stage / "new").write_text("new")
        assert (out / RESULT_MARK).exists()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_is_no_result_of_ours_is_not_replaced_with_force(tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    with staged(out, force=True) as stage:
        (stage / "mine").write_text("an empty folder may be replaced")
    with pytest.raises(OutputError, match="no result of catonnx"), staged(out, force=True):
        pytest.fail("the block must not run")
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_file_in_the_place_of_the_output_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(OutputError, match="not a folder"), staged(out, force=True):
        pytest.fail("the block must not run")
    assert out.read_text() == "mine"


def test_a_link_in_the_place_of_the_output_is_replaced_and_what_it_pointed_at_stays(tmp_path: Path) -> None:
    target, out = tmp_path / "target", tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("mine")
    out.symlink_to(target)
    with staged(out, force=True) as stage:
        (stage / "new").write_text("new")
    assert (target / "mine").read_text() == "mine"
    assert not out.is_symlink()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "target"]


def test_a_place_where_no_folder_can_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="nothing can be written"), staged(tmp_path / "file" / "out", force=False):
        pytest.fail("the block must not run")


def test_companions_go_along_but_not_the_model_and_nothing_is_overwritten(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for path in (folder / "sub" / "b.json", folder / "model.onnx", folder / "config.json", folder / "tokenizer.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("in")
    out.mkdir()
    (out / "config.json").write_text("out")
    (tmp_path / "secret").write_text("secret")
    (folder / "link.json").symlink_to(tmp_path / "secret")
    assert copy_companions(folder / "model.onnx", out, {"model.onnx"}) == ("link.json",)
    copied = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert copied == ["config.json", "sub/b.json", "tokenizer.json"]
    assert (out / "config.json").read_text() == "out"
    assert not (out / "model.onnx").exists()
