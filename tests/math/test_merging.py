"""Merged factors are the same map, and blocks are the diagonal blocks of the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest

from catonnx.math.factors import Blocks, Factor, Hadamard, Kronecker, Permutation, Scale, Transform
from catonnx.math.merging import changed_moment, in_blocks, merged, mixing_width, widened

WIDTH = 48
RNG = np.random.default_rng(7)
SCALE = Scale(RNG.uniform(0.5, 2, WIDTH))
BLOCKS_8 = Blocks(RNG.standard_normal((6, 8, 8)) + 4 * np.eye(8))
BLOCKS_24 = Blocks(RNG.standard_normal((2, 24, 24)) + 8 * np.eye(24))
BLOCK_48 = Blocks(RNG.standard_normal((1, 48, 48)) + 16 * np.eye(48))
ORDER = Permutation(RNG.permutation(WIDTH))
KRONECKER = Kronecker(RNG.standard_normal((6, 6)) + 4 * np.eye(6), RNG.standard_normal((8, 8)) + 4 * np.eye(8))
HADAMARD_4, HADAMARD_16 = Hadamard(WIDTH, 4), Hadamard(WIDTH, 16)


@pytest.mark.parametrize("factor", [SCALE, BLOCKS_8, HADAMARD_4])
def test_blocks_are_the_diagonal_of_the_dense_matrix_and_nothing_lies_outside(factor: Factor) -> None:
    blocks = in_blocks(factor, 24)
    dense = np.zeros((WIDTH, WIDTH))
    dense[:24, :24], dense[24:, 24:] = blocks
    np.testing.assert_allclose(dense, factor.dense(), atol=1e-15)


@pytest.mark.parametrize("factor", [ORDER, KRONECKER, BLOCK_48])
def test_a_factor_that_moves_channels_anywhere_is_one_block(factor: Factor) -> None:
    assert mixing_width(factor) == WIDTH
    np.testing.assert_array_equal(in_blocks(factor, WIDTH), factor.dense()[None])
    with pytest.raises(ValueError, match="mixes 48 of 48 channels has no diagonal blocks of 24"):
        in_blocks(factor, 24)


@pytest.mark.parametrize("factor", [SCALE, BLOCKS_8, HADAMARD_16, ORDER, KRONECKER])
def test_a_moment_changes_as_its_rows_do(factor: Factor) -> None:
    rows = RNG.standard_normal((60, WIDTH))
    changed = factor.apply(rows)
    moment = changed_moment((rows.T @ rows)[None], factor)
    np.testing.assert_allclose(moment[0], changed.T @ changed, rtol=1e-12, atol=1e-10)  # measured 3e-14, 4e-12


def test_a_permutation_moves_channels_out_of_narrower_blocks() -> None:
    with pytest.raises(ValueError, match="permutation of 48 channels moves them between blocks of 24"):
        changed_moment(np.zeros((2, 24, 24)), ORDER)


def test_a_factor_that_mixes_more_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="mixes 16 of 48 channels has no diagonal blocks of 24"):
        in_blocks(HADAMARD_16, 24)


@pytest.mark.parametrize(
    ("factors", "widths"),
    [
        ([SCALE, HADAMARD_16], [1, 16]),
        ([SCALE, BLOCKS_8], [8]),
        ([BLOCKS_8, SCALE], [8]),
        ([BLOCKS_8, HADAMARD_4], [8]),
        ([BLOCKS_8, HADAMARD_16], [8, 16]),
        ([HADAMARD_4, BLOCKS_24, SCALE, BLOCKS_8], [24]),
        ([ORDER, ORDER], [48]),
        ([ORDER, BLOCKS_8], [48, 8]),
        ([ORDER, BLOCK_48], [48]),
        ([SCALE, KRONECKER, BLOCK_48, ORDER], [48]),
        ([KRONECKER, KRONECKER], [48, 48]),
        ([], []),
    ],
)
def test_neighbours_that_fit_are_multiplied_out_and_the_map_stays(factors: list[Factor], widths: list[int]) -> None:
    result = merged(factors)
    assert [mixing_width(factor) for factor in result] == widths
    if factors:
        # 1e-12: products of well-conditioned float64 matrices, 4e-14 measured.
        np.testing.assert_allclose(Transform(tuple(result)).dense(), Transform(tuple(factors)).dense(), atol=1e-12)


def test_widening_keeps_blocks_in_place() -> None:
    wide = widened(BLOCKS_8.matrices, 24)
    np.testing.assert_array_equal(wide[1, 8:16, 8:16], BLOCKS_8.matrices[4])
    assert np.count_nonzero(wide) == np.count_nonzero(BLOCKS_8.matrices)
