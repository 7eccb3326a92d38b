"""Weights in 4 and 8 bits: layout, numbers and what ONNX Runtime makes of them."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from catonnx.errors import ModelError
from catonnx.graph.sites import Linear, Selection, find_sites
from catonnx.math.rounding import Bits, Method, QuantizedWeight, quantize_weight
from catonnx.passes._weight_codes import int4_tensor, nbits_arrays
from catonnx.passes.canonicalize import Canonicalize
from catonnx.passes.quantize_weights import QuantizeWeights
from tests.graph.builder import Net, relative_error, run

HEAD = Selection(head=True)

Form = Literal["qdq", "nbits"]
FORMS: tuple[Form, ...] = ("qdq", "nbits")


def linear(rows: int, columns: int, *, weight: np.ndarray | None = None) -> Net:
    """Multiply x [batch, rows] by one weight."""
    net = Net(seed=rows * 100 + columns)
    x = net.input("x", ["batch", rows])
    w = net.normal(rows, columns) if weight is None else net.constant(weight)
    net.output(net.op("MatMul", x, w, result="y"))
    return net


def gemm(bias: np.ndarray | str | None, **attributes: Any) -> Net:
    """Multiply x [3, 32] by one weight [32, 32], with a constant bias, or x itself."""
    net = Net(seed=1)
    x = net.input("x", [3, 32])
    inputs = [x, net.normal(32, 32)]
    if bias is not None:
        inputs.append(bias if isinstance(bias, str) else net.constant(bias))
    net.output(net.op("Gemm", *inputs, result="y", **attributes))
    return net


def quantized(
    net: Net,
    *,
    group: int | None = 32,
    form: Form = "qdq",
    bits: Bits = 4,
    method: Method = "mse",
    accuracy_level: int = 0,
) -> tuple[ir.Model, np.ndarray]:
    """Return the model with rounded weights, and its first weight as it is in there."""
    model = net.model()
    Canonicalize(HEAD)(model)
    seen: list[QuantizedWeight] = []
    linears = tuple(linear for site in find_sites(model.graph, HEAD).sites for linear in site.linears)

    def rounder(_linear: Linear, weight: np.ndarray, dtype: ir.DataType) -> QuantizedWeight:
        return quantize_weight(weight, group, bits=bits, method=method, scale_dtype=dtype.numpy())

    QuantizeWeights(linears, rounder, form, accuracy_level, lambda _linear, _weight, each: seen.append(each))(model)
    model.graph.opset_imports.setdefault("com.microsoft", 1)
    return model, seen[0].dequantize()


def feeds(rows: int, batch: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(7).normal(size=(batch, rows)).astype(np.float32)}


def nodes(model: ir.Model, operator: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == operator]


@pytest.mark.parametrize(
    ("group", "axis", "scale_shape"), [(16, 0, (4, 6)), (32, 0, (2, 6)), (128, 0, (1, 6)), (None, 1, (6,))]
)
def test_a_weight_is_dequantized_in_groups_along_its_rows_or_per_column(
    group: int | None, axis: int, scale_shape: tuple[int, ...]
) -> None:
    model, weight = quantized(linear(50, 6), group=group)
    (node,) = nodes(model, "DequantizeLinear")
    codes, scale = (value.const_value for value in node.inputs if value is not None)
    assert codes is not None
    assert scale is not None
    assert (codes.dtype, tuple(codes.shape)) == (ir.DataType.INT4, (50, 6))
    assert (scale.dtype, tuple(scale.shape)) == (ir.DataType.FLOAT, scale_shape)
    assert node.attributes["axis"].as_int() == axis
    assert node.attributes.get_int("block_size", 0) == (group or 0)
    assert len(node.inputs) == 2, "a zero point costs the code -8"
    actual = run(model, feeds(50))["y"]
    # Measured 1e-7: the same products, added in another order.
    assert relative_error(feeds(50)["x"] @ weight, actual) < 1e-6


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 32, None])
@pytest.mark.parametrize(("rows", "columns"), [(32, 8), (33, 5), (20, 3), (7, 1), (129, 7)])
def test_both_forms_compute_the_same(rows: int, columns: int, group: int | None, bits: Bits) -> None:
    models = {form: quantized(linear(rows, columns), group=group, form=form, bits=bits) for form in FORMS}
    np.testing.assert_array_equal(models["qdq"][1], models["nbits"][1])
    expected = feeds(rows)["x"] @ models["qdq"][1]
    for form, (model, _) in models.items():
        actual = run(model, feeds(rows))["y"]
        # Measured 2e-7.
        assert relative_error(expected, actual) < 1e-5, form


@pytest.mark.parametrize("form", ["qdq", "nbits"])
@pytest.mark.parametrize("optimize", [False, True], ids=["as-written", "optimized"])
@pytest.mark.parametrize(
    ("bias", "attributes"),
    [
        (None, {}),
        (np.linspace(1, 2, 32), {}),
        (np.linspace(1, 2, 32), {"beta": 2.0, "alpha": 0.5}),
        (np.linspace(1, 2, 32).reshape(1, 32), {}),
        (np.array(3.0), {}),
        (np.array([3.0]), {"beta": 0.5}),
        (np.linspace(1, 2, 3).reshape(3, 1), {}),
        (np.linspace(1, 2, 96).reshape(3, 32), {"transB": 1}),
        ("x", {}),
        ("x", {"beta": 2.0}),
    ],
    ids=["none", "vector", "alpha-beta", "row", "scalar", "one", "column", "matrix", "activation", "activation-beta"],
)
def test_a_gemm_keeps_its_bias_whatever_its_shape(
    form: Form, optimize: bool, bias: np.ndarray | str | None, attributes: dict[str, float]
) -> None:
    net = gemm(bias, **attributes)
    model, weight = quantized(net, form=form)
    x = feeds(32)["x"]
    expected = x @ weight
    if bias is not None:
        expected = expected + attributes.get("beta", 1.0) * (x if isinstance(bias, str) else bias)
    actual = run(model, {"x": x}, optimize=optimize)["y"]
    # Measured 1e-7 as written; 4e-3 optimized in form qdq, because ONNX Runtime's fusion rounds activations to int8.
    assert relative_error(expected, actual) < (2e-2 if optimize and form == "qdq" else 1e-5)


def test_every_product_has_a_dequantize_of_its_own_even_where_a_weight_was_shared() -> None:
    net = Net()
    x, w = net.input("x", ["batch", 32]), net.normal(32, 32)
    net.output(net.op("MatMul", net.op("MatMul", x, w), w))
    model, _ = quantized(net)
    products = nodes(model, "MatMul")
    dequantizes = [product.inputs[1].producer() for product in products if product.inputs[1] is not None]
    assert len({id(node) for node in dequantizes}) == len(products) == 2
    assert all(node is not None and node.op_type == "DequantizeLinear" for node in dequantizes)
    assert all(len(node.outputs[0].uses()) == 1 for node in dequantizes if node is not None)
    assert not any(value.name == w for value in model.graph.initializers.values()), "the float weight is still there"


@pytest.mark.parametrize("group", [32, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_runtime_fuses_every_dequantize_of_ours(
    tmp_path_factory: pytest.TempPathFactory, group: int | None, bits: Bits
) -> None:
    import onnxruntime as ort

    model, _ = quantized(linear(96, 32), group=group, bits=bits)
    path = tmp_path_factory.mktemp("fused") / "optimized.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    (node,) = onnx.load(path).graph.node
    assert node.op_type == "MatMulNBits"
    assert {attribute.name: attribute.i for attribute in node.attribute}["bits"] == bits


def test_scales_may_be_negative_and_both_forms_take_them() -> None:
    weight = np.tile(np.r_[np.full(15, 0.5), 8.0], 2)[:, None] @ np.ones((1, 4))  # the extreme is positive: -1 * -8
    for form in FORMS:
        model, rounded = quantized(linear(32, 4, weight=weight), form=form, group=16, method="nearest")
        np.testing.assert_allclose(rounded[15], 8)
        scales = [
            v.const_value.numpy()
            for v in model.graph.initializers.values()
            if v.dtype == ir.DataType.FLOAT and v.const_value
        ]
        assert (scales[0] < 0).all()
        assert relative_error(feeds(32)["x"] @ rounded, run(model, feeds(32))["y"]) < 1e-6


def test_the_name_of_the_graphs_output_stays() -> None:
    for form in FORMS:
        model, _ = quantized(linear(32, 32), form=form)
        assert [value.name for value in model.graph.outputs] == ["y"]


def test_an_accuracy_level_is_written_into_the_node() -> None:
    model, _ = quantized(linear(32, 32), form="nbits", accuracy_level=4)
    (node,) = nodes(model, "MatMulNBits")
    wanted = {"K": 32, "N": 32, "bits": 4, "block_size": 32, "accuracy_level": 4}
    assert {name: attribute.as_int() for name, attribute in node.attributes.items()} == wanted


def test_a_weight_of_nan_is_refused_by_name() -> None:
    weight = np.ones((32, 4))
    weight[3, 2] = np.nan
    with pytest.raises(ModelError, match=r"NaN.*--exclude"):
        quantized(linear(32, 4, weight=weight))


def test_eight_bits_are_stored_as_such_in_both_forms() -> None:
    for form, dtype, shape in (("qdq", ir.DataType.INT8, (50, 6)), ("nbits", ir.DataType.UINT8, (6, 2, 32))):
        model, weight = quantized(linear(50, 6), form=form, bits=8)  # type: ignore[arg-type]
        (codes,) = (v for v in model.graph.initializers.values() if v.dtype == dtype)
        assert codes.const_value is not None
        assert tuple(codes.const_value.shape) == shape
        original = linear(50, 6).initializers["w_1"]
        # Measured 4e-3: 8 bits; the same groups in 4 bits measure 7e-2.
        assert relative_error(original, weight) < 1e-2


def test_what_the_rounder_says_decides_bits_and_groups_of_each_linear() -> None:
    net = Net()
    x = net.input("x", ["batch", 32])
    net.output(net.op("MatMul", net.op("MatMul", x, net.normal(32, 32)), net.normal(32, 32)))
    model = net.model()
    first, second = (linear for site in find_sites(model.graph, HEAD).sites for linear in site.linears)

    def rounder(linear: Linear, weight: np.ndarray, _dtype: ir.DataType) -> QuantizedWeight:
        return quantize_weight(weight, 16, bits=4) if linear is first else quantize_weight(weight, None, bits=8)

    QuantizeWeights((first, second), rounder)(model)
    kinds = [node.inputs[0].dtype for node in nodes(model, "DequantizeLinear") if node.inputs[0] is not None]
    assert kinds == [ir.DataType.INT4, ir.DataType.INT8]
    assert [node.attributes["axis"].as_int() for node in nodes(model, "DequantizeLinear")] == [0, 1]


@pytest.mark.parametrize("value", [-9, 8, 127])
def test_codes_outside_four_bits_are_refused_before_packing_wraps_them(value: int) -> None:
    with pytest.raises(ValueError, match="int4 holds -8 to 7"):
        int4_tensor(np.array([[0, value]], np.int8))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 4), (16, 16), (15, 1)])
def test_packed_codes_read_back_as_they_were(shape: tuple[int, int]) -> None:
    codes = np.resize(np.array(list(itertools.chain(range(-8, 8))), np.int8), shape)
    tensor = int4_tensor(codes)
    np.testing.assert_array_equal(tensor.numpy().astype(np.int8), codes)
    proto = ir.to_proto(tensor)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(proto).astype(np.int8), codes)


def test_nbits_rows_are_padded_with_the_code_of_zero() -> None:
    codes = np.arange(-8, 9, dtype=np.int8).clip(-8, 7).reshape(17, 1)
    packed, scales = nbits_arrays(QuantizedWeight(codes, np.ones((2, 1), np.float32), 16), 16)
    assert (packed.shape, scales.shape) == ((1, 2, 8), (2,))
    nibbles = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(-1)
    np.testing.assert_array_equal(nibbles[:17].astype(int) - 8, codes.reshape(-1))
    assert (nibbles[17:] == 8).all()
