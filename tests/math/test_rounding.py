"""Rounding to 4 bits: what the codes mean, and that the search is never worse than the simple rule."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from catonnx.math import rounding
from catonnx.math.rounding import QuantizedWeight, quantize_weight

Array = NDArray[np.float64]
METHODS: list[Literal["nearest", "mse"]] = ["nearest", "mse"]


def weight_of(rows: int, columns: int, seed: int = 0, tail: float = 0.0) -> Array:
    """Return Gaussian weights; a tail makes some of them outliers."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, columns)) * np.exp(tail * rng.standard_normal((rows, columns)))


def group_errors(weight: Array, quantized: QuantizedWeight) -> Array:
    """Return the squared error of each group, (G, N)."""
    size = quantized.group_size or len(weight)
    squares = (quantized.dequantize() - weight) ** 2
    return np.stack([squares[start : start + size].sum(axis=0) for start in range(0, len(weight), size)])


@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 5),
    group_size=st.sampled_from([None, 1, 2, 16, 32, 100]),
    method=st.sampled_from(METHODS),
    scale_dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    size=st.floats(-3, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_form_and_error_bound(
    rows: int,
    columns: int,
    group_size: int | None,
    method: Literal["nearest", "mse"],
    scale_dtype: type[Any],
    size: float,
    seed: int,
) -> None:
    weight = 10**size * weight_of(rows, columns, seed, tail=1.0)
    quantized = quantize_weight(weight, group_size, method=method, scale_dtype=scale_dtype)
    groups = -(-rows // (group_size or rows))
    assert quantized.codes.shape == (rows, columns)
    assert quantized.codes.dtype == np.int8
    assert quantized.scales.shape == (groups, columns)
    assert quantized.scales.dtype == scale_dtype
    scales = np.repeat(quantized.scales.astype(np.float64), group_size or rows, axis=0)[:rows]
    np.testing.assert_array_equal(quantized.codes, np.clip(np.rint(weight / scales), -8, 7))
    np.testing.assert_array_equal(quantized.dequantize(), quantized.codes * scales)
    if method == "nearest":  # half a step, a whole one where +8 is clipped to 7; float16 rounds scales by 2^-11
        assert np.all(np.abs(quantized.dequantize() - weight) <= np.abs(scales) * 1.01)


@pytest.mark.parametrize("method", METHODS)
def test_codes_belong_to_the_stored_scale(method: Literal["nearest", "mse"]) -> None:
    weight = weight_of(512, 100)
    quantized = quantize_weight(weight, 32, method=method, scale_dtype=np.float16)
    scales = np.repeat(quantized.scales.astype(np.float64), 32, axis=0)
    np.testing.assert_array_equal(quantized.codes, np.clip(np.rint(weight / scales), -8, 7))


@given(
    rows=st.integers(1, 70),
    group_size=st.sampled_from([None, 1, 16, 32]),
    tail=st.floats(0, 2),
    scale_dtype=st.sampled_from([np.float16, np.float32]),
    seed=st.integers(0, 2**32 - 1),
)
def test_mse_is_never_worse_than_nearest(
    rows: int, group_size: int | None, tail: float, scale_dtype: type[Any], seed: int
) -> None:
    weight = weight_of(rows, 4, seed, tail)
    nearest = quantize_weight(weight, group_size, method="nearest", scale_dtype=scale_dtype)
    mse = quantize_weight(weight, group_size, scale_dtype=scale_dtype)
    assert np.all(group_errors(weight, mse) <= group_errors(weight, nearest) * (1 + 1e-12))


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
    monkeypatch.setattr(rounding, "GRID", np.ones(1, dtype=np.float32))
    both_signs = [np.abs(weight).max(axis=0) / 8 * sign for sign in (1, -1)]
    grid_only = np.min(
        [np.sum((np.clip(np.rint(weight / s), -8, 7) * s - weight) ** 2, axis=0) for s in both_signs], axis=0
    ).sum()
    assert group_errors(weight, quantize_weight(weight, 32)).sum() < 0.98 * grid_only  # measured 0.96


def test_nearest_maps_the_largest_magnitude_to_minus_eight() -> None:
    quantized = quantize_weight(np.array([[4.0, -4.0], [-1.0, 1.0], [0.25, 0.75]]), None, method="nearest")
    np.testing.assert_array_equal(quantized.scales, [[-0.5, 0.5]])
    np.testing.assert_array_equal(quantized.codes, [[-8, -8], [2, 2], [0, 2]])  # -0.5 and 1.5: ties to even


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
@pytest.mark.parametrize("scale_dtype", [np.float16, np.float32])
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
    codes, scales = np.zeros((4, 3), dtype=np.int8), np.ones((2, 3))
    with pytest.raises(ValueError, match="4 bits hold -8 to 7"):
        QuantizedWeight(codes + np.int8(8), scales, 2)
    with pytest.raises(ValueError, match="must be int8"):
        QuantizedWeight(codes.astype(np.int16), scales, 2)
    with pytest.raises(ValueError, match=r"has \(1, 3\) groups"):
        QuantizedWeight(codes, scales, None)
