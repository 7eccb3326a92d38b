"""The kernels' instruction sets, and the transforms without ONNX Runtime on each of them, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import DTypeLike

from catonnx.math.hadamard import hadamard_matrix
from tests.ops.native import ARM_EMULATED, Kernels, arm
from tests.ops.running import sylvester, tolerance, transformed

TYPES = (np.float32, np.float16)


def check(native: Kernels, op: str, x: np.ndarray, scale: np.ndarray, *matrices: np.ndarray) -> None:
    y = native.transform(op, x, scale, *matrices)
    wrong = ~(np.abs(y - transformed(op, x, scale, *matrices)) <= tolerance(op, x, scale, *matrices))
    assert not wrong.any(), (op, x.shape, [matrix.shape for matrix in matrices], np.argwhere(wrong)[:5])


def drawn(rng: np.random.Generator, dtype: DTypeLike, *shape: int) -> np.ndarray:
    values: np.ndarray = rng.standard_normal(shape).astype(dtype)
    return values


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("power", range(12))
def test_every_width_of_walsh_hadamard(native: Kernels, power: int, dtype: DTypeLike) -> None:
    rng, size = np.random.default_rng(power), 1 << power
    x = drawn(rng, dtype, 2, 3 * size)
    scale = rng.uniform(0.5, 2, 3 * size).astype(dtype)
    outer = 1 << power // 2
    pair = [(sylvester(part) / part**0.5).astype(dtype) for part in (outer, size // outer)]
    check(native, "KroneckerTransform", x, scale, *pair)
    if size <= 256:
        check(native, "SharedTransform", x, scale, (sylvester(size) / size**0.5).astype(dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 3, 13])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 15, 16, 17, 24, 33, 48, 64, 80])
def test_matrices_of_any_size(native: Kernels, size: int, rows: int, dtype: DTypeLike) -> None:
    rng = np.random.default_rng(size)
    x, one = drawn(rng, dtype, rows, 3 * size), np.ones(1, dtype)
    check(native, "SharedTransform", x, one, drawn(rng, dtype, size, size))
    check(native, "BlockTransform", x, drawn(rng, dtype, 3 * size), drawn(rng, dtype, 3, size, size))
    check(native, "KroneckerTransform", x, one, drawn(rng, dtype, 3, 3), drawn(rng, dtype, size, size))
    check(native, "KroneckerTransform", x, one, drawn(rng, dtype, size, size), sylvester(1).astype(dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("inner", [1, 4, 16, 24, 128, 512])
@pytest.mark.parametrize("outer", [12, 36])
def test_matrices_made_of_a_few_sums(native: Kernels, outer: int, inner: int, dtype: DTypeLike) -> None:
    rng, size = np.random.default_rng(inner), outer * inner
    first = hadamard_matrix(outer).astype(dtype)
    second = hadamard_matrix(inner).astype(dtype)
    for scales in (1, 2 * size):
        scale = rng.uniform(0.5, 2, scales).astype(dtype)
        check(native, "KroneckerTransform", drawn(rng, dtype, 3, 2 * size), scale, first, second)
        check(native, "KroneckerTransform", drawn(rng, dtype, 3, 2 * size), scale, -first.T, second)


@pytest.mark.parametrize("order", [12, 36])
def test_these_matrices_are_known_by_every_entry(native: Kernels, order: int) -> None:
    matrix = hadamard_matrix(order)
    assert all(native.knows(factor * matrix) for factor in (1, -0.3, order**0.5))
    for place in range(1, order * order):
        other = matrix.copy()
        other.flat[place] *= -1
        assert not native.knows(other), divmod(place, order)
    assert not any(map(native.knows, (0 * matrix, np.nan * matrix, hadamard_matrix(order + 8), sylvester(4))))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [240, 256, 512])
def test_scales_that_are_all_the_same(native: Kernels, channels: int, dtype: DTypeLike) -> None:
    """They stand as 256 numbers, and so do those of 256 channels."""
    rng = np.random.default_rng(channels)
    x, matrix = drawn(rng, dtype, 3, channels), drawn(rng, dtype, 16, 16)
    scale = np.full(channels, 0.7, dtype)
    for place in (None, 0, channels - 1):
        if place is not None:
            scale[place] = 3
        check(native, "SharedTransform", x, scale, matrix)
        check(native, "SharedTransform", x, scale, (sylvester(16) / 4).astype(dtype))


def test_float16_is_converted_exactly(native: Kernels) -> None:
    """All 65536 of them, times a few scales: rounded once to float32 and once to float16, as numpy does."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    one = np.ones((1, 1), np.float16)
    for factor in (1.0, 1 / 3, 2.0**-14, 1000.0):
        scale = np.array([factor], np.float16)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = (x.astype(np.float32) * np.float32(scale[0])).astype(np.float16)
        np.testing.assert_array_equal(native.transform("SharedTransform", x, scale, one), expected)


@pytest.mark.skipif(not ARM_EMULATED, reason="this machine is one itself")
@pytest.mark.parametrize(
    ("processor", "isas"), [("cortex-a57", ["portable", "neon"]), ("max", ["portable", "neon", "neondot"])]
)
def test_the_dot_product_is_used_where_the_processor_has_it(processor: str, isas: list[str]) -> None:
    assert arm(processor).available == isas
