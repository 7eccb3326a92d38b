"""A Relu behind a rounded matrix is spelled as Max, because ONNX Runtime would fuse it and lose the int4 kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from catonnx.graph.save import write_model
from catonnx.graph.sites import Linear, Selection, find_sites
from catonnx.math.rounding import quantize_weight
from catonnx.passes.quantize_weights import QuantizeWeights
from catonnx.passes.relu_as_max import ReluAsMax
from catonnx.runtime.fusion import fused_ops

BODIES = {
    "Gemm": (("Gemm", ("x", "W", "b"), "y"),),
    "MatMul and Add": (("MatMul", ("x", "W"), "p"), ("Add", ("p", "b"), "y")),
}


def _model(body: str, *rows: str | int) -> tuple[ir.Model, tuple[Linear, ...]]:
    """Return linear, bias, Relu, linear with rounded weights."""
    rng = np.random.default_rng(0)
    arrays = {"W": rng.standard_normal((64, 96)), "b": rng.standard_normal(96), "V": rng.standard_normal((96, 32))}
    x = ir.val("x", ir.DataType.FLOAT, [*rows, 64])
    values = {name: ir.val(name, const_value=ir.tensor(array.astype(np.float32))) for name, array in arrays.items()}
    values["x"], nodes = x, []
    for operator, inputs, output in (*BODIES[body], ("Relu", ("y",), "z"), ("MatMul", ("z", "V"), "o")):
        node = ir.node(operator, [values[name] for name in inputs], name=f"node_{output}")
        node.outputs[0].name = output
        values[output] = node.outputs[0]
        nodes.append(node)
    values["o"].dtype, values["o"].shape = ir.DataType.FLOAT, ir.Shape([*rows, 32])
    weights = [values[name] for name in arrays]
    graph = ir.Graph([x], [values["o"]], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="mlp")
    model = ir.Model(graph, ir_version=10)
    linears = tuple(linear for site in find_sites(graph, Selection(head=True)).sites for linear in site.linears)
    QuantizeWeights(linears, lambda _, weight, __: quantize_weight(weight, 32))(model)
    return model, linears


def _run(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    values: np.ndarray = session.run(None, feeds)[0]
    return values


@pytest.mark.parametrize("body", ["Gemm", "MatMul and Add"])
def test_the_linear_fuses_the_values_stay_and_a_second_run_finds_nothing(body: str, tmp_path: Path) -> None:
    model, linears = _model(body, "N")
    write_model(model, tmp_path / "before.onnx")
    assert fused_ops(tmp_path / "before.onnx").operators["MatMulNBits"] == 1, "drop the pass?"

    assert ReluAsMax(linears)(model).modified
    assert [node.op_type for node in model.graph].count("Max") == 1
    assert "Relu" not in [node.op_type for node in model.graph]
    write_model(model, tmp_path / "after.onnx")
    assert fused_ops(tmp_path / "after.onnx").operators["MatMulNBits"] == 2
    feeds = {"x": np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)}
    before, after = _run(tmp_path / "before.onnx", feeds), _run(tmp_path / "after.onnx", feeds)
    # MatMulNBits rounds activations to int8 on this provider: 7e-3 measured.
    assert np.linalg.norm(after - before) <= 2e-2 * np.linalg.norm(before)

    assert not ReluAsMax(linears)(model).modified


def test_a_linear_of_more_axes_is_left_alone() -> None:
    model, linears = _model("MatMul and Add", 1, "N")
    assert not ReluAsMax(linears)(model).modified
