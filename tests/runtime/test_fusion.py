"""The operators that ONNX Runtime really runs, and the weights that it did not fuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from catonnx.errors import ModelError
from catonnx.runtime.fusion import fused_ops

WIDTH, BLOCK = 32, 16


Writer = Callable[[str], Path]


@pytest.fixture
def quantized(tmp_path: Path) -> Writer:
    """Return a function that writes x W with W int4 in blocks; W lies ready, or a node turns it first."""

    def write(between: str) -> Path:
        shape = {"nothing": (WIDTH, WIDTH), "Transpose": (WIDTH, WIDTH), "Reshape": (WIDTH // 2, WIDTH * 2)}[between]
        codes = np.random.default_rng(0).integers(-8, 8, shape)
        weight = ir.to_proto(ir.tensor(codes.astype(np.int8), dtype=ir.DataType.INT4, name="codes"))
        scales = onnx.numpy_helper.from_array(np.full((shape[0] // BLOCK, shape[1]), 0.1, np.float32), "scales")
        target = onnx.numpy_helper.from_array(np.array([WIDTH, WIDTH]), "target")
        turn = {
            "nothing": helper.make_node("Identity", ["expanded"], ["w"]),
            "Transpose": helper.make_node("Transpose", ["expanded"], ["w"], perm=[1, 0]),
            "Reshape": helper.make_node("Reshape", ["expanded", "target"], ["w"]),
        }[between]
        nodes = [
            helper.make_node("DequantizeLinear", ["codes", "scales"], ["expanded"], "expand", axis=0, block_size=BLOCK),
            turn,
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH]) for name in ("x", "y")]
        graph = helper.make_graph(nodes, "quantized", values[:1], values[1:], [weight, scales, target])
        path = tmp_path / "quantized.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
        return path

    return write


def test_a_weight_that_fuses(quantized: Writer, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    graph = fused_ops(quantized("nothing"), folder=tmp_path)
    assert graph.operators == {"MatMulNBits": 1}
    assert graph.unfused == ()
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"quantized.onnx"}


@pytest.mark.parametrize("between", ["Transpose", "Reshape"])
def test_a_weight_that_does_not_fuse_is_named(quantized: Writer, between: str) -> None:
    graph = fused_ops(quantized(between))
    assert graph.operators["DequantizeLinear"] == 1
    assert graph.operators["MatMulNBits"] == 0
    assert graph.unfused == ("expand",)


def test_config_reaches_onnxruntime(quantized: Writer) -> None:
    graph = fused_ops(quantized("nothing"), config={"session.disable_quant_qdq": "1"})
    assert graph.operators["MatMulNBits"] == 0


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found nothing"):
        fused_ops(tmp_path / "absent.onnx")
