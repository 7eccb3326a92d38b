"""Reading: what is no sound model is refused by name, what is one comes out in the one form of the passes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from catonnx.errors import ModelError
from catonnx.graph import load
from catonnx.graph.external import external_locations
from tests.graph.builder import Net, relative_error, run

X = {"x": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)}


def small(opset: int = 21) -> Net:
    net = Net(seed=1, opset=opset)
    net.output(
        net.op("MatMul", net.op("Relu", net.input("x", ["rows", 8])), net.normal(8, 64, hint="weight"), result="y")
    )
    return net


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(small().proto(), path)
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weight lies in `model.onnx_data`, in a folder of its own."""
    path = tmp_path / "folder" / "model.onnx"
    path.parent.mkdir()
    onnx.save(small().proto(), path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    return path


def relocated(path: Path, **entries: str) -> Path:
    """Change the external-data entries of the only weight."""
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_model_is_found_by_its_file_or_its_folder(external: Path) -> None:
    by_file, by_folder = load.find(external), load.find(external.parent)
    assert (by_file.path, by_file.folder) == (external, None)
    assert (by_folder.path, by_folder.folder) == (external, external.parent)
    assert by_file.digest == by_folder.digest


def test_the_digest_changes_with_the_model_and_with_its_data(external: Path) -> None:
    before = load.find(external).digest
    data = external.parent / "model.onnx_data"
    data.write_bytes(data.read_bytes() + b"\0")
    longer = load.find(external).digest
    relocated(external, offset="0")
    assert len({before, longer, load.find(external.with_name("model.onnx")).digest}) >= 2


def test_a_folder_with_one_other_model_is_fine_and_with_none_or_two_is_not(model: Path) -> None:
    single = model.rename(model.with_name("decoder.onnx"))
    assert load.find(single.parent).path == single
    shutil.copy(single, single.with_name("encoder.onnx"))
    with pytest.raises(ModelError, match=r"no model\.onnx .*decoder\.onnx, encoder\.onnx.*name the file"):
        load.find(single.parent)
    (single.parent / "empty").mkdir()
    with pytest.raises(ModelError, match="none"):
        load.find(single.parent / "empty")


def test_a_missing_file_and_a_folder_called_like_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        load.find(tmp_path / "nowhere.onnx")
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        load.find(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"this is no model\n" * 9, b"{}", b"\x08\x0a"])
@pytest.mark.parametrize("suffix", [".onnx", ".json", ".txt"])
def test_what_is_no_onnx_model_is_refused_whatever_its_name(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX model"):
        load.load(path)


def test_a_truncated_model_is_refused_or_sound_wherever_it_was_cut(model: Path) -> None:
    data = model.read_bytes()
    refused = 0
    for end in range(0, len(data), 7):
        model.write_bytes(data[:end])
        try:
            run(load.load(model), X)
        except ModelError:
            refused += 1
    # All cuts but those behind the graph, in the few bytes of the opset.
    assert refused >= len(range(0, len(data), 7)) - 2


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda g: g.node[1].input.__setitem__(0, "gone"), "nothing makes the value 'gone'"),
        (lambda g: setattr(g.output[0], "name", "lost"), "nothing makes the value 'lost'"),
        (lambda g: g.node[0].input.__setitem__(0, "y"), "cycle"),
        (lambda g: g.node[0].output.__setitem__(0, "y"), "redeclared"),
        (lambda g: setattr(g.initializer[0], "data_type", 77), "unknown type 77"),
    ],
)
def test_an_unsound_graph_is_refused(model: Path, break_it: Callable[[onnx.GraphProto], object], message: str) -> None:
    proto = small().proto()
    break_it(proto.graph)
    onnx.save(proto, model)
    with pytest.raises(ModelError, match=message):
        load.load(model)


@pytest.mark.parametrize("opset", [27, 28, 99])
def test_an_opset_that_onnx_runtime_does_not_run_is_refused(model: Path, opset: int) -> None:
    onnx.save(small(opset).proto(), model)
    with pytest.raises(ModelError, match=f"opset is {opset}"):
        load.load(model)


def test_a_model_without_an_opset_is_refused(model: Path) -> None:
    proto = small().proto()
    del proto.opset_import[:]
    onnx.save(proto, model)
    with pytest.raises(ModelError, match="opset"):
        load.load(model)


def test_an_old_opset_is_converted_and_computes_the_same(model: Path) -> None:
    net = Net(opset=13)
    x = net.input("x", ["rows", 8])
    mean = net.op("ReduceMean", net.op("Mul", x, x), axes=[-1], keepdims=1)
    parts = net.ops("Split", net.op("Div", x, net.op("Sqrt", mean)), results=["a", "b"], axis=-1)
    net.output(net.op("MatMul", net.op("Mul", *parts), net.normal(4, 4), result="y"))
    onnx.save(net.proto(), model)
    loaded = load.load(model)
    assert loaded.opset_imports[""] == 21
    # Measured 0: the operators are the same, only spelled anew.
    assert relative_error(run(net.proto(), X)["y"], run(loaded, X)["y"]) < 1e-6


@pytest.mark.parametrize("opset", [21, 22, 23])
def test_a_new_opset_stays(model: Path, opset: int) -> None:
    onnx.save(small(opset).proto(), model)
    assert load.load(model).opset_imports[""] == opset


def test_what_is_loaded_is_sorted_named_inlined_and_free_of_what_nobody_uses(model: Path) -> None:
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["t", "w"], ["y"]),
            helper.make_node("Twice", ["x"], ["t"], domain="local"),
            helper.make_node("Relu", ["x"], ["unused"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 8]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [weight],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10), model)
    loaded = load.load(model)
    assert [node.op_type for node in loaded.graph] == ["Add", "MatMul"]
    assert len({node.name for node in loaded.graph} - {None, ""}) == 2
    assert [value.name for value in loaded.graph.inputs] == ["x"]
    np.testing.assert_array_equal(run(loaded, X)["y"], 2 * X["x"])


def test_external_data_is_mapped_and_read(external: Path) -> None:
    expected = run(small().proto(), X)["y"]
    np.testing.assert_array_equal(run(load.load(external), X)["y"], expected)
    assert external_locations(load.read(external)) == {"model.onnx_data"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "elsewhere"}, "'elsewhere' is missing"),
        ({"location": "../model.onnx_data"}, "outside the model's folder"),
        ({"location": "sub/../../model.onnx_data"}, "outside the model's folder"),
        ({"location": "/etc/hostname"}, "outside the model's folder"),
        ({"offset": "4096"}, "truncated"),
        ({"length": "4"}, "claims 4 bytes for a tensor of 2048"),
        ({"offset": "-8"}, "not sound|truncated|bytes"),
    ],
)
def test_external_data_that_cannot_be_right_is_refused(external: Path, entries: dict[str, str], message: str) -> None:
    (external.parent.parent / "model.onnx_data").write_bytes(b"\0" * 4096)
    relocated(external, **entries)
    with pytest.raises(ModelError, match=message):
        load.load(external)


def test_external_data_that_is_too_short_is_refused(external: Path) -> None:
    data = external.parent / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"has 2047 bytes.*truncated; copy it again"):
        load.load(external)


def test_a_link_out_of_the_folder_is_refused(external: Path) -> None:
    data = external.parent / "model.onnx_data"
    outside = data.rename(external.parent.parent / "secret")
    data.symlink_to(outside)
    with pytest.raises(ModelError, match="a link out of the model's folder"):
        load.load(external)


def test_the_links_of_a_hugging_face_cache_work(external: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("model.onnx", "model.onnx_data")):
        shutil.move(external.parent / name, blobs / str(number))
        (snapshot / name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    work = tmp_path / "work"
    work.mkdir()
    copy = load.bring(load.find(snapshot), work)
    np.testing.assert_array_equal(run(load.load(copy), X)["y"], run(small().proto(), X)["y"])
    assert not copy.is_symlink()


def test_bringing_a_model_leaves_the_source_as_it_is(external: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in external.parent.iterdir()}
    work = tmp_path / "work"
    work.mkdir()
    copy = load.bring(load.find(external.parent), work)
    assert sorted(path.name for path in work.iterdir()) == ["model.onnx_data", "source.onnx"]
    np.testing.assert_array_equal(run(load.load(copy), X)["y"], run(small().proto(), X)["y"])
    assert {path.name: path.read_bytes() for path in external.parent.iterdir()} == before


def test_large_inline_tensors_are_moved_to_a_file_that_can_be_mapped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_SPILL_BYTES", 1000)
    work = tmp_path / "work"
    work.mkdir()
    copy = load.bring(load.find(model), work)
    assert external_locations(load.read(copy)) == {"source.onnx_data"}
    np.testing.assert_array_equal(run(load.load(copy), X)["y"], run(small().proto(), X)["y"])
