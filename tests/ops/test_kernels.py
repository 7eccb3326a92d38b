"""The kernels' instruction sets, and the transforms without ONNX Runtime on each of them, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import DTypeLike

from tests.ops.native import EMULATED, Kernels, emulated
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


def test_float16_is_converted_exactly(native: Kernels) -> None:
    """All 65536 of them, times a few scales: rounded once to float32 and once to float16, as numpy does."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    one = np.ones((1, 1), np.float16)
    for factor in (1.0, 1 / 3, 2.0**-14, 1000.0):
        scale = np.array([factor], np.float16)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = (x.astype(np.float32) * np.float32(scale[0])).astype(np.float16)
        np.testing.assert_array_equal(native.transform("SharedTransform", x, scale, one), expected)


@pytest.mark.skipif(not EMULATED, reason="this machine is one itself")
@pytest.mark.parametrize(
    ("processor", "isas"), [("cortex-a57", ["portable", "neon"]), ("max", ["portable", "neon", "neondot"])]
)
def test_the_dot_product_is_used_where_the_processor_has_it(processor: str, isas: list[str]) -> None:
    assert emulated(processor).available == isas
