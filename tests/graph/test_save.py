"""Writing: beside, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from catonnx.errors import OutputError
from catonnx.graph import load
from catonnx.graph.edits import Names, float64_of, set_folded
from catonnx.graph.external import external_locations
from catonnx.graph.save import copy_companions, write_beside, write_model
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
    assert external_locations(load.read(tmp_path / "other.onnx")) == {"source.onnx_data"}
    assert not (tmp_path / "other.onnx_data").exists()


def test_a_folder_that_cannot_be_written_is_an_output_error(net: Net, tmp_path: Path) -> None:
    for write in (write_model, write_beside):
        with pytest.raises(OutputError, match="cannot be written"):
            write(net.model(), tmp_path / "nowhere" / "model.onnx")


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
