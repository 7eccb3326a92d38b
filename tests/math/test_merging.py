"""Merged factors are the same map, and blocks are the diagonal blocks of the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest

from catonnx.math.factors import Blocks, Factor, Hadamard, Scale, Transform
from catonnx.math.merging import in_blocks, merged, mixing_width, widened

WIDTH = 48
RNG = np.random.default_rng(7)
SCALE = Scale(RNG.uniform(0.5, 2, WIDTH))
BLOCKS_8 = Blocks(RNG.standard_normal((6, 8, 8)) + 4 * np.eye(8))
BLOCKS_24 = Blocks(RNG.standard_normal((2, 24, 24)) + 8 * np.eye(24))
HADAMARD_4, HADAMARD_16 = Hadamard(WIDTH, 4), Hadamard(WIDTH, 16)


@pytest.mark.parametrize("factor", [SCALE, BLOCKS_8, HADAMARD_4])
def test_blocks_are_the_diagonal_of_the_dense_matrix_and_nothing_lies_outside(factor: Factor) -> None:
    blocks = in_blocks(factor, 24)
    dense = np.zeros((WIDTH, WIDTH))
    dense[:24, :24], dense[24:, 24:] = blocks
    np.testing.assert_allclose(dense, factor.dense(), atol=1e-15)


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
