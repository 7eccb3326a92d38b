"""QuantizedMatMul's kernels on every instruction set of this machine, against int64 and float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catonnx.ops.build import find_compiler
from tests.ops.native import (
    EMULATED,
    ISAS,
    SANITIZERS,
    Kernels,
    Product,
    exact,
    kernels,
    random_product,
    random_rows,
    run,
    server,
)

GROUPS = (16, 32, 64, 128, 256, 0)
"""0 stands for all of K, rounded up to 16."""
CHANNELS = (1, 2, 15, 16, 17, 33, 64, 95, 128, 129, 250, 257, 576, 1000)
COLUMNS = (1, 3, 4, 7, 16, 17, 31, 33, 70)
ROWS = (0, 1, 2, 3, 7, 8, 9, 17, 33, 100)


def width(group: int, K: int) -> int:
    return group or -(-K // 16) * 16


def assert_close(y: np.ndarray, product: Product, a: np.ndarray, a_scale: np.ndarray) -> None:
    wanted, bound = exact(product, a, a_scale)
    wrong = ~(np.abs(y - wanted) <= bound)
    assert not wrong.any(), (product.K, product.N, product.group, len(a), np.argwhere(wrong)[:5])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("group", GROUPS)
def test_products_are_right(native: Kernels, group: int, rows: int) -> None:
    rng = np.random.default_rng(rows * 1000 + group)
    for K in CHANNELS:
        N = int(rng.choice(COLUMNS))
        product = random_product(rng, K, N, width(group, K))
        a, a_scale = random_rows(rng, rows, K)
        assert_close(native.multiply(product, a, a_scale), product, a, a_scale)


@pytest.mark.parametrize("group", [32, 0])
def test_more_rows_than_a_block_has(native: Kernels, group: int) -> None:
    rng = np.random.default_rng(8)
    product = random_product(rng, 22001, 3, width(group, 22001))
    a, a_scale = random_rows(rng, 110, 22001)
    assert_close(native.multiply(product, a, a_scale), product, a, a_scale)


@pytest.mark.parametrize("rows", [1, 4, 8, 9, 40])
@pytest.mark.parametrize("columns", [(0, 0), (0, 1), (1, 4), (3, 38), (5, 6), (32, 64), (31, 70), (69, 70), (70, 70)])
def test_a_range_of_columns_is_all_that_is_written(native: Kernels, rows: int, columns: tuple[int, int]) -> None:
    rng = np.random.default_rng(rows)
    product = random_product(rng, 200, 70, 32)
    a, a_scale = random_rows(rng, rows, 200)
    first, last = columns
    y = native.multiply(product, a, a_scale, columns)
    some = Product(200, last - first, 32, product.codes[first:last], product.scales[first:last])
    assert_close(y[:, first:last], some, a, a_scale)
    assert np.isnan(np.delete(y, slice(first, last), axis=1)).all()


@pytest.mark.parametrize("activation", [-128, -127, 127])
@pytest.mark.parametrize("code", [0, 15])
@pytest.mark.parametrize("group", GROUPS)
def test_the_largest_sums_are_exact(native: Kernels, group: int, code: int, activation: int) -> None:
    """With scales of 1 all numbers are whole and, at 16384 * 8 * 128, at most 2^24: float32 holds each of them."""
    K, N, rows = 16384, 5, 67  # more rows than one block of the kernels has
    size = width(group, K)
    codes = np.full((N, K // size, size // 2), code * 17, np.uint8)
    product = Product(K, N, size, codes, np.ones((N, K // size), np.float32))
    wanted = np.float32(K * (code - 8) * activation)
    for count in (1, 3, rows):
        y = native.multiply(product, np.full((count, K), activation, np.int8), np.ones(count, np.float32))
        np.testing.assert_array_equal(y, np.full((count, N), wanted))


@pytest.mark.parametrize("rows", [1, 5, 12])
@pytest.mark.parametrize("group", GROUPS)
def test_each_nibble_meets_its_own_channel(native: Kernels, group: int, rows: int) -> None:
    """One activation at a time: what comes out is that channel of the weight."""
    rng = np.random.default_rng(5)
    K, N = 150, 6
    product = random_product(rng, K, N, width(group, K))
    for k in range(K):
        a = np.zeros((rows, K), np.int8)
        a[rows // 2, k] = 1
        y = native.multiply(product, a, np.ones(rows, np.float32))
        byte = product.codes.reshape(N, -1)[:, k // 2]
        code = (byte >> 4 if k % 2 else byte & 15).astype(np.float32) - 8
        np.testing.assert_array_equal(y[rows // 2], code * product.scales[:, k // product.group])
        assert not np.delete(y, rows // 2, axis=0).any()


@pytest.mark.parametrize("rows", [1, 8, 20])
@pytest.mark.parametrize("group", GROUPS)
def test_padding_is_ignored(native: Kernels, group: int, rows: int) -> None:
    rng = np.random.default_rng(6)
    K = 261
    product = random_product(rng, K, 9, width(group, K))
    a, a_scale = random_rows(rng, rows, K)
    codes = product.codes.copy()
    flat = codes.reshape(9, -1)
    flat[:, K // 2] ^= 0xF0
    flat[:, K // 2 + 1 :] ^= 0xFF
    other = Product(K, 9, product.group, codes, product.scales)
    np.testing.assert_array_equal(native.multiply(product, a, a_scale), native.multiply(other, a, a_scale))


@pytest.mark.parametrize("rows", [3, 30])
def test_a_row_that_is_not_a_number_stays_alone(native: Kernels, rows: int) -> None:
    rng = np.random.default_rng(7)
    product = random_product(rng, 96, 40, 32)
    a, a_scale = random_rows(rng, rows, 96)
    a_scale[1] = np.nan
    y = native.multiply(product, a, a_scale)
    assert np.isnan(y[1]).all()
    others = np.arange(rows) != 1
    assert_close(y[others], product, a[others], a_scale[others])


def test_no_channels_give_zeros(native: Kernels) -> None:
    product = Product(0, 3, 16, np.zeros((3, 0, 8), np.uint8), np.zeros((3, 0), np.float32))
    y = native.multiply(product, np.zeros((2, 0), np.int8), np.ones(2, np.float32))
    np.testing.assert_array_equal(y, np.zeros((2, 3), np.float32))


def check_random_shapes(native: Kernels) -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        K, N, rows = int(rng.integers(1, 300)), int(rng.integers(1, 70)), int(rng.integers(1, 40))
        product = random_product(rng, K, N, width(int(rng.choice(GROUPS)), K))
        a, a_scale = random_rows(rng, rows, K)
        assert_close(native.multiply(product, a, a_scale), product, a, a_scale)
        x = rng.normal(size=(rows, K)).astype(np.float32)
        codes, scales = native.quantize_rows(x, 8)
        assert (np.abs(codes * scales[:, None] - x) <= 0.5001 * scales[:, None]).all(), (K, rows)


def test_random_shapes(native: Kernels) -> None:
    check_random_shapes(native)


def test_what_reaches_too_far_ends_the_process() -> None:
    """Every operand and result of these tests ends where memory must not be touched."""
    native = kernels("portable")
    with pytest.raises(pytest.fail.Exception, match="ended with -"):
        native.server.ask("overrun portable", results=1)
    check_random_shapes(native)  # by a new process


@pytest.mark.parametrize("isa", ISAS)
def test_sanitizers_find_nothing(isa: str) -> None:
    """The same products again, with address and undefined-behaviour sanitizers in the kernels."""
    kernels(isa)  # skips where it is missing
    runtime = run([*find_compiler(), "-print-file-name=libasan.so"]).strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the compiler came without libasan.so")
    check_random_shapes(Kernels(server(*SANITIZERS), isa))


@pytest.mark.parametrize("emulated", [False, True])
def test_files_of_one_instruction_set_share_no_function(emulated: bool) -> None:
    """The linker keeps one of all equal weak functions: were it the one for AVX-512, older processors would fail."""
    if emulated and not EMULATED:
        pytest.skip("this machine emulates nothing")
    isas = EMULATED if emulated else ISAS
    folder = kernels(isas[0]).server.folder
    objects = [file for file in folder.glob("*_*.o") if file.stem.rpartition("_")[2] in isas]
    assert len(objects) >= 5
    listed = {file.name: run(["nm", "--defined-only", str(file)]).splitlines() for file in objects}
    assert all(listed.values())
    weak = {name: [line for line in lines if line.split()[1] in "WVu"] for name, lines in listed.items()}
    assert not any(weak.values()), weak
