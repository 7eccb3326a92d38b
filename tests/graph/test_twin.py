"""The float32 twin of a bfloat16 model: nothing of it stays bfloat16, and it computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, printer
from onnx.reference import ReferenceEvaluator

from catonnx.graph.twin import needs_twin, widen, write_twin
from tests.small_models import run

BF16 = TensorProto.BFLOAT16
HALF = np.asarray(np.random.default_rng(3).normal(size=(4, 4)), ml_dtypes.bfloat16)


def model_of(
    nodes: list[onnx.NodeProto],
    *,
    x: int = TensorProto.FLOAT,
    y: int = TensorProto.FLOAT,
    tensors: tuple[onnx.TensorProto, ...] = (),
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", x, [None, 4])], [value("y", y, [None, 4])], list(tensors))
    imports = [helper.make_opsetid("", 21), *([helper.make_opsetid("own", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def weight() -> onnx.TensorProto:
    return numpy_helper.from_array(HALF, "w")


def node(operator: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), domain=domain, **attributes)


def product(source: str = "x", result: str = "y") -> list[onnx.NodeProto]:
    """Return x W in bfloat16, between two Casts."""
    return [
        node("Cast", source, "narrow", to=BF16),
        node("MatMul", "narrow w", "product"),
        node("Cast", "product", result, to=TensorProto.FLOAT),
    ]


def whole() -> onnx.ModelProto:
    return model_of([node("MatMul", "x w", "y")], x=BF16, y=BF16, tensors=(weight(),))


def between_casts() -> onnx.ModelProto:
    return model_of(product(), tensors=(weight(),))


def in_a_constant() -> onnx.ModelProto:
    tensor = numpy_helper.from_array(HALF[0], "c")
    nodes = [node("Constant", "", "c", value=tensor), node("Cast", "c", "wide", to=1), node("Add", "x wide", "y")]
    return model_of(nodes)


def in_a_filled_shape() -> onnx.ModelProto:
    fill = numpy_helper.from_array(np.asarray([0.5], ml_dtypes.bfloat16), "fill")
    nodes = [
        node("Shape", "x", "shape"),
        node("ConstantOfShape", "shape", "filled", value=fill),
        node("Cast", "filled", "wide", to=TensorProto.FLOAT),
        node("Add", "x wide", "y"),
    ]
    return model_of(nodes)


def in_a_body() -> onnx.ModelProto:
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [None, 4])
    bodies = [helper.make_graph(product(result="inner"), name, [], [out], [weight()]) for name in ("then", "else")]
    flag = numpy_helper.from_array(np.array(True), "flag")
    return model_of([node("If", "flag", "y", then_branch=bodies[0], else_branch=bodies[1])], tensors=(flag,))


def in_a_function() -> onnx.ModelProto:
    inner = [node("Constant", "", "w", value=weight()), *product("a", "b")]
    function = helper.make_function("own", "Product", ["a"], ["b"], inner, [helper.make_opsetid("", 21)])
    return model_of([node("Product", "x", "y", domain="own")], functions=(function,))


MODELS = [whole, between_casts, in_a_constant, in_a_filled_shape, in_a_body, in_a_function]


@pytest.mark.parametrize("make", MODELS)
def test_a_twin_holds_no_bfloat16_and_computes_the_same(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    model = make()
    onnx.save(model, tmp_path / "model.onnx")
    write_twin(tmp_path / "model.onnx", tmp_path / "twin.onnx")
    assert needs_twin(tmp_path / "model.onnx")
    assert not needs_twin(tmp_path / "twin.onnx")
    assert "bfloat16" in printer.to_text(model)
    assert "bfloat16" not in printer.to_text(onnx.load(tmp_path / "twin.onnx"))

    x = np.arange(-4, 4).reshape(2, 4) / 8  # exact in bfloat16
    half = model.graph.input[0].type.tensor_type.elem_type == BF16
    (expected, *_) = ReferenceEvaluator(model).run(None, {"x": x.astype(ml_dtypes.bfloat16 if half else np.float32)})
    result = run(tmp_path / "twin.onnx", {"x": x.astype(np.float32)})["y"]
    assert result.dtype == np.float32
    # One rounding of the result to bfloat16, whose numbers have 8 bits.
    np.testing.assert_allclose(result, np.asarray(expected, np.float32), rtol=2**-8, atol=2**-10)


def test_external_tensors_are_widened_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    onnx.save(
        whole(), tmp_path / "in" / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    write_twin(tmp_path / "in" / "model.onnx", tmp_path / "twin.onnx")
    (tensor,) = onnx.load(tmp_path / "twin.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), HALF.astype(np.float32))


@pytest.mark.parametrize("make", MODELS)
def test_a_clone_is_widened_alone(make: Callable[[], onnx.ModelProto]) -> None:
    model = ir.from_proto(make())
    before = ir.to_proto(model)
    copy = model.clone()
    widen(copy)
    assert ir.to_proto(model) == before
    assert ir.to_proto(copy) != before


def test_sequences_of_it_are_widened(tmp_path: Path) -> None:
    nodes = [*product()[:1], node("SequenceConstruct", "narrow narrow", "both"), node("SequenceAt", "both zero", "one")]
    nodes.append(node("Cast", "one", "y", to=TensorProto.FLOAT))
    model = model_of(nodes, tensors=(numpy_helper.from_array(np.array(0), "zero"),))
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "model.onnx")
    write_twin(tmp_path / "model.onnx", tmp_path / "twin.onnx")
    x = np.full((1, 4), 1 + 2**-20, np.float32)
    np.testing.assert_array_equal(run(tmp_path / "twin.onnx", {"x": x})["y"], x)


def test_other_types_need_no_twin(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(HALF.astype(np.float16), "w")
    nodes = [
        node("Cast", "x", "narrow", to=TensorProto.FLOAT16),
        node("MatMul", "narrow w", "product"),
        node("Cast", "product", "y", to=TensorProto.FLOAT),
    ]
    onnx.save(model_of(nodes, tensors=(tensor,)), tmp_path / "model.onnx")
    assert not needs_twin(tmp_path / "model.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    assert not needs_twin(tmp_path / "text.onnx")
    assert not needs_twin(tmp_path / "absent.onnx")


def test_a_number_16_that_names_no_type_stays(tmp_path: Path) -> None:
    codes, scale = np.zeros((16, 4), np.int8), np.ones((1, 4), np.float32)
    nodes = [
        node("DequantizeLinear", "codes scale", "table", axis=0, block_size=int(BF16)),
        node("ReduceMean", "table", "row", keepdims=0, noop_with_empty_axes=0),
        node("Add", "x row", "y"),
    ]
    tensors = (numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scale, "scale"))
    onnx.save(model_of(nodes, tensors=tensors), tmp_path / "model.onnx")
    assert not needs_twin(tmp_path / "model.onnx")
    model = model_of([*nodes[:2], *product(result="p"), node("Add", "p row", "y")], tensors=(*tensors, weight()))
    onnx.save(model, tmp_path / "model.onnx")
    write_twin(tmp_path / "model.onnx", tmp_path / "twin.onnx")
    kept = next(n for n in onnx.load(tmp_path / "twin.onnx").graph.node if n.op_type == "DequantizeLinear")
    assert {attribute.name: attribute.i for attribute in kept.attribute} == {"axis": 0, "block_size": 16}
