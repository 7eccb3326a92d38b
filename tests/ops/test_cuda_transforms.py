"""The CUDA kernels of the transforms and of quantization, emulated, against numpy in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from ml_dtypes import bfloat16
from numpy.typing import DTypeLike

from tests.ops.emulated import ORDERS, Emulated, aligned, emulated
from tests.ops.running import sylvester, tolerance, transformed

TYPES = (np.float32, np.float16)


@pytest.fixture(params=ORDERS, ids=["forwards", "backwards", "shuffled"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Emulated]:
    """The kernels, with threads that take turns in several orders."""
    there = emulated()
    with there.under(*request.param):
        yield there


def typed(array: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    return aligned(array.astype(dtype))


def compare(
    kernels: Emulated,
    op: str,
    x: np.ndarray,
    scale: np.ndarray,
    *matrices: np.ndarray,
    hadamard: int = 0,
    step: int = 1,
    rounded: Sequence[int] = (0, 8, 4),
) -> None:
    """Run a transform as it is (0 bits) and quantized; `hadamard` is the width that runs as Walsh-Hadamard.

    With a `step` the first matrix of a Kronecker product holds a Hadamard matrix of that size, which joins the second.
    """
    wanted, allowed = transformed(op, x, scale, *matrices), tolerance(op, x, scale, *matrices)
    first = matrices[0] if op == "KroneckerTransform" else None
    matrix = None if hadamard else matrices[-1]
    inner = hadamard or matrices[-1].shape[-1]
    outer = len(first) // step if first is not None else 1
    if outer == 1:
        first = None
    for bits in rounded:
        y, scales = kernels.transform(x, scale, matrix, inner=inner, outer=outer, first=first, bits=bits)
        if not bits:
            wrong = ~(np.abs(y - wanted) <= allowed)
        else:
            levels = 2 ** (bits - 1) - 1
            most = np.abs(wanted).max(axis=-1, initial=0)
            exact = np.where(most == 0, 1, most / levels)
            slack = np.abs(wanted).max(axis=-1, initial=0) * 1e-5 + 1e-30
            assert (np.abs(scales - exact) <= slack / levels).all()
            # In float32 between; a few roundings of terms that may be larger than the sum.
            loose = np.minimum(allowed if x.dtype == np.float32 else allowed * 0 + 1e-3 * exact[:, None], 0.1)
            wrong = ~(np.abs(y * scales[:, None] - wanted) <= 0.5 * scales[:, None] + loose + 1e-4 * exact[:, None])
            assert np.abs(y).max(initial=0) <= levels
        assert not wrong.any(), (bits, np.argwhere(wrong)[:5])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1 << power for power in range(13)])
def test_every_width_of_walsh_hadamard(kernels: Emulated, size: int, dtype: DTypeLike) -> None:
    """As the factor of a scale: three runs are no whole number of vectors for the narrow ones."""
    random = np.random.default_rng(size)
    runs = 3 if size <= 1024 else 1
    x = typed(random.standard_normal((5 if size < 256 else 2, runs * size)), dtype)
    scale = typed(random.uniform(0.5, 2, runs * size), dtype)
    matrix = typed(sylvester(size), np.int8)
    compare(kernels, "SharedTransform", x, scale, matrix, hadamard=size)


def test_the_widest_rows(kernels: Emulated) -> None:
    """16384 channels are the most that a block holds; of more, parts are transformed one by one."""
    random = np.random.default_rng(0)
    for channels, size in ((16384, 16384), (24576, 8192), (16392, 8)):
        x = typed(random.standard_normal((1, channels)), np.float32)
        pair = [sylvester(part).astype(np.int8) for part in (size // 8, 8)]
        scale = typed(random.uniform(0.5, 2, channels), np.float32)
        compare(kernels, "KroneckerTransform", x, scale, *pair, hadamard=size, step=size // 8)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("outer", "inner", "runs"), [(7, 64, 2), (3, 4, 3), (28, 512, 1), (5, 1, 2), (12, 8, 1)])
def test_hadamard_matrices_mixed_by_another(
    kernels: Emulated, outer: int, inner: int, runs: int, dtype: DTypeLike
) -> None:
    random = np.random.default_rng(outer)
    x = typed(random.standard_normal((5, runs * outer * inner)), dtype)  # of the widest, blocks take several rows
    first = typed(random.standard_normal((outer, outer)), dtype)
    scale = typed(random.uniform(0.5, 2, 1), dtype)
    compare(kernels, "KroneckerTransform", x, scale, first, sylvester(inner).astype(np.int8), hadamard=inner)


def test_a_mixed_row_that_no_block_holds(kernels: Emulated) -> None:
    random = np.random.default_rng(9)
    x = typed(random.standard_normal((2, 3 * 8192)), np.float16)
    first, scale = (
        typed(random.standard_normal((3, 3)), np.float16),
        typed(random.uniform(0.5, 2, 3 * 8192), np.float16),
    )
    # Sylvester's matrix of 8192 has 64 million entries: numpy takes it as a product of two.
    second = sylvester(8)
    wanted = transformed("KroneckerTransform", x, scale, np.kron(first.astype(np.float64), sylvester(1024)), second)
    y, _ = kernels.transform(x, scale, None, inner=8192, outer=3, first=first)
    np.testing.assert_allclose(y, wanted, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("dtype", TYPES)
def test_a_factor_of_the_first_matrix_may_join_the_second(kernels: Emulated, dtype: DTypeLike) -> None:
    random = np.random.default_rng(2)
    first = typed(np.kron(random.standard_normal((7, 7)), sylvester(4)), dtype)
    x, scale = typed(random.standard_normal((3, 28 * 16)), dtype), typed(random.uniform(0.5, 2, 28 * 16), dtype)
    compare(kernels, "KroneckerTransform", x, scale, first, sylvester(16).astype(np.int8), hadamard=64, step=4)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("op", "shapes", "channels", "rows"),
    [
        ("SharedTransform", [(12, 12)], 60, 3),
        ("SharedTransform", [(12, 12)], 60, 17),
        ("SharedTransform", [(64, 64)], 64, 65),
        ("SharedTransform", [(100, 100)], 200, 6),
        ("BlockTransform", [(5, 33, 33)], 165, 70),
        ("BlockTransform", [(2, 128, 128)], 256, 1),
        ("KroneckerTransform", [(3, 3), (20, 20)], 120, 2),
        ("KroneckerTransform", [(3, 3), (20, 20)], 120, 20),
    ],
)
def test_dense_matrices(
    kernels: Emulated, op: str, shapes: list[tuple[int, ...]], channels: int, rows: int, dtype: DTypeLike
) -> None:
    random = np.random.default_rng(channels)
    x = typed(random.standard_normal((rows, channels)), dtype)
    scale = typed(random.uniform(-2, 2, channels), dtype)
    compare(kernels, op, x, scale, *(typed(random.standard_normal(shape), dtype) for shape in shapes))


@pytest.mark.parametrize(
    ("processors", "shared", "runs", "size", "rows", "dtype"),
    [
        (40, 99, 8, 128, 33, np.float16),  # eight blocks to a row, each with one run; two tiles, the second of one row
        (40, 99, 17, 64, 18, np.float16),  # three runs to a block: the last two blocks have none
        (40, 99, 40, 32, 5, np.float32),  # of floats, five runs to a block
        (4, 99, 6, 100, 17, np.float16),  # four blocks, of which one has none; the last segment of a run is a short one
        (1, 99, 40, 32, 36, np.float16),  # one block for all rows, without room for all matrices: rounds, and tiles
        (1, 163, 10, 80, 20, np.float16),  # three segments to a run: a round ends within one
        (1, 99, 20, 33, 36, np.float32),  # rows that are not aligned, nor a whole number of vectors
        (1, 99, 20, 33, 20, np.float16),
        (1, 99, 2, 9, 100, np.float16),
    ],
)
def test_dense_rows_are_rounded_in_one_pass(
    processors: int, shared: int, runs: int, size: int, rows: int, dtype: DTypeLike
) -> None:
    kernels, random = emulated(), np.random.default_rng(size)
    x = typed(random.standard_normal((rows, runs * size)), dtype)
    x[rows // 2] = 0
    matrices = typed(random.standard_normal((runs, size, size)), dtype)
    for scales in (1, runs * size):
        scale = typed(random.uniform(-2, 2, scales), dtype)
        with kernels.under(scales % 7, scales == 1, processors, shared):
            compare(kernels, "BlockTransform", x, scale, matrices, rounded=[8 if scales == 1 else 4])
            assert kernels.scratch == 0
    with kernels.under(1, False, processors, shared):
        compare(kernels, "SharedTransform", x, scale, matrices[0], rounded=[8])
        assert kernels.scratch == 0


@pytest.mark.parametrize(("numbers", "factors"), [(3e4, 4.0), (1.0, 2.0**-14)])
def test_what_lies_between_fits_no_float16(numbers: float, factors: float) -> None:
    """Products of a row and its scale, beyond the largest and below the smallest number that has all digits."""
    kernels, random = emulated(), np.random.default_rng(12)
    x = typed(random.uniform(-numbers, numbers, (20, 128)), np.float16)
    scale = typed(random.uniform(0.5, 1.0, 128) * factors, np.float16)
    matrices = typed(random.standard_normal((2, 64, 64)) / 64, np.float16)
    compare(kernels, "BlockTransform", x, scale, matrices, rounded=[0, 8])


def test_bfloat16() -> None:
    """Each kernel of the transforms once: Hadamard matrices, wide ones and mixed ones; dense ones; rounding."""
    kernels, random = emulated(), np.random.default_rng(6)

    def draw(*shape: int) -> np.ndarray:
        return typed(random.standard_normal(shape), bfloat16)

    for rows, size in ((5, 64), (2, 512)):
        matrix = sylvester(size).astype(np.int8)
        compare(kernels, "SharedTransform", draw(rows, 3 * size), draw(3 * size), matrix, hadamard=size)
    compare(kernels, "KroneckerTransform", draw(3, 56), draw(1), draw(7, 7), sylvester(8).astype(np.int8), hadamard=8)
    for rows in (2, 20):
        compare(kernels, "KroneckerTransform", draw(rows, 120), draw(120), draw(3, 3), draw(20, 20))
        compare(kernels, "BlockTransform", draw(rows, 165), draw(165), draw(5, 33, 33))
    with kernels.under(0, False, 40):
        compare(kernels, "BlockTransform", draw(18, 1024), draw(1024), draw(16, 64, 64), rounded=[0, 8])
    x = draw(3, 1040)
    codes, scales = kernels.transform(x, None, None, inner=0, bits=8)
    np.testing.assert_array_equal(scales, np.abs(x.astype(np.float32)).max(axis=-1) / np.float32(127))
    np.testing.assert_array_equal(codes, np.rint(x.astype(np.float32) / scales[:, None]))


def test_a_row_with_nan_leaves_its_tile_alone() -> None:
    kernels, random = emulated(), np.random.default_rng(4)
    x, matrices = (typed(random.standard_normal(shape), np.float16) for shape in ((20, 1024), (16, 64, 64)))
    scale = typed(np.ones(1), np.float16)
    x[3, 700], x[18, 0] = np.nan, np.inf
    others = ~np.isin(np.arange(20), (3, 18))
    with kernels.under(0, False, 40):
        codes, scales = kernels.transform(x, scale, matrices, inner=64, bits=8)
        clean = np.where(others[:, None], x, 0)
        wanted, exact = kernels.transform(aligned(clean), scale, matrices, inner=64, bits=8)
    assert np.isnan(scales).tolist() == (~others).tolist()
    assert not codes[~others].any()
    np.testing.assert_array_equal(codes[others], wanted[others])
    np.testing.assert_array_equal(scales[others], exact[others])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("bits", "clip"), [(8, 1.0), (4, 0.75), (8, 1.5), (8, 1e-35)])
def test_rows_are_quantized(kernels: Emulated, bits: int, clip: float, dtype: DTypeLike) -> None:
    random, levels = np.random.default_rng(0), 2 ** (bits - 1) - 1
    for rows, channels in ((3, 33), (70, 128), (30, 1040), (4, 0), (0, 8), (1, 4104), (3, 16385)):
        x = random.standard_normal((rows, channels)) * np.exp(random.uniform(-4, 4, (rows, 1)))
        if rows > 2:
            x[1] = 0
        x = typed(x, dtype)
        codes, scales = kernels.transform(x, None, None, inner=0, bits=bits, clip=clip)
        most = np.abs(x.astype(np.float32)).max(axis=-1, initial=0)
        expected = np.float32(clip) * most / np.float32(levels)
        expected[expected == 0] = 1
        np.testing.assert_array_equal(scales, expected)
        with np.errstate(over="ignore"):
            quotient = np.clip(x.astype(np.float32) / expected[:, None], -levels - 1, levels)
        np.testing.assert_array_equal(codes, np.rint(quotient))


def test_all_quotients_are_rounded_as_a_division_rounds(kernels: Emulated) -> None:
    """The kernel multiplies by a reciprocal and mends that: no code may differ, at ties least of all."""
    random = np.random.default_rng(1)
    most = np.exp(random.uniform(-60, 60, 400))
    x = (np.arange(-127, 128) + random.choice([-0.5, 0, 0.5], 255)) / 127 * most[:, None]
    x = typed(np.concatenate([x, most[:, None]], axis=1), np.float32)
    codes, scales = kernels.transform(x, None, None, inner=0, bits=8)
    np.testing.assert_array_equal(codes, np.rint(np.clip(x / scales[:, None], -128, 127)))


def test_what_is_not_finite_makes_its_row_not_a_number(kernels: Emulated) -> None:
    x = typed(np.ones((5, 64)), np.float32)
    x[1, 3], x[2, 60], x[3, 0] = np.nan, np.inf, -np.inf
    codes, scales = kernels.transform(x, None, None, inner=0, bits=8)
    assert np.isnan(scales).tolist() == [False, True, True, True, False]
    assert not codes[1:4].any()
    assert (codes[[0, 4]] == 127).all()
