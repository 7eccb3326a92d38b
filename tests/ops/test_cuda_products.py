"""The CUDA kernels of QuantizedMatMul, emulated, against int64 and float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16

from catonnx.ops.build import find_compiler
from tests.ops.emulated import ORDERS, Emulated, aligned, compiled, emulated
from tests.ops.native import Product, exact, random_product, random_rows, run
from tests.ops.running import rounding

ROOT = Path(__file__).resolve().parent.parent.parent

GROUPS = (16, 32, 64, 128, 256, 0)
"""0 stands for all of K, rounded up to 16."""
CHANNELS = (1, 7, 16, 24, 33, 64, 100, 129, 250, 288, 576)
COLUMNS = (1, 3, 9, 16, 33, 70, 130)
ROWS = (0, 1, 2, 3, 8, 9, 17, 40, 130)
"""Up to 16 rows are streamed; more go through tiles of 32 x 64, or of 128 x 128 where processors are few."""

MANY = 100
"""Processors, so that tiles are small."""


@pytest.fixture(params=ORDERS, ids=["forwards", "backwards", "shuffled"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Emulated]:
    """The kernels, with threads that take turns in several orders."""
    there = emulated()
    with there.under(*request.param):
        yield there


def drawn(rng: np.random.Generator, K: int, N: int, group: int, *, half: bool = False, alike: bool = False) -> Product:
    """Draw a weight; with `alike`, one scale for each column."""
    made = random_product(rng, K, N, group or -(-K // 16) * 16)
    scales = made.scales[:, :1].repeat(made.scales.shape[1], 1) if alike else made.scales
    typed = aligned(scales.astype(np.float16 if half else np.float32))
    return Product(K, N, made.group, aligned(made.codes), typed)


def check(
    kernels: Emulated, product: Product, a: np.ndarray, a_scale: np.ndarray, channels: bool = False
) -> np.ndarray:
    wanted, bound = exact(product, a, a_scale)
    bound = bound + rounding(wanted, product.scales.dtype)
    y = kernels.multiply(product, aligned(a), aligned(a_scale), channels=channels)
    wrong = ~(np.abs(y - wanted) <= bound)
    assert not wrong.any(), (product.K, product.N, product.group, len(a), np.argwhere(wrong)[:5])
    return y


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("group", GROUPS)
def test_products_are_right(kernels: Emulated, group: int, rows: int) -> None:
    rng = np.random.default_rng([rows, group, kernels.seed])
    for alike in (False, True):
        K, N, half = int(rng.choice(CHANNELS)), int(rng.choice(COLUMNS)), bool(rng.integers(2))
        product = drawn(rng, K, N, group, half=half, alike=alike)
        check(kernels, product, *random_rows(rng, rows, K), channels=alike)


def test_bfloat16() -> None:
    kernels, rng = emulated(), np.random.default_rng(11)
    for rows in (1, 5, 20):
        for group in (16, 64, 0):
            product = drawn(rng, 100, 33, group)
            narrow = Product(100, 33, product.group, product.codes, aligned(product.scales.astype(bfloat16)))
            check(kernels, narrow, *random_rows(rng, rows, 100))


@pytest.mark.parametrize("rows", [1, 4, 20])
@pytest.mark.parametrize("group", [16, 0])
def test_more_channels_than_fit_into_shared_memory(kernels: Emulated, group: int, rows: int) -> None:
    rng = np.random.default_rng(8)
    K = 5000 if rows > 2 else 17408
    check(kernels, drawn(rng, K, 5, group), *random_rows(rng, rows, K))


@pytest.mark.parametrize(("code", "activation"), [(0, -128), (15, 127), (0, 127)])
@pytest.mark.parametrize("group", [16, 128, 256, 0])
def test_the_largest_sums_are_exact(group: int, code: int, activation: int) -> None:
    """With scales of 1 all numbers are whole and, at 2048 * 8 * 128, at most 2^21: float32 holds each of them."""
    kernels, K, N = emulated(), 2048, 3
    size = group or K
    codes = np.full((N, K // size, size // 2), code * 17, np.uint8)
    product = Product(K, N, size, aligned(codes), np.ones((N, K // size), np.float32))
    wanted = np.float32(K * (code - 8) * activation)
    for rows in (1, 8, 17):
        a, a_scale = np.full((rows, K), activation, np.int8), np.ones(rows, np.float32)
        for channels in (False, True):
            y = kernels.multiply(product, aligned(a), a_scale, channels=channels)
            np.testing.assert_array_equal(y, np.full((rows, N), wanted))


@pytest.mark.parametrize("rows", [1, 17])
def test_sums_that_no_int32_holds(rows: int) -> None:
    """What is added up is 16 times too large: a whole row of 2^17 channels has to be cut."""
    kernels, K = emulated(), 1 << 17
    product = Product(K, 1, K, np.full((1, 1, K // 2), 0, np.uint8), np.ones((1, 1), np.float32))
    a, a_scale = np.full((rows, K), -128, np.int8), np.ones(rows, np.float32)
    with kernels.under(0, False, MANY):
        y = kernels.multiply(product, aligned(a), a_scale, channels=True)
    np.testing.assert_array_equal(y, np.full((rows, 1), np.float32(K * 1024)))


@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("group", [16, 32, 0])
def test_each_nibble_meets_its_own_channel(group: int, rows: int) -> None:
    """One activation at a time: what comes out is that channel of the weight."""
    kernels, rng = emulated(), np.random.default_rng(5)
    K, N = 41, 5
    product = drawn(rng, K, N, group)
    for k in range(K):
        a = np.zeros((rows, K), np.int8)
        a[rows // 2, k] = 1
        with kernels.under(0, False, MANY):
            y = kernels.multiply(product, aligned(a), np.ones(rows, np.float32))
        byte = product.codes.reshape(N, -1)[:, k // 2]
        code = (byte >> 4 if k % 2 else byte & 15).astype(np.float32) - 8
        np.testing.assert_array_equal(y[rows // 2], code * product.scales[:, k // product.group])
        assert not np.delete(y, rows // 2, axis=0).any()


@pytest.mark.parametrize("rows", [3, 30])
def test_a_row_that_is_not_a_number_stays_alone(rows: int) -> None:
    kernels, rng = emulated(), np.random.default_rng(7)
    product = drawn(rng, 96, 40, 32)
    a, a_scale = random_rows(rng, rows, 96)
    a_scale[1] = np.nan
    y = kernels.multiply(product, aligned(a), a_scale)
    assert np.isnan(y[1]).all()
    others = np.arange(rows) != 1
    wanted, bound = exact(product, a[others], a_scale[others])
    assert (np.abs(y[others] - wanted) <= bound).all()


def test_sanitizers_find_nothing() -> None:
    """Products and transforms once more, with sanitizers that know the end of every operand and of shared memory."""
    emulated()  # skips where there is no compiler
    runtime = run([*find_compiler(), "-print-file-name=libasan.so"]).strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the compiler came without libasan.so")
    library = compiled("-fsanitize=address,undefined", "-fno-sanitize-recover=all") / "emulated.so"
    printed = run(
        [sys.executable, "-m", "tests.ops.emulated_guarded", str(library)],
        PYTHONPATH=str(ROOT),
        LD_PRELOAD=runtime,
        ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0",
    )
    assert "all right" in printed
