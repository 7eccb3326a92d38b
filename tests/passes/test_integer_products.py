"""Integer products: structure, numbers against a reference in float64, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from catonnx.errors import ModelError
from catonnx.graph.sites import Linear, Selection, find_sites
from catonnx.math.activations import ActivationGrid
from catonnx.math.rounding import Bits, QuantizedWeight, quantize_weight
from catonnx.passes.canonicalize import Canonicalize
from catonnx.passes.integer_products import IntegerProducts, Provider
from tests.graph.builder import Length, Net, relative_error, run
from tests.passes.test_quantize_activations import model_of, optimized, rows

WIDTH, COLUMNS = 64, 24
GRIDS = {
    "symmetric-4": ActivationGrid(4),
    "symmetric-8": ActivationGrid(8),
    "asymmetric-4": ActivationGrid(4, False),
    "asymmetric-8": ActivationGrid(8, False),
    "clipped": ActivationGrid(4, clip=0.7),
    "clipped-8": ActivationGrid(8, clip=0.7),
    "clipped-asymmetric": ActivationGrid(4, False, clip=0.7),
    "static": ActivationGrid(4, fixed=(0.3, 0.0)),
    "static-8": ActivationGrid(8, fixed=(0.01, 0.0)),
    "static-asymmetric": ActivationGrid(4, False, fixed=(0.2, -1.3)),
    "static-from-zero": ActivationGrid(8, False, fixed=(0.01, 0.0)),
}
ALL_GRIDS = pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
PROVIDERS: tuple[Provider, ...] = ("cpu", "cuda")
BOTH_PROVIDERS = pytest.mark.parametrize("provider", PROVIDERS)
SHAPES: dict[str, list[Length] | None] = {
    "rank-3": ["batch", "rows", WIDTH],
    "rank-2": ["rows", WIDTH],
    "no-rank": None,
    "vector": [WIDTH],
}


def layers(shape: list[Length] | None = None, dtype: type = np.float32) -> Net:
    """Read x by two linears and a Relu; all weights differ in size from column to column."""
    net = Net(seed=3)
    x = net.input("x", shape, TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16)
    for index in range(2):
        weight = net.random.normal(size=(WIDTH, COLUMNS)) * np.geomspace(0.02, 0.5, COLUMNS)
        net.output(net.op("MatMul", x, net.constant(weight.astype(dtype)), result=f"y{index}"))
    net.output(net.op("Relu", x, result="float"))
    return net


def integer(
    model: ir.Model,
    grid: ActivationGrid,
    provider: Provider = "cpu",
    *,
    bits: Bits = 4,
    exclude: tuple[str, ...] = (),
) -> list[np.ndarray]:
    """Rewrite every site and return what the weights became."""
    seen: list[np.ndarray] = []

    def rounder(_linear: Linear, weight: np.ndarray, dtype: ir.DataType) -> QuantizedWeight:
        return quantize_weight(weight, None, bits=bits, scale_dtype=dtype.numpy())

    sites = find_sites(model.graph, Selection(head=True, exclude=exclude)).sites
    pairs = tuple((site, grid) for site in sites)
    observe = lambda _linear, _weight, rounded: seen.append(rounded.dequantize())  # noqa: E731
    assert IntegerProducts(pairs, rounder, provider, observe)(model).modified
    return seen


def tokens(shape: list[Length] | None) -> np.ndarray:
    return rows(*{3: (2, 5, WIDTH), 2: (7, WIDTH), 1: (WIDTH,)}[3 if shape is None else len(shape)])


@ALL_GRIDS
@BOTH_PROVIDERS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("optimize", [False, True], ids=["as-written", "optimized"])
def test_products_are_those_of_rounded_rows_and_weights(
    grid: ActivationGrid, provider: Provider, shape: list[Length] | None, optimize: bool
) -> None:
    model = model_of(layers(shape))
    seen = integer(model, grid, provider)
    x = tokens(shape)
    results = run(model, {"x": x}, optimize=optimize)
    exact = grid.round(x).astype(np.float64)
    for index, weight in enumerate(seen):
        # Measured 2e-7.
        assert relative_error(exact @ weight, results[f"y{index}"]) < 2e-6
    np.testing.assert_array_equal(results["float"], np.maximum(x, 0))


@ALL_GRIDS
@BOTH_PROVIDERS
def test_every_token_is_right_and_not_only_the_large_ones(grid: ActivationGrid, provider: Provider) -> None:
    model = model_of(layers(["rows", WIDTH]))
    (weight, _) = integer(model, grid, provider)
    x = tokens(["rows", WIDTH])
    exact = grid.round(x).astype(np.float64) @ weight
    result = run(model, {"x": x})["y0"]
    # On CUDA a fixed range that does not begin at zero is the difference of two larger numbers.
    range_ends = 0 if grid.fixed is None else grid.fixed[0] * 2**grid.bits * np.sqrt(WIDTH)
    size = (np.linalg.norm(grid.round(x), axis=1, keepdims=True) + range_ends) * np.linalg.norm(weight, axis=0) + 1e-20
    # Measured 3e-7.
    assert (np.abs(result - exact) / size).max() < 2e-6


@BOTH_PROVIDERS
@pytest.mark.parametrize("grid", [ActivationGrid(4), ActivationGrid(8, False)], ids=["symmetric", "asymmetric"])
def test_weights_of_eight_bits(grid: ActivationGrid, provider: Provider) -> None:
    model = model_of(layers(["rows", WIDTH]))
    seen = integer(model, grid, provider, bits=8)
    assert not any(node.op_type == "Cast" and node.inputs[0].is_initializer() for node in model.graph)  # type: ignore[union-attr]
    assert sum(value.dtype == ir.DataType.INT8 for value in model.graph.initializers.values()) == 2
    x = tokens(["rows", WIDTH])
    assert relative_error(grid.round(x).astype(np.float64) @ seen[0], run(model, {"x": x})["y0"]) < 2e-6


@BOTH_PROVIDERS
@pytest.mark.parametrize("name", ["symmetric-4", "clipped-asymmetric", "static-asymmetric"])
def test_float16_goes_through_float32(name: str, provider: Provider) -> None:
    grid, shape = GRIDS[name], SHAPES["rank-3"]
    model = model_of(layers(shape, np.float16), np.float16)
    seen = integer(model, grid, provider)
    x = (100 * tokens(shape)).astype(np.float16)
    result = run(model, {"x": x})["y1"]
    assert result.dtype == np.float16
    # Measured 2e-4: one rounding of the result to float16.
    assert relative_error(grid.round(x.astype(np.float32)).astype(np.float64) @ seen[1], result) < 1e-3


@BOTH_PROVIDERS
@pytest.mark.parametrize("name", ["symmetric-4", "asymmetric-8", "static-asymmetric"])
@pytest.mark.parametrize(
    ("bias", "beta"),
    [(np.linspace(1, 2, 32), 1.0), (np.linspace(1, 2, 3).reshape(3, 1), 2.0), ("x", 0.5), (np.array(3.0), 1.0)],
    ids=["vector", "column", "activation", "scalar"],
)
def test_a_gemm_keeps_its_bias(name: str, provider: Provider, bias: np.ndarray | str, beta: float) -> None:
    net = Net(seed=1)
    x = net.input("x", [3, 32])
    third = bias if isinstance(bias, str) else net.constant(bias)
    net.output(net.op("Gemm", x, net.normal(32, 32), third, result="y", beta=beta, transB=1))
    model = net.model()
    Canonicalize(Selection(head=True))(model)
    (weight,) = integer(model, GRIDS[name], provider)
    assert [value.name for value in model.graph.outputs] == ["y"]
    data = rows(3, 32)
    expected = GRIDS[name].round(data).astype(np.float64) @ weight + beta * (data if isinstance(bias, str) else bias)
    for optimize in (False, True):
        assert relative_error(expected, run(model, {"x": data}, optimize=optimize)["y"]) < 2e-6


@ALL_GRIDS
def test_the_cpu_multiplies_uint8_and_cuda_int8(grid: ActivationGrid) -> None:
    for provider, kind in (("cpu", ir.DataType.UINT8), ("cuda", ir.DataType.INT8)):
        model = model_of(layers(["rows", WIDTH]))
        integer(model, grid, provider)  # type: ignore[arg-type]
        products = [node for node in model.graph if node.op_type == "MatMulInteger"]
        assert len(products) == 2
        for node in products:
            assert [value.dtype for value in node.inputs[:2] if value is not None] == [kind, ir.DataType.INT8]
            assert len(node.inputs) == (3 if provider == "cpu" and grid.symmetric else 2)
        assert not any(node.op_type in ("MatMul", "Gemm") for node in model.graph)
        quantizes = [node for node in model.graph if node.op_type == "QuantizeLinear"]
        assert len(quantizes) == 1, "once per site"
        assert provider == "cpu" or "block_size" not in quantizes[0].attributes, "CUDA has no such kernel"


@pytest.mark.parametrize("grid", [ActivationGrid(4), ActivationGrid(4, False, clip=0.9)])
def test_codes_of_four_bits_stay_small_enough_for_processors_that_add_in_16_bits(grid: ActivationGrid) -> None:
    model = model_of(layers(["rows", WIDTH]))
    integer(model, grid, bits=8)
    (codes,) = {node.inputs[0] for node in model.graph if node.op_type == "MatMulInteger"}
    assert codes is not None
    model.graph.outputs.append(codes)
    values = run(model, {"x": tokens(["rows", WIDTH])})[codes.name or ""]
    assert (values.min(), values.max()) in ((0, 15), (1, 15))


def test_weights_are_four_bits_in_the_file_and_integers_when_it_runs(tmp_path: Path) -> None:
    model = model_of(layers(["rows", WIDTH]))
    integer(model, ActivationGrid(4))
    stored = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT4]
    assert [value.const_value.nbytes for value in stored if value.const_value is not None] == [WIDTH * COLUMNS // 2] * 2
    assert not any(
        value.shape == (WIDTH, COLUMNS) for value in model.graph.initializers.values() if value not in stored
    )
    operators, _ = optimized(model, {"x": tokens(["rows", WIDTH])}, tmp_path / "optimized.onnx", {})
    tensors = onnx.load(tmp_path / "optimized.onnx").graph.initializer
    assert [tensor.data_type for tensor in tensors if tuple(tensor.dims) == (WIDTH, COLUMNS)] == [TensorProto.INT8] * 2
    assert Counter(operators)["MatMulIntegerToFloat"] == 2


PASSES = {"symmetric-4": 1, "clipped": 1, "asymmetric-4": 3, "static": 0, "static-asymmetric": 0}


@pytest.mark.parametrize("name", PASSES)
def test_nothing_but_what_must_runs_over_the_results_of_a_product(name: str, tmp_path: Path) -> None:
    model = model_of(layers(["rows", WIDTH]))
    integer(model, GRIDS[name])
    optimized(model, {"x": tokens(["rows", WIDTH])}, tmp_path / "optimized.onnx", {})
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    makers = {output: node for node in graph.node for output in node.output}
    pending, count = ["y0"], 0
    while pending:
        node = makers[pending.pop()]
        if node.op_type == "MatMulIntegerToFloat":
            break
        count += 1
        pending += [name for name in node.input if name in makers and node.op_type in ("Add", "Mul", "Cast")][:1]
    assert node.op_type == "MatMulIntegerToFloat"
    # The other operand of Add, offset * sum, is one more.
    assert count + (name == "asymmetric-4") == PASSES[name]


def test_an_empty_batch_and_inputs_without_a_number_change_nothing() -> None:
    net = Net()
    net.input("past", ["any"])
    x = net.input("x", ["rows", WIDTH])
    net.output(net.op("MatMul", x, net.normal(WIDTH, COLUMNS), result="y"))
    model = net.model()
    (weight,) = integer(model, ActivationGrid(4))
    data = {"past": np.zeros(0, np.float32), "x": rows(4, WIDTH)}
    for optimize in (False, True):
        assert (
            relative_error(ActivationGrid(4).round(data["x"]) @ weight, run(model, data, optimize=optimize)["y"]) < 1e-6
        )
    assert run(model, {**data, "x": np.zeros((0, WIDTH), np.float32)})["y"].shape == (0, COLUMNS)


@ALL_GRIDS
@BOTH_PROVIDERS
def test_the_checker_and_strict_type_inference_accept_it(grid: ActivationGrid, provider: Provider) -> None:
    model = model_of(layers(["batch", "rows", WIDTH]))
    integer(model, grid, provider)
    for output in model.graph.outputs:
        output.shape = ir.Shape(["batch", "rows", WIDTH if output.name == "float" else COLUMNS])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_linears_that_are_not_selected_stay_float() -> None:
    net = layers(["rows", WIDTH])
    model = model_of(net)
    name = next(node.name for node in model.graph if node.op_type == "MatMul") or ""
    integer(model, ActivationGrid(4), exclude=(name,))
    (kept,) = (node for node in model.graph if node.op_type == "MatMul")
    assert (kept.name, kept.inputs[0]) == (name, model.graph.inputs[0])
    x = tokens(["rows", WIDTH])
    np.testing.assert_array_equal(run(model, {"x": x})["y0"], run(net.proto(), {"x": x})["y0"])


def test_scales_per_group_are_refused_before_anything_is_changed() -> None:
    model = model_of(layers(["rows", WIDTH]))
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(ValueError, match=r"activations with a scale per group of 16.*one scale per token.*\(x\)"):
        integer(model, ActivationGrid(4, group_size=16))
    assert ir.to_proto(model).SerializeToString() == before


def test_weights_in_groups_are_refused_with_the_linears_name() -> None:
    model = model_of(layers(["rows", WIDTH]))
    sites = find_sites(model.graph, Selection(head=True)).sites
    rewrite = IntegerProducts(
        ((sites[0], ActivationGrid(4)),), lambda _linear, weight, _dtype: quantize_weight(weight, 32)
    )
    with pytest.raises(ValueError, match=r"weights with a scale per group of 32.*form qdq \(node_"):
        rewrite(model)


def test_a_weight_that_cannot_be_rounded_names_its_linear() -> None:
    net = Net()
    weight = np.ones((WIDTH, 4))
    weight[3, 2] = np.inf
    net.output(net.op("MatMul", net.input("x", ["rows", WIDTH]), net.constant(weight)))
    with pytest.raises(ModelError, match=r"NaN or Inf.*--exclude"):
        integer(net.model(), ActivationGrid(4))


def test_progress_counts_selected_linears() -> None:
    model = model_of(layers(["rows", WIDTH]))
    sites = find_sites(model.graph, Selection(head=True)).sites
    told: list[tuple[str, int, int]] = []
    IntegerProducts(
        tuple((site, ActivationGrid(4)) for site in sites),
        lambda _linear, weight, _dtype: quantize_weight(weight, None),
        progress=lambda *step: told.append(step),
    )(model)
    assert told == [("rounding weights", 1, 2), ("rounding weights", 2, 2)]
