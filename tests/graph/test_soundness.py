"""Files that claim to be models: what they may not hold is refused before anything is built from it."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from catonnx.errors import ModelError
from catonnx.graph.load import load, read
from catonnx.graph.soundness import MOST_NODES
from models.net import Net

Edit = Callable[[onnx.ModelProto], None]


def _model() -> onnx.ModelProto:
    net = Net(0)
    x = net.input("x", ["rows", 8])
    net.output(net.op("MatMul", x, net.normal(8, 4, hint="weight"), result="y"))
    return net.proto()


def _read(folder: Path, edit: Edit) -> None:
    model = _model()
    edit(model)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    read(path)


def _dims(*dims: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = dims

    return edit


def _raw(change: Callable[[bytes], bytes]) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.raw_data = change(tensor.raw_data)

    return edit


def _type(number: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_type = number

    return edit


def _in_a_body(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=[2**60])
    node = helper.make_node("Identity", ["inner"], ["out"])
    body = helper.make_graph([node], "body", [], [helper.make_empty_tensor_value_info("out")], [tensor])
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body))


def _as_attribute(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=[2**31, 2**31])
    model.graph.node.append(helper.make_node("Constant", [], ["z"], value=tensor))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_dims(-8, -4), r"impossible shape \[-8, -4\]"),
        (_dims(2**60), r"impossible shape \[1152921504606846976\]"),
        (_dims(2**32, 2**32), "impossible shape"),
        (_dims(2**63 - 1, 2**63 - 1), "impossible shape"),
        (_dims(2**40), "needs 4398046511104 bytes and holds 128"),
        (_dims(8, 5), "needs 160 bytes and holds 128"),
        (_raw(lambda raw: raw[:-1]), "needs 128 bytes and holds 127"),
        (_raw(lambda raw: raw + b"\0"), "needs 128 bytes and holds 129"),
        (_raw(lambda _: b""), "holds 0"),
        (_type(99), "unknown type 99"),
        (_type(0), "unknown type 0"),
        (_type(TensorProto.STRING), "needs 32 numbers and holds 0"),
        (_in_a_body, "impossible shape"),
        (_as_attribute, "impossible shape"),
    ],
)
def test_tensors_that_do_not_hold_what_they_claim(edit: Edit, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        _read(tmp_path, edit)
    assert "tensor '" in str(caught.value)


@pytest.mark.parametrize(("text", "field"), [("node-name", "NodeProto.name"), ("a-value", "NodeProto.output")])
def test_text_that_is_not_utf8(text: str, field: str, tmp_path: Path) -> None:
    model = _model()
    model.graph.node[0].name = "node-name"
    model.graph.node[0].output[0] = "a-value"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(text.encode(), text.replace("-", "\x80").encode("latin-1")))
    with pytest.raises(ModelError, match=rf"onnx\.{field} b'\w+\\x80\w+' is not UTF-8"):
        read(path)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32),
        np.arange(6, dtype=np.float64),
        np.arange(6, dtype=np.float16),
        np.arange(6, dtype=np.int8),
        np.arange(6, dtype=np.uint32),
        np.arange(6, dtype=np.int64),
        np.arange(6) > 2,
        np.arange(6) * 1j,
        np.zeros((0, 3), np.float32),
    ],
    ids=lambda array: str(array.dtype),
)
@pytest.mark.parametrize("raw", [True, False])
def test_tensors_in_every_spelling_are_read(array: np.ndarray, raw: bool, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        tensor = numpy_helper.from_array(array, "more")
        if not raw:
            values = array.view(np.uint16) if array.dtype == np.float16 else array
            tensor = helper.make_tensor("more", tensor.data_type, array.shape, values.flatten().tolist())
        model.graph.initializer.append(tensor)

    _read(tmp_path, edit)


@pytest.mark.parametrize("raw", [True, False])
def test_packed_tensors_are_read(raw: bool, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        packed = TensorProto(name="more", data_type=TensorProto.INT4, dims=[5])
        if raw:
            packed.raw_data = bytes(3)
        else:
            packed.int32_data.extend([0] * 3)
        texts = TensorProto(name="text", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"b"])
        model.graph.initializer.extend([packed, texts])

    _read(tmp_path, edit)


def _function(model: onnx.ModelProto, name: str, *nodes: onnx.NodeProto) -> None:
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    model.functions.append(helper.make_function("local", name, ["a"], ["b"], nodes, imports))


def _call(model: onnx.ModelProto, name: str) -> None:
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.append(helper.make_node(name, ["y"], ["z"], domain="local"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))


def _calls(*names: str) -> Edit:
    """Functions that each call the next one, the last one the first."""

    def edit(model: onnx.ModelProto) -> None:
        for index, name in enumerate(names):
            callee = names[(index + 1) % len(names)]
            _function(model, name, helper.make_node(callee, ["a"], ["b"], domain="local"))
        _call(model, names[0])

    return edit


def _doubling(depth: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for level in range(depth):
            callee, domain = ("Relu", "") if level == depth - 1 else (f"Level{level + 1}", "local")
            nodes = [helper.make_node(callee, [a], [b], domain=domain) for a, b in (("a", "m"), ("m", "b"))]
            _function(model, f"Level{level}", *nodes)
        _call(model, "Level0")

    return edit


def _unknown(model: onnx.ModelProto) -> None:
    _function(model, "Norm", helper.make_node("SimplifiedLayerNormalization", ["a", "a"], ["b"]))
    _call(model, "Norm")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_calls("One"), "the function 'One' calls itself"),
        (_calls("One", "Two", "Three"), "calls itself"),
        (_doubling(21), rf"is 2\.1e\+06 nodes with its functions written out, and {MOST_NODES} is the most"),
        (_doubling(200), "is the most"),
        (_unknown, "uses the operator 'SimplifiedLayerNormalization', which ONNX does not have"),
    ],
)
def test_functions_without_end(edit: Edit, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        _read(tmp_path, edit)


def test_functions_that_end_are_put_into_the_graph(tmp_path: Path) -> None:
    model = _model()
    _doubling(5)(model)
    onnx.save(model, tmp_path / "model.onnx")
    assert sum(node.op_type == "Relu" for node in load(tmp_path / "model.onnx").graph) == 32


def test_bodies_in_bodies_without_end(tmp_path: Path) -> None:
    """Written as bytes: no library builds such a message."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2, *length, size]) + content

    graph = b""
    for _ in range(5000):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    (tmp_path / "model.onnx").write_bytes(_model().SerializeToString() + field(7, graph))
    with pytest.raises(ModelError, match="this is not an ONNX model, or it is truncated"):
        read(tmp_path / "model.onnx")


def test_external_data_in_a_function_stays_inside_too(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        tensor = TensorProto(name="outer", data_type=TensorProto.FLOAT, dims=[4])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret.bin")
        nodes = [helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("Add", ["a", "c"], ["b"])]
        _function(model, "Reads", *nodes)
        _call(model, "Reads")

    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="lies outside the model's folder"):
        _read(tmp_path / "model", edit)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are enforced there")
def test_a_claim_allocates_nothing(tmp_path: Path) -> None:
    """A tensor of 2^40 bytes in a process that may have 4 GB."""
    model = _model()
    _dims(2**38)(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    script = "import sys; from catonnx.commands.app import app; app(['inspect', sys.argv[1]])"
    limit = 4 << 30
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.onnx")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert run.returncode == 3, run.stderr
    assert "needs 1099511627776 bytes and holds 128" in run.stderr
