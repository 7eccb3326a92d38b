"""DynamicQuantize's kernel on every instruction set of this machine, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ops.native import Kernels

WIDTHS = (1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 100, 576, 1001)
NOT_FINITE = (np.nan, -np.nan, np.inf, -np.inf)


def by_numpy(x: np.ndarray, bits: int, clip: float) -> tuple[np.ndarray, np.ndarray]:
    """The contract in float32, operation by operation as a graph of standard operators has it."""
    levels = np.float32(2 ** (bits - 1) - 1)
    scale = np.float32(clip) * np.abs(x).max(axis=1, initial=0) / levels
    scale = np.where(scale == 0, np.float32(1), scale)
    return np.clip(np.rint(x / scale[:, None]), -levels - 1, levels).astype(np.int8), scale


@pytest.mark.parametrize("clip", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_rounds_as_numpy_does(native: Kernels, rows: int, bits: int, clip: float) -> None:
    rng = np.random.default_rng(rows)
    for width in WIDTHS:
        x = rng.standard_t(2, (rows, width)).astype(np.float32) * rng.choice([1e-30, 1e-3, 1, 1e30])
        x = x.astype(np.float32)
        codes, scales = native.quantize_rows(x, bits, clip)
        wanted_codes, wanted_scales = by_numpy(x, bits, clip)
        np.testing.assert_array_equal(scales, wanted_scales)
        np.testing.assert_array_equal(codes, wanted_codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_is_the_contract(native: Kernels, bits: int) -> None:
    """In float64: the scale to two roundings, each code the nearest to within those of the quotient."""
    levels = 2 ** (bits - 1) - 1
    x = np.random.default_rng(1).normal(size=(20, 333)).astype(np.float32)
    codes, scales = native.quantize_rows(x, bits)
    np.testing.assert_allclose(scales, np.abs(x.astype(np.float64)).max(axis=1) / levels, rtol=2**-23)
    assert np.abs(codes).max() == levels
    assert np.abs(codes - x.astype(np.float64) / scales[:, None]).max() <= 0.5 + levels * 2**-24


def test_ties_go_to_even(native: Kernels) -> None:
    ties = np.arange(-126.5, 127, dtype=np.float32)  # of scale 1, because of the 127
    x = np.concatenate([[127], ties]).astype(np.float32)[None]
    codes, scales = native.quantize_rows(x, 8)
    assert scales[0] == 1
    np.testing.assert_array_equal(codes[0, 1:], [round(float(tie)) for tie in ties])
    assert codes[0, 1] == -126
    assert codes[0, 128] == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_of_zeros_has_the_scale_one(native: Kernels, width: int) -> None:
    x = np.ones((3, width), np.float32)
    x[1] = np.where(np.arange(width) % 2, np.float32(0), np.float32(-0.0))
    codes, scales = native.quantize_rows(x, 8)
    np.testing.assert_array_equal(scales, [np.float32(1) / 127, 1, np.float32(1) / 127])
    np.testing.assert_array_equal(codes[1], np.zeros(width))


def test_a_row_of_nothing_has_the_scale_one(native: Kernels) -> None:
    codes, scales = native.quantize_rows(np.zeros((2, 0), np.float32), 8)
    np.testing.assert_array_equal(scales, [1, 1])
    assert codes.shape == (2, 0)


def test_a_scale_too_small_for_float32_is_one(native: Kernels) -> None:
    """1e-45 / 127 is 0, and nothing may be divided by it."""
    codes, scales = native.quantize_rows(np.full((1, 40), 1e-45, np.float32), 8)
    assert scales[0] == 1
    assert not codes.any()


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_not_finite_makes_its_row_not_a_number(native: Kernels, width: int, bad: float) -> None:
    rng = np.random.default_rng(width)
    x = rng.normal(size=(3, width)).astype(np.float32)
    clean_codes, clean_scales = native.quantize_rows(x, 8)
    for place in {0, width // 2, width - 1}:
        spoiled = x.copy()
        spoiled[1, place] = bad
        codes, scales = native.quantize_rows(spoiled, 8)
        assert np.isnan(scales[1])
        assert not codes[1].any()
        np.testing.assert_array_equal(codes[[0, 2]], clean_codes[[0, 2]])
        np.testing.assert_array_equal(scales[[0, 2]], clean_scales[[0, 2]])


def test_a_scale_that_overflows_is_not_a_number(native: Kernels) -> None:
    codes, scales = native.quantize_rows(np.full((1, 20), 3e38, np.float32), 8, clip=2.0)
    assert np.isnan(scales[0])
    assert not codes.any()
