"""What `tools.fuzz` found in `optimize` and `inspect`, each as small as it can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import catonnx
from catonnx import Recipe
from catonnx.errors import CalibrationError, ModelError
from catonnx.naming import printable
from models.net import Net
from tests.small_models import catonnx_, first_sample, relative, run, write_feeds, write_mlp


def _saved(net: Net, path: Path) -> Path:
    onnx.save(net.proto(), path)
    return path


def test_a_bias_is_corrected_between_two_linears_without_one(tmp_path: Path) -> None:
    """The value between them gets another name, and its site keeps its own."""
    net = Net(0)
    middle = net.op("MatMul", net.input("x", ["rows", 16]), net.normal(16, 24))
    net.output(net.op("MatMul", middle, net.normal(24, 8)))
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 16)
    recipe = Recipe(calibration=str(feeds), correct_bias=True, lm_head=True)
    report = catonnx.optimize(_saved(net, tmp_path / "model.onnx"), tmp_path / "out", recipe)
    assert [row.site for row in report.sites] == ["x", middle]
    nodes = onnx.load(tmp_path / "out" / "model.onnx").graph.node
    assert sum(node.name.endswith("/corrected") for node in nodes) == 2


@pytest.mark.parametrize("scheme", ["w4a8", "w4a4"])
def test_an_activation_of_one_number_a_row_is_rounded(scheme: str, tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx", (1, 8, 1, 4))
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 1)
    recipe = Recipe(calibration=str(feeds), scheme=scheme, lm_head=True)  # type: ignore[arg-type]
    report = catonnx.optimize(model, tmp_path / "out", recipe)
    assert report.sites[0].sqnr_before is not None


def _norm(kind: str) -> Net:
    """A norm in plain operators."""
    net = Net(0)
    value = net.op("MatMul", net.input("x", ["rows", 8]), net.normal(8, 8))
    if kind == "LayerNorm":
        value = net.op("Sub", value, net.op("ReduceMean", value, net.constant([-1]), keepdims=1))
    squares = net.op("ReduceMean", net.op("Pow", value, net.constant(2.0)), net.constant([-1]), keepdims=1)
    root = net.op("Sqrt", net.op("Add", squares, net.constant(1e-2, "epsilon")))
    value = net.op("Mul", net.op("Div", value, root), net.vector(8))
    if kind == "LayerNorm":
        value = net.op("Add", value, net.vector(8))
    net.output(net.op("MatMul", value, net.normal(8, 4), result="y"))
    return net


@pytest.mark.parametrize("kind", ["RMSNorm", "LayerNorm"])
def test_a_source_that_onnx_runtime_fuses_to_another_function(kind: str, tmp_path: Path) -> None:
    """It takes its own epsilon where that of the graph is an input with a default, as old exporters write it."""
    proto = _norm(kind).proto()
    name = next(tensor.name for tensor in proto.graph.initializer if tensor.name.startswith("epsilon"))
    proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    onnx.save(proto, tmp_path / "model.onnx")
    arrays = {f"{index}/x": np.random.default_rng(index).normal(size=(5, 8)) * 0.1 for index in range(2)}
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **{name: a.astype(np.float32) for name, a in arrays.items()})
    recipe = Recipe(calibration=str(tmp_path / "feeds.npz"), scheme="float", lm_head=True)
    report = catonnx.optimize(tmp_path / "model.onnx", tmp_path / "out", recipe)
    assert report.verification["transform_relative_l2"] < 1e-5
    feeds = first_sample(tmp_path / "feeds.npz")
    fused, ours = (run(path, feeds)["y"] for path in (tmp_path / "model.onnx", tmp_path / "out"))
    right = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 32)
    assert relative(ours, fused) < 1e-5 if right else relative(ours, fused) > 1e-3


def test_external_data_in_the_bodies_of_an_old_opset_is_found(tmp_path: Path) -> None:
    net = Net(0, opset=17)
    value = net.op("MatMul", net.input("x", ["rows", 16]), net.normal(16, 16))
    body = net.body()
    body.output(body.op("MatMul", value, body.normal(16, 16)))
    branches = {name: body.graph(name) for name in ("then_branch", "else_branch")}
    value = net.op("If", net.constant(np.array(True)), **branches)
    net.output(net.op("MatMul", value, net.normal(16, 16)))
    model = tmp_path / "model.onnx"
    onnx.save(net.proto(), model, save_as_external_data=True, location="weights", size_threshold=64)
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 16)
    report = catonnx.optimize(model, tmp_path / "out", Recipe(calibration=str(feeds), lm_head=True))
    assert report.verification["transform_relative_l2"] < 1e-5


def test_calibration_without_a_sequence_is_refused(tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx")
    feeds = write_feeds(tmp_path / "feeds.npz", 0, 64)
    with pytest.raises(CalibrationError, match=r"the array is empty.*sample 0, input x"):
        catonnx.optimize(model, tmp_path / "out", Recipe(calibration=str(feeds)))


EVIL = "a\x1b[31mred\x07\u202eevil\x9b2J"


def _evil(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = f"{EVIL}/{node.name}"


def test_names_from_models_move_no_cursor(tmp_path: Path) -> None:
    assert printable(EVIL) == r"a\x1b[31mred\x07\u202eevil\x9b2J"
    assert printable("plain 重み µ\n") == "plain 重み µ\n"
    model = write_mlp(tmp_path / "model.onnx", edit=_evil)
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 64)
    shown = catonnx_("inspect", model, "--calibration", feeds, "--exclude", "*fc1")
    assert shown.exit_code == 0, shown.output
    assert r"\x1b[31mred" in shown.stdout
    optimized = catonnx_("optimize", model, "-o", tmp_path / "out", "--calibration", feeds)
    assert optimized.exit_code == 0, optimized.output
    for text in (shown.stdout, shown.stderr, optimized.stdout, optimized.stderr):
        assert printable(text) == text


def test_errors_about_them_do_not_either(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.node[0].input[0] = EVIL + "\r\n" + "n" * 100_000

    model = write_mlp(tmp_path / "model.onnx", edit=edit)
    for options in ((), ("--verbose",)):
        refused = catonnx_("inspect", model, *options)
        assert refused.exit_code == 3
        line = refused.stderr.splitlines()[-1]
        assert line.startswith(r"error: nothing makes the value 'a\x1b[31m")
        assert "[...]" in line
        assert len(line) < 5000
        assert printable(refused.stderr) == refused.stderr


def test_an_attribute_whose_type_is_not_that_of_its_data_is_refused(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        attribute = model.graph.node[1].attribute.add(name="odd", ints=[1], ref_attr_name="none")
        attribute.type = onnx.AttributeProto.GRAPHS

    model = write_mlp(tmp_path / "model.onnx", edit=edit)
    with pytest.raises(ModelError, match="cannot load the model"):
        catonnx.optimize(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
