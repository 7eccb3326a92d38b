"""Rounding to 4 and 8 bits: what the codes mean, and that the search is never worse than the simple rule."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from catonnx.math import rounding
from catonnx.math.rounding import Bits, QuantizedWeight, code_range, quantize_weight

pytestmark = pytest.mark.usefixtures("all_cores")


Array = NDArray[np.float64]
METHODS: list[Literal["nearest", "mse"]] = ["nearest", "mse"]


def weight_of(rows: int, columns: int, seed: int = 0, tail: float = 0.0) -> Array:
    """Return Gaussian weights; a tail makes some of them outliers."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, columns)) * np.exp(tail * rng.standard_normal((rows, columns)))


def group_errors(weight: Array, quantized: QuantizedWeight, importance: Array | None = None) -> Array:
    """Return the squared error of each group, (G, N)."""
    size = quantized.group_size or len(weight)
    squares = (quantized.dequantize() - weight) ** 2
    if importance is not None:
        squares *= importance[:, None]
    return np.stack([squares[start : start + size].sum(axis=0) for start in range(0, len(weight), size)])


@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 5),
    group_size=st.sampled_from([None, 1, 2, 16, 32, 100]),
    bits=st.sampled_from([4, 8]),
    method=st.sampled_from(METHODS),
    signed=st.booleans(),
    scale_dtype=st.sampled_from([bfloat16, np.float16, np.float32, np.float64]),
    size=st.floats(-2, 3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_form_and_error_bound(
    rows: int,
    columns: int,
    group_size: int | None,
    bits: Bits,
    method: Literal["nearest", "mse"],
    signed: bool,
    scale_dtype: type[Any],
    size: float,
    seed: int,
) -> None:
    weight = 10**size * weight_of(rows, columns, seed, tail=1.0)
    quantized = quantize_weight(weight, group_size, bits=bits, method=method, signed=signed, scale_dtype=scale_dtype)
    groups = -(-rows // (group_size or rows))
    assert quantized.codes.shape == (rows, columns)
    assert quantized.codes.dtype == np.int8
    assert quantized.scales.shape == (groups, columns)
    assert quantized.scales.dtype == scale_dtype
    assert quantized.bits == bits
    assert signed or np.all(quantized.scales > 0)
    scales = np.repeat(quantized.scales.astype(np.float64), group_size or rows, axis=0)[:rows]
    np.testing.assert_array_equal(quantized.codes, np.clip(np.rint(weight / scales), *code_range(bits)))
    np.testing.assert_array_equal(quantized.dequantize(), quantized.codes * scales)
    if method == "nearest":  # half a step, a whole one where 2^(b-1) is clipped; 16 bits round scales, and few digits
        slack = 0.02 * 2 ** (bits - 4) if scale_dtype in (bfloat16, np.float16) else 0.01  # are left of small ones
        assert np.all(np.abs(quantized.dequantize() - weight) <= np.abs(scales) * (1 + slack))


@pytest.mark.parametrize("method", METHODS)
def test_codes_belong_to_the_stored_scale(method: Literal["nearest", "mse"]) -> None:
    weight = weight_of(512, 100)
    quantized = quantize_weight(weight, 32, method=method, scale_dtype=np.float16)
    scales = np.repeat(quantized.scales.astype(np.float64), 32, axis=0)
    np.testing.assert_array_equal(quantized.codes, np.clip(np.rint(weight / scales), -8, 7))


@given(
    rows=st.integers(1, 70),
    group_size=st.sampled_from([None, 1, 16, 32]),
    bits=st.sampled_from([4, 8]),
    signed=st.booleans(),
    counted=st.booleans(),
    tail=st.floats(0, 2),
    scale_dtype=st.sampled_from([bfloat16, np.float16, np.float32]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_mse_is_never_worse_than_nearest(
    rows: int,
    group_size: int | None,
    bits: Bits,
    signed: bool,
    counted: bool,
    tail: float,
    scale_dtype: type[Any],
    seed: int,
) -> None:
    weight = weight_of(rows, 4, seed, tail)
    importance = np.random.default_rng(seed).lognormal(0, 3, rows) if counted else None
    nearest, mse = (
        quantize_weight(
            weight, group_size, bits=bits, method=m, signed=signed, scale_dtype=scale_dtype, importance=importance
        )
        for m in METHODS
    )
    counts = np.ones(rows) if importance is None else importance
    assert np.all(group_errors(weight, mse, counts) <= group_errors(weight, nearest, counts) * (1 + 1e-12))


@pytest.mark.parametrize(("tail", "gain"), [(0.0, 1.1), (1.0, 1.03)])  # measured 1.12 and 1.05
@pytest.mark.parametrize("group_size", [32, None])
def test_mse_gains_over_nearest(tail: float, gain: float, group_size: int | None) -> None:
    weight = weight_of(128, 200, tail=tail)
    nearest, mse = (
        group_errors(weight, quantize_weight(weight, group_size, method=method)).sum() for method in METHODS
    )
    assert nearest > gain * mse


def test_mse_is_close_to_an_exhaustive_search() -> None:
    weight = weight_of(32, 20, tail=0.5)
    peak = np.abs(weight).max(axis=0)
    best = np.full(20, np.inf)
    for factor in np.linspace(0.2, 1.2, 2001):
        for sign in (1, -1):
            scales = sign * factor * peak / 8
            best = np.minimum(best, np.sum((np.clip(np.rint(weight / scales), -8, 7) * scales - weight) ** 2, axis=0))
    found = group_errors(weight, quantize_weight(weight, 32)).sum()
    assert found < 1.01 * best.sum()  # measured 1.002


def test_refinement_lowers_the_error_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_of(32, 500)
    monkeypatch.setitem(rounding.GRIDS, 4, np.ones(1, dtype=np.float32))
    both_signs = [np.abs(weight).max(axis=0) / 8 * sign for sign in (1, -1)]
    grid_only = np.min(
        [np.sum((np.clip(np.rint(weight / s), -8, 7) * s - weight) ** 2, axis=0) for s in both_signs], axis=0
    ).sum()
    assert group_errors(weight, quantize_weight(weight, 32)).sum() < 0.98 * grid_only  # measured 0.96


def test_nearest_maps_the_largest_magnitude_to_minus_eight() -> None:
    quantized = quantize_weight(np.array([[4.0, -4.0], [-1.0, 1.0], [0.25, 0.75]]), None, method="nearest")
    np.testing.assert_array_equal(quantized.scales, [[-0.5, 0.5]])
    np.testing.assert_array_equal(quantized.codes, [[-8, -8], [2, 2], [0, 2]])  # -0.5 and 1.5: ties to even


@pytest.mark.parametrize(("bits", "low", "high"), [(4, -8, 7), (8, -128, 127)])
def test_range_of_codes(bits: Bits, low: int, high: int) -> None:
    weight = np.array([[4.0, -4.0], [-1.0, 1.0], [0.25, 0.75]])
    signed = quantize_weight(weight, None, bits=bits, method="nearest")
    assert code_range(bits) == (low, high)
    np.testing.assert_array_equal(signed.codes[0], [low, low])
    np.testing.assert_array_equal(signed.scales, np.array([[4 / low, -4 / low]], dtype=np.float32))
    positive = quantize_weight(weight, None, bits=bits, method="nearest", signed=False)
    np.testing.assert_array_equal(positive.codes[0], [high, -high])
    np.testing.assert_array_equal(positive.scales, np.array([[4 / high, 4 / high]], dtype=np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_eight_bits_are_sixteen_times_finer(method: Literal["nearest", "mse"]) -> None:
    weight = weight_of(128, 200)
    coarse, fine = (
        quantize_weight(weight, 32, bits=4, method=method),
        quantize_weight(weight, 32, bits=8, method=method),
    )
    ratio = np.sqrt(group_errors(weight, coarse).sum() / group_errors(weight, fine).sum())
    assert 15.5 < ratio < 17  # measured 16.3


def test_signed_scales_are_worth_half_a_decibel() -> None:
    weight = weight_of(128, 500)
    signed, positive = (group_errors(weight, quantize_weight(weight, 32, signed=s)).sum() for s in (True, False))
    assert 1.1 * signed < positive  # measured 1.125


def test_positive_scales_may_use_the_lowest_code() -> None:
    weight = np.arange(-8.0, 8.0)[:, None]
    np.testing.assert_allclose(quantize_weight(weight, None, signed=False).dequantize(), weight, rtol=0, atol=1e-6)
    turned = quantize_weight(-weight, None, signed=False)
    assert turned.scales[0, 0] > 0
    assert np.abs(turned.dequantize() + weight).max() > 0.1


def test_importance_decides_who_is_clipped() -> None:
    weight = weight_of(32, 200)
    weight[0] = 8.0
    counts = np.ones(32)
    counts[0] = 1e-9
    without = quantize_weight(weight, None, importance=counts)
    alone = quantize_weight(weight[1:], None)
    rest = group_errors(weight[1:], alone).sum()
    assert group_errors(weight, without, counts).sum() < 1.4 * rest  # measured 1.21
    assert group_errors(weight, quantize_weight(weight, None), counts).sum() > 8 * rest  # measured 11.6
    np.testing.assert_array_equal(
        quantize_weight(weight, 8, importance=np.full(32, 0.3)).codes, quantize_weight(weight, 8).codes
    )
    nothing = quantize_weight(weight, 8, importance=np.zeros(32))
    np.testing.assert_array_equal(nothing.scales, quantize_weight(weight, 8, method="nearest").scales)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_mse_finds_the_sign_of_the_long_side(sign: float) -> None:
    weight = sign * np.arange(-8.0, 8.0)[:, None]
    quantized = quantize_weight(weight, None)
    np.testing.assert_allclose(quantized.dequantize(), weight, rtol=0, atol=1e-6)  # measured 0
    assert np.sign(quantized.scales[0, 0]) == sign


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("group_size", [16, 24, None])
def test_groups_and_columns_do_not_see_each_other(
    monkeypatch: pytest.MonkeyPatch, method: Literal["nearest", "mse"], group_size: int | None
) -> None:
    weight = weight_of(100, 150)  # 100 rows: the last group is shorter
    whole = quantize_weight(weight, group_size, method=method)
    monkeypatch.setattr(rounding, "ELEMENTS_PER_CHUNK", 700)  # many chunks in both directions
    chunked = quantize_weight(weight, group_size, method=method)
    np.testing.assert_array_equal(chunked.codes, whole.codes)
    np.testing.assert_array_equal(chunked.scales, whole.scales)
    size = group_size or 100
    last = (100 - 1) // size * size
    alone = quantize_weight(weight[last:, 140:], None, method=method)
    np.testing.assert_array_equal(alone.codes, whole.codes[last:, 140:])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale_dtype", [bfloat16, np.float16, np.float32])
def test_zero_and_tiny_groups_are_finite(method: Literal["nearest", "mse"], scale_dtype: type[Any]) -> None:
    weight = weight_of(4, 3)
    weight[:2, 0] = 0.0
    weight[:, 1] = 1e-30
    weight[:, 2] = 5e-324
    quantized = quantize_weight(weight, 2, method=method, scale_dtype=scale_dtype)
    assert np.isfinite(quantized.scales).all()
    assert np.all(quantized.scales != 0)
    assert quantized.scales[0, 0] == 1
    assert not quantized.codes[:2, 0].any()


def test_small_weights_keep_their_digits_in_half_precision() -> None:
    weight = 1e-4 * weight_of(32, 200)  # scales of 3e-5 are subnormal in float16
    single, half = (
        group_errors(weight, quantize_weight(weight, 32, scale_dtype=t)).sum() for t in (np.float32, np.float16)
    )
    assert half < 1.01 * single  # measured 1.000


def test_weight_is_left_alone_and_float32_is_enough() -> None:
    weight = weight_of(64, 5).astype(np.float32)
    before = weight.copy()
    codes = quantize_weight(weight, 32).codes
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(codes, quantize_weight(np.asfortranarray(weight.astype(np.float64)), 32).codes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_bad_values_are_refused(value: float, method: Literal["nearest", "mse"]) -> None:
    weight = weight_of(40, 3)
    weight[35, 1] = value
    with pytest.raises(ValueError, match="NaN or Inf"):
        quantize_weight(weight, 32, method=method)


def test_nonsense_is_refused() -> None:
    weight = weight_of(4, 3)
    for bad in (weight[0], weight[:0], weight.astype(np.int64)):
        with pytest.raises(ValueError, match="must be floating point"):
            quantize_weight(bad, None)
    with pytest.raises(ValueError, match="group size is 0"):
        quantize_weight(weight, 0)
    with pytest.raises(ValueError, match="method 'gptq' is unknown"):
        quantize_weight(weight, None, method="gptq")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be int8"):
        quantize_weight(weight, None, scale_dtype=np.int8)
    with pytest.raises(ValueError, match="overflows float16"):
        quantize_weight(1e7 * weight, None, scale_dtype=np.float16)
    with pytest.raises(ValueError, match="overflows bfloat16"):
        quantize_weight(1e38 * np.full((4, 3), 1e3), None, scale_dtype=bfloat16)
    with pytest.raises(ValueError, match="cannot be stored in 3 bits"):
        quantize_weight(weight, None, bits=3)  # type: ignore[arg-type]
    for importance in (np.ones(3), -np.ones(4), np.full(4, np.nan)):
        with pytest.raises(ValueError, match=r"must be \(4,\)"):
            quantize_weight(weight, None, importance=importance)
    codes, scales = np.zeros((4, 3), dtype=np.int8), np.ones((2, 3))
    with pytest.raises(ValueError, match="4 bits hold -8 to 7"):
        QuantizedWeight(codes + np.int8(8), scales, 2)
    with pytest.raises(ValueError, match="must be int8"):
        QuantizedWeight(codes.astype(np.int16), scales, 2)
    with pytest.raises(ValueError, match=r"has \(1, 3\) groups"):
        QuantizedWeight(codes, scales, None)
    assert QuantizedWeight(codes + np.int8(8), scales, 2, bits=8).bits == 8
    with pytest.raises(ValueError, match="cannot be stored in 2 bits"):
        QuantizedWeight(codes, scales, 2, bits=2)  # type: ignore[arg-type]
