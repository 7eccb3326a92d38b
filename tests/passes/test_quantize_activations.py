"""Activations in 4 and 8 bits as Q/DQ pairs: structure, numbers and what ONNX Runtime makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from catonnx.graph.sites import Linear, Selection, find_sites
from catonnx.math.activations import ActivationGrid
from catonnx.math.rounding import QuantizedWeight, quantize_weight
from catonnx.passes.canonicalize import Canonicalize
from catonnx.passes.quantize_activations import QuantizeActivations
from catonnx.passes.quantize_weights import QuantizeWeights
from tests.graph.builder import Length, Net, relative_error, run

EXACT = {"session.qdq_matmulnbits_accuracy_level": "0"}
CLEANING = EXACT | {"session.enable_quant_qdq_cleanup": "1"}
WIDTH = 64
GRIDS = {
    "symmetric-4": ActivationGrid(4),
    "symmetric-8": ActivationGrid(8),
    "asymmetric-4": ActivationGrid(4, False),
    "asymmetric-8": ActivationGrid(8, False),
    "clipped": ActivationGrid(4, True, clip=0.7),
    "clipped-asymmetric": ActivationGrid(4, False, clip=0.7),
    "groups": ActivationGrid(4, True, 16),
    "groups-asymmetric-clipped": ActivationGrid(8, False, 32, 0.9),
    "static": ActivationGrid(4, fixed=(0.3, 0.0)),
    "static-asymmetric": ActivationGrid(8, False, fixed=(0.02, -1.7)),
}
ALL_GRIDS = pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))


def layers(shape: list[Length] | None = None, dtype: type = np.float32) -> Net:
    """Read x by three linears, one of them a Gemm if x has two axes, and by a Relu."""
    net = Net(seed=3)
    x = net.input("x", shape, TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16)
    for index in range(3):
        weight = net.constant((net.random.normal(size=(WIDTH, 24)) / 8).astype(dtype))
        if shape is not None and len(shape) == 2 and index == 1:
            net.output(net.op("Gemm", x, weight, net.constant(np.ones(24, dtype)), result="y1"))
        else:
            net.output(net.op("MatMul", x, weight, result=f"y{index}"))
    net.output(net.op("Relu", x, result="float"))
    return net


def model_of(net: Net, dtype: type = np.float32) -> ir.Model:
    """Return a net as a canonical model whose outputs have its type."""
    proto = net.proto()
    for output in proto.graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    model = ir.from_proto(proto)
    Canonicalize(Selection(head=True))(model)
    return model


def rows(*shape: int, dtype: type = np.float32) -> np.ndarray:
    """Return tokens of very different size, with one of zeros and one of ones."""
    random = np.random.default_rng(5)
    values = random.normal(size=shape) * np.exp(random.normal(size=(*shape[:-1], 1)))
    flat = values.reshape(-1, shape[-1])
    if len(flat) > 2:
        flat[0], flat[1] = 0, 1
    return values.astype(dtype)


def rounded(model: ir.Model, grid: ActivationGrid, *, exclude: tuple[str, ...] = ()) -> ir.Model:
    """Round the activation of every site."""
    sites = find_sites(model.graph, Selection(head=True, exclude=exclude)).sites
    assert QuantizeActivations(tuple((site, grid) for site in sites))(model).modified
    return model


def weights(model: ir.Model) -> list[np.ndarray]:
    return [linear.node.inputs[1].const_value.numpy() for linear in linears_of(model)]  # type: ignore[union-attr]


def linears_of(model: ir.Model) -> tuple[Linear, ...]:
    sites = find_sites(model.graph, Selection(head=True)).sites
    return tuple(linear for site in sites for linear in site.linears)


def with_int4_weights(model: ir.Model) -> list[np.ndarray]:
    """Round all weights and return what they became."""
    seen: list[np.ndarray] = []

    def rounder(_linear: Linear, weight: np.ndarray, dtype: ir.DataType) -> QuantizedWeight:
        result = quantize_weight(weight, 32, scale_dtype=dtype.numpy())
        seen.append(result.dequantize())
        return result

    QuantizeWeights(linears_of(model), rounder)(model)
    return seen


def optimized(
    model: ir.Model, feeds: dict[str, np.ndarray], path: Path, config: dict[str, str]
) -> tuple[list[str], list[np.ndarray]]:
    """Return the operators that ONNX Runtime runs, and what comes out."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [node.op_type for node in onnx.load(path).graph.node], session.run(None, feeds)


@ALL_GRIDS
@pytest.mark.parametrize(
    "shape", [["batch", "rows", WIDTH], ["rows", WIDTH], None, [WIDTH]], ids=["rank-3", "rank-2", "no-rank", "vector"]
)
def test_linears_read_exactly_the_rounded_rows(grid: ActivationGrid, shape: list[Length] | None) -> None:
    model = rounded(model_of(layers(shape)), grid)
    (site,) = find_sites(model.graph, Selection(head=True)).sites
    model.graph.outputs.append(site.value)
    x = rows(*{3: (2, 5, WIDTH), 2: (7, WIDTH), 1: (WIDTH,)}[3 if shape is None else len(shape)])
    results = run(model, {"x": x})
    expected = grid.round(x)
    # The same operations in the same order: the same bits.
    np.testing.assert_array_equal(results[site.name], expected)
    for index, weight in enumerate(weights(model)):
        bias = 1 if shape is not None and len(shape) == 2 and index == 1 else 0
        assert relative_error(expected @ weight + bias, results[f"y{index}"]) < 1e-6
    np.testing.assert_array_equal(results["float"], np.maximum(x, 0))


@ALL_GRIDS
def test_float16_is_rounded_as_float32_inside(grid: ActivationGrid) -> None:
    model = rounded(model_of(layers(["batch", "rows", WIDTH], np.float16), np.float16), grid)
    (site,) = find_sites(model.graph, Selection(head=True)).sites
    model.graph.outputs.append(site.value)
    x = rows(2, 5, WIDTH, dtype=np.float16)
    np.testing.assert_array_equal(run(model, {"x": x})[site.name], grid.round(x))


@ALL_GRIDS
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("config", [EXACT, CLEANING], ids=["default", "cleanup"])
def test_onnx_runtime_fuses_the_weights_and_keeps_the_pair(
    grid: ActivationGrid, dtype: type, config: dict[str, str], tmp_path: Path
) -> None:
    model = model_of(layers(["batch", "rows", WIDTH], dtype), dtype)
    seen = with_int4_weights(rounded(model, grid))
    x = rows(2, 5, WIDTH, dtype=dtype)
    operators, results = optimized(model, {"x": x}, tmp_path / "optimized.onnx", config)
    assert operators.count("MatMulNBits") == 3
    assert operators.count("QuantizeLinear") == operators.count("DequantizeLinear") == 1
    for weight, result in zip(seen, results, strict=False):
        # Measured 1e-7, and 4e-4 in float16.
        assert relative_error(grid.round(x).astype(np.float64) @ weight, result) < (
            1e-6 if dtype == np.float32 else 2e-3
        )


def test_every_optimization_level_leaves_the_numbers(tmp_path: Path) -> None:
    model = rounded(model_of(layers(["rows", WIDTH])), ActivationGrid(4))
    x = rows(7, WIDTH)
    plain = run(model, {"x": x})
    for name, result in run(model, {"x": x}, optimize=True).items():
        assert relative_error(plain[name], result) < 1e-6
    _, results = optimized(model, {"x": x}, tmp_path / "optimized.onnx", CLEANING)
    assert relative_error(plain["y0"], results[0]) < 1e-6


@ALL_GRIDS
def test_the_checker_and_strict_type_inference_accept_it(grid: ActivationGrid) -> None:
    model = rounded(model_of(layers(["batch", "rows", WIDTH])), grid)
    with_int4_weights(model)
    for output in model.graph.outputs:
        output.shape = ir.Shape(["batch", "rows", WIDTH if output.name == "float" else 24])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_the_pair_has_no_zero_point_and_a_scale_of_one() -> None:
    for grid in GRIDS.values():
        model = rounded(model_of(layers(["rows", WIDTH])), grid)
        pair = [node for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert len(pair) == 2
        for node in pair:
            _, scale = node.inputs
            assert scale is not None
            assert scale.const_value is not None
            assert scale.const_value.numpy() == 1


def test_only_selected_linears_read_the_rounded_rows() -> None:
    net = layers(["batch", "rows", WIDTH])
    model = model_of(net)
    excluded = linears_of(model)[1].name
    rounded(model, ActivationGrid(4), exclude=(excluded,))
    readers = {node.name: node.inputs[0] for node in model.graph if node.op_type in ("MatMul", "Relu")}
    x = model.graph.inputs[0]
    assert readers[excluded] is x
    assert sum(value is x for value in readers.values()) == 2, "the excluded linear and the Relu"
    data = rows(2, 3, WIDTH)
    results, plain = run(model, {"x": data}), run(net.proto(), {"x": data})
    np.testing.assert_array_equal(results["y1"], plain["y1"])
    assert relative_error(plain["y0"], results["y0"]) > 0.01


def test_a_site_without_a_selected_linear_is_left_alone() -> None:
    model = model_of(layers(["rows", WIDTH]))
    (site,) = find_sites(model.graph, Selection(head=True, exclude=("*",))).sites
    before = ir.to_proto(model).SerializeToString()
    assert not QuantizeActivations(((site, ActivationGrid(4)),))(model).modified
    assert ir.to_proto(model).SerializeToString() == before


def test_sites_share_their_constants_and_no_name_is_taken_twice() -> None:
    net = Net()
    x = net.input("x", ["rows", WIDTH])
    for _ in range(3):
        x = net.op("Relu", net.op("MatMul", x, net.normal(WIDTH, WIDTH)))
    net.output(x)
    model = rounded(model_of(net), ActivationGrid(4))
    added = [name for name in model.graph.initializers if name.startswith("catonnx/")]
    assert len(added) == 4, "the last axis, 1/7, the smallest scale and 1"
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    assert len({node.name for node in model.graph}) == len(model.graph)


@pytest.mark.parametrize("group", [48, 128])
def test_groups_that_do_not_divide_the_channels_are_refused(group: int) -> None:
    with pytest.raises(ValueError, match=f"64 channels cannot be split into groups of {group}"):
        rounded(model_of(layers(["rows", WIDTH])), ActivationGrid(4, group_size=group))


def test_a_group_of_all_channels_needs_no_reshape() -> None:
    model = rounded(model_of(layers(["rows", WIDTH])), ActivationGrid(4, group_size=WIDTH))
    assert "Reshape" not in [node.op_type for node in model.graph]


COUNTS: dict[str, dict[str, int]] = {
    "symmetric-4": {"Abs": 1, "ReduceMax": 1, "Mul": 2, "Max": 1, "Div": 1},
    "asymmetric-4": {"ReduceMax": 1, "ReduceMin": 1, "Mul": 2, "Max": 1, "Div": 1, "Sub": 2, "Add": 1},
    "static": {"Div": 1, "Mul": 1},
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_site_costs_no_more_nodes_than_it_must(name: str) -> None:
    model: Any = rounded(model_of(layers(["b", "rows", WIDTH])), GRIDS[name])
    kept = {"MatMul", "Relu", "QuantizeLinear", "DequantizeLinear"}
    operators = [node.op_type for node in model.graph if node.op_type not in kept]
    assert {operator: operators.count(operator) for operator in operators} == COUNTS[name]


BITS: tuple[Literal[4, 8], ...] = (4, 8)


@pytest.mark.parametrize("bits", BITS)
def test_a_fixed_scale_cuts_what_lies_outside(bits: Literal[4, 8]) -> None:
    model = rounded(model_of(layers(["rows", WIDTH])), ActivationGrid(bits, fixed=(0.5, 0.0)))
    (site,) = find_sites(model.graph, Selection(head=True)).sites
    model.graph.outputs.append(site.value)
    x = np.full((1, WIDTH), 1000, np.float32)
    x[0, 0] = -1000
    result = run(model, {"x": x})[site.name]
    half = 2 ** (bits - 1)
    np.testing.assert_array_equal(result[0, :2], [-half / 2, (half - 1) / 2])


def test_no_rows_at_all_come_through() -> None:
    for grid in (ActivationGrid(4), ActivationGrid(8, False, 16)):
        model = rounded(model_of(layers(["rows", WIDTH])), grid)
        assert run(model, {"x": np.zeros((0, WIDTH), np.float32)})["y0"].shape == (0, 24)
