"""Products in operators of our own: what they compute as functions, without the library."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from catonnx.graph.sites import Linear, Selection, find_sites
from catonnx.math.activations import ActivationGrid
from catonnx.math.factors import Blocks, Factor, Hadamard, Scale, Transform
from catonnx.math.rounding import QuantizedWeight, quantize_weight
from catonnx.passes.insert import Insert, OnlineTransform
from catonnx.passes.operator_products import OperatorProducts
from tests.graph.builder import Length, Net, relative_error, run

COLUMNS = 5

GRIDS = {"8": ActivationGrid(8), "4": ActivationGrid(4), "clipped": ActivationGrid(4, clip=0.7)}


def layers(shape: list[Length] | None, width: int, dtype: type = np.float32) -> Net:
    """Read x by two linears, one with a bias, and a Relu."""
    net = Net(seed=3)
    kind = ir.DataType.from_numpy(np.dtype(dtype)).value
    x = net.input("x", shape, kind)
    for index in range(2):
        weight = net.random.normal(size=(width, COLUMNS)) * np.geomspace(0.02, 0.5, COLUMNS)
        value = net.op("MatMul", x, net.constant(weight.astype(dtype)), result=f"y{index}")
        net.output(value)
    net.output(net.op("Relu", x, result="float"))
    return net


def rewritten(model: ir.Model, grid: ActivationGrid, group: int | None) -> list[np.ndarray]:
    """Rewrite every site and return what the weights became."""
    seen: list[np.ndarray] = []

    def rounder(_linear: Linear, weight: np.ndarray, dtype: ir.DataType) -> QuantizedWeight:
        return quantize_weight(weight, group, scale_dtype=dtype.numpy())

    sites = find_sites(model.graph, Selection(head=True)).sites
    observe = lambda _linear, _weight, rounded: seen.append(rounded.dequantize())  # noqa: E731
    assert OperatorProducts(tuple((site, grid) for site in sites), rounder, observe)(model).modified
    return seen


def rows(*shape: int) -> np.ndarray:
    """Return tokens of very different sizes, one of zeros among them."""
    x = np.random.default_rng(0).standard_t(3, shape)
    x *= np.geomspace(1e-3, 1e3, x[..., 0].size).reshape(*shape[:-1], 1)
    if x.ndim > 1:
        x.reshape(-1, shape[-1])[1] = 0
    return np.asarray(x, np.float32)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
@pytest.mark.parametrize("group", [16, 32, None])
@pytest.mark.parametrize("width", [24, 48, 64, 77])
@pytest.mark.parametrize("optimize", [False, True], ids=["as-written", "optimized"])
def test_functions_multiply_what_was_rounded(
    grid: ActivationGrid, group: int | None, width: int, optimize: bool
) -> None:
    model = layers(["batch", "tokens", width], width).model()
    seen = rewritten(model, grid, group)
    assert [node.op_type for node in model.graph] == ["DynamicQuantize", "QuantizedMatMul", "QuantizedMatMul", "Relu"]
    x = rows(2, 4, width)
    results = run(model, {"x": x}, optimize=optimize)
    exact = grid.round(x).astype(np.float64)
    for index, weight in enumerate(seen):
        # Measured 4e-7.
        assert relative_error(exact @ weight, results[f"y{index}"]) < 4e-6
    np.testing.assert_array_equal(results["float"], np.maximum(x, 0))


@pytest.mark.parametrize("shape", [[64], ["rows", 64], None])
def test_ranks(shape: list[Length] | None) -> None:
    model = layers(shape, 64).model()
    (weight, _) = rewritten(model, GRIDS["8"], 32)
    x = rows(*([64] if shape == [64] else [3, 64]))
    assert relative_error(GRIDS["8"].round(x).astype(np.float64) @ weight, run(model, {"x": x})["y0"]) < 4e-6


def test_half_precision_has_scales_in_float32() -> None:
    """A token whose largest number is 6e-5 has a scale that float16 would make zero."""
    model = layers(["rows", 64], 64, np.float16).model()
    for value in model.graph.outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    (weight, _) = rewritten(model, GRIDS["8"], 32)
    x = rows(4, 64).astype(np.float16)
    result = run(model, {"x": x})["y0"]
    assert result.dtype == np.float16
    assert x.any(axis=1).sum() == 3
    exact = GRIDS["8"].round(x.astype(np.float32)).astype(np.float64) @ weight
    for row in np.flatnonzero(x.any(axis=1)):
        # Measured 6e-4, the resolution of float16.
        assert relative_error(exact[row], result[row]) < 4e-3


def test_a_scale_per_channel_is_repeated_for_blocks_that_tile_the_rows() -> None:
    blocks = {}
    for width in (24, 48, 64, 77, 576):
        model = layers(["rows", width], width).model()
        rewritten(model, GRIDS["8"], None)
        node = next(node for node in model.graph if node.op_type == "QuantizedMatMul")
        codes = node.inputs[2]
        assert codes is not None
        assert codes.shape is not None
        blocks[width] = node.attributes.get_int("block_size"), tuple(codes.shape.numpy())
    assert blocks == {
        24: (32, (COLUMNS, 1, 16)),
        48: (16, (COLUMNS, 3, 8)),
        64: (64, (COLUMNS, 1, 32)),
        77: (16, (COLUMNS, 5, 8)),
        576: (64, (COLUMNS, 9, 32)),
    }


@pytest.mark.parametrize(
    "grid", [ActivationGrid(8, symmetric=False), ActivationGrid(8, group_size=16), ActivationGrid(8, fixed=(0.1, 0.0))]
)
def test_other_grids_are_refused(grid: ActivationGrid) -> None:
    with pytest.raises(ValueError, match="one symmetric scale per token"):
        rewritten(layers(["rows", 64], 64).model(), grid, 32)


def test_weights_of_eight_bits_are_refused() -> None:
    model = layers(["rows", 64], 64).model()
    sites = find_sites(model.graph, Selection(head=True)).sites
    pairs = tuple((site, ActivationGrid(8)) for site in sites)
    with pytest.raises(ValueError, match="4 bits, not 8"):
        OperatorProducts(
            pairs, lambda _, weight, dtype: quantize_weight(weight, 32, bits=8, scale_dtype=dtype.numpy())
        )(model)


def test_a_bias_is_added() -> None:
    net = Net(seed=4)
    x = net.input("x", ["rows", 32])
    net.output(net.op("Gemm", x, net.normal(32, COLUMNS), net.vector(COLUMNS), result="y", beta=0.5))
    before = net.model()
    model = net.model()
    (weight,) = rewritten(model, GRIDS["8"], 32)
    x_ = rows(3, 32)
    bias = before.graph.node(0).inputs[2]
    assert bias is not None
    assert bias.const_value is not None
    exact = GRIDS["8"].round(x_).astype(np.float64) @ weight + 0.5 * bias.const_value.numpy()
    assert relative_error(exact, run(model, {"x": x_})["y"]) < 4e-6


@pytest.mark.parametrize(
    ("factors", "operator"),
    [
        ((Scale(np.geomspace(0.5, 2, 96)), Hadamard(96, 32)), "SharedTransform"),
        ((Hadamard(96, 96),), "KroneckerTransform"),
        ((Blocks(np.random.default_rng(0).normal(size=(6, 16, 16))),), "BlockTransform"),
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["all rounded", "one left in float"])
def test_a_transform_that_nothing_else_reads_quantizes_too(
    factors: tuple[Factor, ...], operator: str, whole: bool
) -> None:
    model = layers(["batch", "tokens", 96], 96).model()
    (site,) = find_sites(model.graph, Selection(head=True)).sites
    Insert((OnlineTransform(site, factors),), operators=True)(model)
    rounded, other = site.linears
    left = other if whole else dataclasses.replace(other, reason="left in float")
    chosen = dataclasses.replace(site, linears=(rounded, left))
    seen: list[np.ndarray] = []

    def rounder(linear: Linear, weight: np.ndarray, dtype: ir.DataType) -> QuantizedWeight:
        return quantize_weight(weight, 32, scale_dtype=dtype.numpy())

    observe = lambda _linear, _weight, rounded: seen.append(rounded.dequantize())  # noqa: E731
    OperatorProducts(((chosen, GRIDS["8"]),), rounder, observe)(model)
    before = [f"{operator}Quantize"] if whole else [operator, "DynamicQuantize"]
    assert [node.op_type for node in model.graph if node.domain == "catonnx"][: len(before)] == before
    x = rows(2, 4, 96)
    results = run(model, {"x": x})
    exact = GRIDS["8"].round(Transform(factors).apply(x.reshape(-1, 96).astype(np.float64)).astype(np.float32))
    for index, weight in enumerate(seen):
        result = results[f"y{index}"].reshape(-1, COLUMNS)
        assert relative_error(exact.astype(np.float64) @ weight, result) < 5e-3  # a tie that turns over; else 1e-6
