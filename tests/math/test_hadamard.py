"""Hadamard matrices are orthogonal, of one magnitude, and split as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catonnx.math.hadamard import hadamard_matrix, has_hadamard, kronecker_pair, largest_hadamard_order, sylvester_part

KNOWN = [order for order in range(1, 257) if has_hadamard(order)]


@pytest.mark.parametrize("order", [*KNOWN, 576, 1536])
def test_orthonormal_and_of_one_magnitude(order: int) -> None:
    matrix = hadamard_matrix(order)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(order), rtol=0, atol=1e-13)  # measured 6e-15
    np.testing.assert_allclose(np.abs(matrix), order**-0.5, rtol=1e-14)  # measured 9e-16


def test_the_orders_that_are_missing_are_those_of_the_docstring() -> None:
    missing = [order for order in range(4, 257, 4) if not has_hadamard(order)]
    assert missing == [92, 116, 156, 172, 184, 188, 232, 236]


def test_only_one_two_and_multiples_of_four_exist() -> None:
    assert [order for order in range(-3, 13) if has_hadamard(order)] == [1, 2, 4, 8, 12]


@pytest.mark.parametrize(
    ("order", "construction"),
    [
        (2, "Sylvester"),
        (12, "Williamson"),
        (20, "Paley I, prime"),
        (28, "Paley I, 3^3"),
        (36, "Latin square"),
        (52, "Paley II, 5^2"),
        (76, "Paley II, prime"),
    ],
)
def test_each_construction_is_reached(order: int, construction: str) -> None:
    if construction != "Sylvester":
        assert min(kronecker_pair(order)) <= 2, "a product of two larger orders would hide the construction"
    matrix = np.sign(hadamard_matrix(order))
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 24, 64, 96, 576, 1536])
def test_matrix_is_the_product_of_its_pair(order: int) -> None:
    first, second = kronecker_pair(order)
    np.testing.assert_array_equal(hadamard_matrix(order), np.kron(hadamard_matrix(first), hadamard_matrix(second)))


@pytest.mark.parametrize(
    ("order", "pair"),
    # Widths of SmolLM2-135M, Llama-2-7B, Llama-3-8B and Qwen3-8B, squares of others, and orders that do not split.
    [
        (576, (36, 16)),
        (1536, (48, 32)),
        (11008, (344, 32)),
        (14336, (112, 128)),
        (12288, (96, 128)),
        (4096, (64, 64)),
        (2048, (32, 64)),
        (4608, (72, 64)),
        (144, (12, 12)),
        (400, (20, 20)),
        (2, (1, 2)),
        (12, (1, 12)),
    ],
)
def test_pairs_are_as_square_as_sylvesters_part_allows(order: int, pair: tuple[int, int]) -> None:
    assert kronecker_pair(order) == pair


@given(st.integers(1, 4000))
def test_pair_multiplies_to_the_order(order: int) -> None:
    if not has_hadamard(order):
        with pytest.raises(ValueError, match=f"order {order} is known here"):
            kronecker_pair(order)
        return
    first, second = kronecker_pair(order)
    assert first * second == order
    assert has_hadamard(first)
    assert has_hadamard(second)


@pytest.mark.parametrize(
    ("order", "part"),
    [(1, 1), (2, 2), (12, 1), (24, 2), (48, 4), (144, 1), (400, 1), (576, 16), (1536, 128), (2048, 2048), (4608, 128)],
)
def test_sylvesters_part(order: int, part: int) -> None:
    assert sylvester_part(order) == part


@pytest.mark.parametrize("order", [*(order for order in KNOWN if sylvester_part(order) > 1), 576, 1536, 2304, 4608])
def test_sylvesters_part_is_the_right_factor(order: int) -> None:
    part = sylvester_part(order)
    index = np.arange(part)
    signs = (-1.0) ** np.bitwise_count(index[:, None] & index)
    expected = np.kron(hadamard_matrix(order // part), signs / part**0.5)
    np.testing.assert_allclose(hadamard_matrix(order), expected, rtol=1e-14)


@given(st.integers(1, 4000))
def test_largest_order_is_the_largest_divisor_that_has_one(width: int) -> None:
    divisors = [order for order in range(1, width + 1) if width % order == 0 and has_hadamard(order)]
    assert largest_hadamard_order(width) == divisors[-1]


@pytest.mark.parametrize("order", [0, -4, 3, 6, 92])
def test_unknown_order_teaches(order: int) -> None:
    with pytest.raises(ValueError, match=f"no Hadamard matrix of order {order} is known here"):
        hadamard_matrix(order)


def test_width_without_divisors_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        largest_hadamard_order(0)
