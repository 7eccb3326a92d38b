"""What is added to outputs is added once, into a bias where there is one, and costs ONNX Runtime no node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from catonnx.graph.save import write_model
from catonnx.graph.sites import Selection, find_sites
from catonnx.math.rounding import quantize_weight
from catonnx.passes.quantize_weights import QuantizeWeights
from catonnx.passes.shift_outputs import ShiftOutputs
from catonnx.runtime.fusion import fused_ops

Nodes = tuple[tuple[str, tuple[str, ...], str], ...]

BODIES: dict[str, tuple[Nodes, int]] = {
    "MatMul": ((("MatMul", ("x", "W"), "y"), ("Sigmoid", ("y",), "o")), 1),
    "MatMul read twice": ((("MatMul", ("x", "W"), "y"), ("Sigmoid", ("y",), "z"), ("Mul", ("y", "z"), "o")), 1),
    "MatMul that ends the graph": ((("MatMul", ("x", "W"), "y"),), 1),
    "MatMul and constant Add": ((("MatMul", ("x", "W"), "y"), ("Add", ("b", "y"), "o")), 0),
    "MatMul and Add of an activation": ((("MatMul", ("x", "W"), "y"), ("Add", ("y", "y"), "o")), 1),
    "Gemm": ((("Gemm", ("x", "W", "b"), "y"), ("Sigmoid", ("y",), "o")), 0),
    "Gemm without bias": ((("Gemm", ("x", "W"), "y"), ("Sigmoid", ("y",), "o")), 1),
}
"""Nodes of a graph, the linear's output being y, and how many the pass adds."""


def _model(body: str) -> ir.Model:
    rng = np.random.default_rng(0)
    arrays = {"W": rng.standard_normal((64, 32)), "b": rng.standard_normal(32)}
    values = {name: ir.val(name, const_value=ir.tensor(array.astype(np.float32))) for name, array in arrays.items()}
    values["x"] = ir.val("x", ir.DataType.FLOAT, ["N", 64])
    nodes = []
    for operator, inputs, output in BODIES[body][0]:
        node = ir.node(operator, [values[name] for name in inputs], name=f"node_{output}")
        values[output] = node.outputs[0]
        values[output].name, values[output].type = output, ir.TensorType(ir.DataType.FLOAT)
        values[output].shape = ir.Shape(["N", 32])
        nodes.append(node)
    weights = [values[name] for name in arrays if any(name in inputs for _, inputs, _ in BODIES[body][0])]
    graph = ir.Graph(
        [values["x"]], [nodes[-1].outputs[0]], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="linear"
    )
    return ir.Model(graph, ir_version=10)


def _observed(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return the graph's output by name."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip((value.name for value in session.get_outputs()), session.run(None, {"x": x}), strict=True))


def _reference(body: str, x: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Compute a body in float64, its linear shifted."""
    values = {str(name): value.const_value.numpy() for name, value in _model(body).graph.initializers.items()}  # type: ignore[union-attr]
    values["x"] = x.astype(np.float64)
    for operator, inputs, output in BODIES[body][0]:
        read = [values[name] for name in inputs]
        match operator:
            case "MatMul" | "Gemm":
                values[output] = read[0] @ read[1] + sum(read[2:], shift)
            case "Add":
                values[output] = read[0] + read[1]
            case "Mul":
                values[output] = read[0] * read[1]
            case "Sigmoid":
                values[output] = 1 / (1 + np.exp(-read[0]))
    return values[BODIES[body][0][-1][2]]


@pytest.mark.parametrize("body", BODIES)
def test_the_linear_alone_is_shifted(body: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x, shift = rng.standard_normal((5, 64)).astype(np.float32), rng.standard_normal(32).astype(np.float32)
    model = _model(body)
    before = len(model.graph)
    assert ShiftOutputs({"y": shift})(model).modified
    assert len(model.graph) - before == BODIES[body][1]
    write_model(model, tmp_path / "model.onnx")
    (name, seen), *_ = _observed(tmp_path / "model.onnx", x).items()
    assert name == BODIES[body][0][-1][2]
    np.testing.assert_allclose(seen, _reference(body, x, shift), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("body", ["MatMul", "MatMul and constant Add", "Gemm", "Gemm without bias"])
@pytest.mark.parametrize("form", ["qdq", "nbits"])
def test_a_rounded_linear_takes_it_into_its_kernel(body: str, form: str, tmp_path: Path) -> None:
    model = _model(body)
    (site,) = find_sites(model.graph, Selection(head=True)).sites
    QuantizeWeights(site.linears, lambda _, weight, __: quantize_weight(weight, 32), form)(model)  # type: ignore[arg-type]
    write_model(model, tmp_path / "before.onnx")
    shift = np.arange(32, dtype=np.float32)
    ShiftOutputs({"y": shift})(model)
    write_model(model, tmp_path / "after.onnx")
    before, after = fused_ops(tmp_path / "before.onnx"), fused_ops(tmp_path / "after.onnx")
    assert after.operators == before.operators
    assert after.operators["MatMulNBits"] == 1


def test_shared_biases_are_not_shifted_with_it() -> None:
    model = _model("Gemm")
    bias = model.graph.initializers["b"]
    other = ir.node("Add", [model.graph.inputs[0], bias], name="other")
    model.graph.append(other)
    ShiftOutputs({"y": np.ones(32, np.float32)})(model)
    assert other.inputs[1] is bias
    assert bias.const_value is not None
    np.testing.assert_array_equal(bias.const_value.numpy(), _model("Gemm").graph.initializers["b"].const_value.numpy())  # type: ignore[union-attr]


def test_unknown_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="no node gives out a value z"):
        ShiftOutputs({"z": np.ones(32, np.float32)})(_model("Gemm"))
