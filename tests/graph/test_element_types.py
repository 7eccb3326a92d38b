"""Element types are those that ONNX Runtime finds, in models of every kind and however an operator tells them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from catonnx.graph import load
from catonnx.graph.element_types import element_types, signature
from models import dialects
from tests.graph.builder import Net

FILES = (
    "tiny-llama tiny-llama-dynamo tiny-llama-opset23 tiny-gpt2 tiny-bert tiny-vit tiny-gemma3 tiny-qwen3-moe "
    "tiny-gpt-oss tiny-mamba tiny-clip tiny-bert-ort tiny-gpt2-ort tiny-vit-ort tiny-t5/decoder_model "
    "tiny-whisper/decoder_model_merged"
).split()


FLOAT, HALF, INT64, UINT8 = (
    ir.DataType(kind) for kind in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.UINT8)
)

KINDS = {"float": FLOAT, "float16": HALF, "double": ir.DataType.DOUBLE}


def found_by_onnx_runtime(model: ir.Model, file: Path) -> dict[str, ir.DataType]:
    """Return value -> element type, as ONNX Runtime finds it: each value becomes an output without a type."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    old = {value.name for value in proto.graph.output}
    made = [name for node in proto.graph.node for name in node.output if name and name not in old]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    onnx.save(proto, file)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    texts = {node.name: node.type.removeprefix("tensor(").removesuffix(")") for node in session.get_outputs()}
    return {name: KINDS.get(text) or ir.DataType[text.upper()] for name, text in texts.items()}


def undeclared(model: ir.Model) -> ir.Model:
    """Forget the types of all that nodes give out."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            value.type = None
    return model


@pytest.mark.parametrize("name", FILES)
def test_all_types_of_a_model(name: str, tmp_path: Path) -> None:
    model = load.load(dialects.file_of(name))
    expected = found_by_onnx_runtime(model, tmp_path / "model.onnx")
    types = {str(value.name): kind for value, kind in element_types(undeclared(model).graph).items()}
    known = {name for name in expected if types[name] is not None}
    assert {name: types[name] for name in known} == {name: expected[name] for name in known}
    # An output that nothing tells of, behind the first one of an operator of ONNX Runtime's own.
    assert {expected[name] for name in expected.keys() - known} <= {ir.DataType.INT32}
    assert len(expected) - len(known) == (name == "tiny-bert-ort")


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "expected"),
    [
        ("Cast", ["i"], {"to": TensorProto.FLOAT16}, HALF),
        ("CastLike", ["i", "x"], {}, FLOAT),
        ("ConstantOfShape", ["i"], {}, FLOAT),
        ("ConstantOfShape", ["i"], {"value": helper.make_tensor("", TensorProto.INT64, [1], [1])}, INT64),
        ("Constant", [], {"value_float": 1.0}, FLOAT),
        ("Constant", [], {"value_ints": [1]}, INT64),
        ("RandomNormal", [], {"shape": [2]}, FLOAT),
        ("RandomNormalLike", ["h"], {}, HALF),
        ("EyeLike", ["e"], {"dtype": TensorProto.FLOAT}, FLOAT),
        ("Multinomial", ["e"], {}, ir.DataType.INT32),
        ("DequantizeLinear", ["q", "s"], {}, FLOAT),
        ("QuantizeLinear", ["x", "s"], {}, UINT8),
        ("QuantizeLinear", ["x", "s", "z"], {}, ir.DataType.INT8),
        ("Shape", ["x"], {}, INT64),
        ("Where", ["b", "h", "h"], {}, HALF),
        ("GreaterOrEqual", ["x", "x"], {}, ir.DataType.BOOL),
    ],
)
def test_where_a_type_comes_from(
    operator: str, inputs: list[str], attributes: dict[str, Any], expected: ir.DataType
) -> None:
    net = Net()
    for name, kind in (
        ("i", TensorProto.INT64),
        ("x", TensorProto.FLOAT),
        ("s", TensorProto.FLOAT),
        ("h", TensorProto.FLOAT16),
        ("e", TensorProto.FLOAT16),
        ("q", TensorProto.UINT8),
        ("z", TensorProto.INT8),
        ("b", TensorProto.BOOL),
    ):
        net.input(name, ["n", "n"], kind)
    result = net.op(operator, *inputs, **attributes)
    net.output(net.op("Identity", result, result="y"))
    types = {value.name: kind for value, kind in element_types(undeclared(net.model()).graph).items()}
    assert types[result] == expected


def test_of_onnx_runtimes_operators_the_first_input_tells() -> None:
    net = Net()
    x, lengths = net.input("x", [1, 1, 32]), net.input("lengths", [1], TensorProto.INT32)
    codes, scales, zeros = (net.input(name, None, kind) for name, kind in (("q", 2), ("s", 1), ("z", 2)))
    product = net.op("MatMulNBits", x, codes, scales, zeros, domain="com.microsoft", K=32, N=32, bits=4, block_size=32)
    given = [product, product, product, "", "", lengths, lengths]
    attended = net.op("GroupQueryAttention", *given, domain="com.microsoft", num_heads=2, kv_num_heads=2)
    net.output(net.op("Identity", attended, result="y"))
    types = {value.name: kind for value, kind in element_types(undeclared(net.model()).graph).items()}
    assert types[product] == types[attended] == FLOAT


def test_if_and_loop_have_the_types_of_their_bodies() -> None:
    net = Net()
    net.input("go", [], TensorProto.BOOL)
    net.input("n", [], TensorProto.INT64)
    net.input("x", ["k"])
    branch = net.body()
    branch.output(branch.op("Cast", "x", to=TensorProto.INT32))
    chosen = net.op("If", "go", then_branch=branch.graph(), else_branch=branch.graph())
    body = net.body()
    again = body.input(body.name("again"), [], TensorProto.BOOL)
    body.input(body.name("turn"), [], TensorProto.INT64)
    body.inputs.reverse()
    state = body.input(body.name("state"), ["k"], TensorProto.DOUBLE)
    body.output(body.op("Identity", again))
    body.output(body.op("Identity", state))
    first = net.op("Cast", "x", to=TensorProto.DOUBLE)
    looped = net.op("Loop", "n", "", first, body=body.graph())
    net.output(net.op("Identity", chosen, result="y"))
    net.output(net.op("Identity", looped, result="z"))
    types = {value.name: kind for value, kind in element_types(undeclared(net.model()).graph).items()}
    assert types[chosen] == ir.DataType.INT32
    assert types[looped] == ir.DataType.DOUBLE


def test_slots_say_what_may_become_float16() -> None:
    net = Net()
    x = net.input("x", [1, 2, 3, 3])
    scales = net.input("scales", [4])
    net.output(net.op("Resize", x, "", scales, result="y"))
    (node,) = net.model().graph
    found = signature(node, 21)
    assert found is not None
    assert "float16" in found.inputs[0].types
    assert found.inputs[2].types == {"float"}
    assert found.outputs[0].variable == found.inputs[0].variable


def test_statistics_of_a_fused_norm_are_float32() -> None:
    net = Net()
    given = [net.input(name, [2, 8]) for name in ("x", "skip")]
    results = ["y", "mean", "deviation", "sum"]
    net.ops("SkipLayerNormalization", *given, net.vector(8), results=results, domain="com.microsoft")
    for name in results:
        net.output(name)
    found = signature(net.model().graph.node(0), 21)
    assert found is not None
    assert ["float16" in slot.types for slot in found.outputs] == [True, False, False, True]


def test_an_operator_that_nobody_knows_has_no_slots() -> None:
    net = Net()
    net.output(net.op("Invented", net.input("x", [2]), domain="some.where", result="y"))
    (node,) = net.model().graph
    assert signature(node, 21) is None
