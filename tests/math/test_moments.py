"""Moments are sums: of any split of the rows, in any order, they are the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from catonnx.math.moments import FLOAT32_BLOCK, Moments


def rows_of(count: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, width)) * np.exp(rng.standard_normal(width)) + 0.5).astype(np.float32)


def moments_of(rows: NDArray[np.floating], block: int) -> Moments:
    moments = Moments(rows.shape[-1], block)
    moments.update(rows)
    return moments


def assert_equal(actual: Moments, expected: Moments, tolerance: float) -> None:
    assert (actual.width, actual.block, actual.count) == (expected.width, expected.block, expected.count)
    np.testing.assert_allclose(actual.sums, expected.sums, rtol=0, atol=tolerance * np.abs(expected.sums).max())
    np.testing.assert_array_equal(actual.maximum, expected.maximum)
    assert actual.squared_range == pytest.approx(expected.squared_range, rel=1e-12)
    assert actual.squared_symmetric_range == pytest.approx(expected.squared_symmetric_range, rel=1e-12)


@pytest.mark.parametrize(
    ("block", "tolerance"),
    [(1, 1e-14), (4, 1e-14), (64, 1e-14), (FLOAT32_BLOCK, 1e-6), (512, 1e-6)],  # measured 2e-15, and 4e-7 in float32
)
def test_sums_are_the_diagonal_blocks(block: int, tolerance: float) -> None:
    rows = rows_of(300, 512)
    full = rows.T.astype(np.float64) @ rows.astype(np.float64)
    moments = moments_of(rows, block)
    for index, sums in enumerate(moments.sums):
        span = slice(index * block, (index + 1) * block)
        np.testing.assert_allclose(sums, full[span, span], rtol=0, atol=tolerance * np.abs(full).max())
    np.testing.assert_allclose(
        moments.diagonal(), np.diag(full) / 300, rtol=max(10 * tolerance, 1e-12)
    )  # measured 9e-7
    assert moments.second_moment().shape == (512 // block, block, block)
    assert moments.squared_norm == pytest.approx(np.trace(full), rel=1e-6)  # measured 7e-8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_row_statistics(dtype: type[np.floating]) -> None:
    rows = np.array([[1, -3, 2], [0, 0.5, 0.25]], dtype=dtype)
    moments = moments_of(rows, 1)
    assert moments.count == 2
    np.testing.assert_array_equal(moments.maximum, [1, 3, 2])
    assert moments.squared_norm == 1 + 9 + 4 + 0.25 + 0.0625
    assert moments.squared_range == 5**2 + 0.5**2
    assert moments.squared_symmetric_range == 6**2 + 1**2


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.sampled_from([1, 2, 6]))
def test_updates_and_merges_agree_with_one_pass(counts: list[int], block: int) -> None:
    rows = rows_of(sum(counts), 6)
    parts = np.split(rows, np.cumsum(counts)[:-1])
    updated, merged = Moments(6, block), Moments(6, block)
    for part in parts:
        updated.update(part)
        merged.merge(moments_of(part, block))
    assert_equal(updated, moments_of(rows, block), 1e-13)  # measured 9e-16
    assert_equal(merged, updated, 1e-13)


@pytest.mark.parametrize("block", [1, 4])
def test_leading_axes_are_rows(block: int) -> None:
    rows = rows_of(24, 8)
    assert_equal(moments_of(rows.reshape(2, 3, 4, 8), block), moments_of(rows, block), 0)


@pytest.mark.parametrize(("block", "narrow"), [(12, 12), (12, 4), (12, 1), (6, 2), (2, 1)])
def test_narrow_moments_are_those_measured_narrow(block: int, narrow: int) -> None:
    rows = rows_of(50, 24)
    assert_equal(moments_of(rows, block).narrow(narrow), moments_of(rows, narrow), 1e-14)  # measured 3e-16


def test_narrow_moments_are_their_own() -> None:
    wide = moments_of(rows_of(50, 24), 12)
    narrow = wide.narrow(12)
    narrow.update(rows_of(50, 24))
    assert wide.count == 50
    np.testing.assert_allclose(narrow.second_moment(), wide.second_moment(), rtol=1e-14)


def test_update_leaves_the_rows_alone() -> None:
    rows = rows_of(20, 256)
    before = rows.copy()
    for block in (1, 8, 256):
        moments_of(rows, block)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block", [1, 2, FLOAT32_BLOCK])
def test_bad_values_show(value: float, block: int) -> None:
    rows = rows_of(20, FLOAT32_BLOCK)
    assert moments_of(rows, block).is_finite
    rows[7, 3] = value
    moments = moments_of(rows, block)
    moments.update(rows_of(20, FLOAT32_BLOCK))
    assert not moments.is_finite


@pytest.mark.parametrize("block", [1, 2, FLOAT32_BLOCK])
def test_large_half_precision_values_do_not_overflow(block: int) -> None:
    moments = moments_of(np.full((3, FLOAT32_BLOCK), 6e4, dtype=np.float16), block)
    assert moments.is_finite
    np.testing.assert_allclose(moments.diagonal(), 6e4**2, rtol=2e-3)  # float16 rounds 6e4 to 59 968


@pytest.mark.parametrize("block", [1, 3])
def test_arrays_bring_moments_back(block: int) -> None:
    moments = moments_of(rows_of(20, 9), block)
    assert_equal(Moments.from_arrays(moments.to_arrays()), moments, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sums": np.zeros((3, 2, 3))}, "are not"),
        ({"maximum": np.zeros(5)}, "are not"),
        ({"count": np.array(-1)}, "count is"),
        ({"count": np.array(1.5)}, "count is"),
        ({"squared_ranges": np.zeros(3)}, "squared_ranges"),
        ({"other": np.zeros(3)}, "moments hold"),
    ],
)
def test_nonsense_arrays_are_refused(change: dict[str, NDArray[np.float64]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Moments.from_arrays(moments_of(rows_of(20, 6), 2).to_arrays() | change)


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 4 channels do not tile 6"):
        Moments(6, 4)
    with pytest.raises(ValueError, match="this site has 6 channels"):
        Moments(6, 2).update(np.zeros((3, 5), dtype=np.float32))
    with pytest.raises(ValueError, match="cannot merge"):
        Moments(6, 2).merge(Moments(6, 3))
    with pytest.raises(ValueError, match="blocks of 4 channels do not tile 6"):
        Moments(6, 6).narrow(4)
    with pytest.raises(ValueError, match="no activation was recorded"):
        Moments(6, 2).second_moment()


def test_some_rows_are_kept_as_they_are() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((100, 8)).astype(np.float32) for _ in range(3)]
    moments = Moments(8, 8, kept_rows=5)
    for batch in batches:
        moments.update(batch)
    assert moments.rows.shape == (15, 8)
    for index, batch in enumerate(batches):
        kept = moments.rows[5 * index : 5 * index + 5]
        assert np.array_equal(kept[0], batch[0])  # it may be an attention sink
        places = [int(np.flatnonzero((batch == row).all(axis=1))[0]) for row in kept]
        assert places == [0, 12, 37, 62, 87]
    assert np.array_equal(Moments.from_arrays(moments.to_arrays()).rows, moments.rows)
    assert np.array_equal(moments.narrow(4).rows, moments.rows)
    other = Moments(8, 8, kept_rows=5)
    other.update(batches[0])
    other.merge(moments)
    assert len(other.rows) == 20


@pytest.mark.parametrize(("count", "wanted", "kept"), [(1, 5, 1), (3, 5, 3), (5, 1, 1), (4, 2, 2)])
def test_never_more_rows_than_there_are(count: int, wanted: int, kept: int) -> None:
    moments = Moments(2, 1, kept_rows=wanted)
    moments.update(np.arange(2.0 * count).reshape(count, 2))
    assert len(moments.rows) == kept
    assert len(np.unique(moments.rows, axis=0)) == kept


def test_no_rows_are_kept_unless_they_are_wanted() -> None:
    moments = Moments(4, 2)
    moments.update(np.ones((10, 4)))
    assert moments.rows.shape == (0, 4)


def test_a_permutation_moves_everything_alike() -> None:
    rng = np.random.default_rng(1)
    rows, order = rng.standard_normal((50, 6)), rng.permutation(6)
    moments, moved = Moments(6, 6, kept_rows=4), Moments(6, 6, kept_rows=4)
    moments.update(rows)
    moved.update(rows[:, order])
    for name, array in moments.permuted(order).to_arrays().items():
        np.testing.assert_allclose(array, moved.to_arrays()[name], rtol=1e-12)
    with pytest.raises(ValueError, match="keep them whole"):
        moments.narrow(2).permuted(order)
