"""Factors change the basis and not the product; their inverse, cost and arrays are what they say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from catonnx.math.factors import (
    Blocks,
    Factor,
    FactorKind,
    Hadamard,
    Kronecker,
    Permutation,
    Scale,
    Transform,
    transform_from_arrays,
    transform_to_arrays,
)
from catonnx.math.hadamard import hadamard_matrix, has_hadamard, kronecker_pair


# Well-conditioned on purpose: these tests are about algebra, and see each mistake far above the rounding of float64.
def random_scale(rng: np.random.Generator, width: int) -> Scale:
    return Scale(rng.choice(np.array([-1.0, 1.0]), width) * np.exp(rng.uniform(-1, 1, width)))


def random_blocks(rng: np.random.Generator, count: int, block: int) -> Blocks:
    return Blocks(np.eye(block) + 0.3 / block * rng.uniform(-1, 1, (count, block, block)))


def random_kronecker(rng: np.random.Generator, first: int, second: int) -> Kronecker:
    return Kronecker(*(random_blocks(rng, 1, size).matrices[0] for size in (first, second)))


@st.composite
def factors_of(draw: st.DrawFn, width: int) -> Factor:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    divisors = [block for block in range(1, width + 1) if width % block == 0]
    match draw(st.sampled_from(FactorKind)):
        case FactorKind.SCALE:
            return random_scale(rng, width)
        case FactorKind.BLOCKS:
            block = draw(st.sampled_from(divisors))
            return random_blocks(rng, width // block, block)
        case FactorKind.HADAMARD:
            return Hadamard(width, draw(st.sampled_from([order for order in divisors if has_hadamard(order)])))
        case FactorKind.PERMUTATION:
            return Permutation(rng.permutation(width))
        case FactorKind.KRONECKER:
            first = draw(st.sampled_from(divisors))
            return random_kronecker(rng, first, width // first)
    raise AssertionError("every kind has a case")


@st.composite
def transforms(draw: st.DrawFn) -> Transform:
    width = draw(st.sampled_from([1, 2, 7, 12, 24, 40]))
    return Transform(tuple(draw(st.lists(factors_of(width), min_size=1, max_size=4))))


def gaussian(*shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).standard_normal(shape)


@given(transforms())
def test_product_does_not_change(transform: Transform) -> None:
    rows, weight = gaussian(2, 5, transform.width), gaussian(transform.width, 3)
    moved = transform.apply(rows) @ transform.solve(weight)
    assert moved.shape == (2, 5, 3)
    np.testing.assert_allclose(moved, rows @ weight, rtol=0, atol=1e-11)  # measured 3e-14 in 1500 examples


@given(transforms())
def test_dense_matrix_says_the_same_as_apply_and_solve(transform: Transform) -> None:
    rows, weight, dense = gaussian(5, transform.width), gaussian(transform.width, 3), transform.dense()
    np.testing.assert_allclose(transform.apply(rows), rows @ dense, rtol=0, atol=1e-11)  # measured 2e-14
    np.testing.assert_allclose(dense @ transform.solve(weight), weight, rtol=0, atol=1e-11)  # measured 5e-15
    assert transform.inverse_error() < 1e-11  # measured 5e-15


def test_first_factor_is_nearest_the_producer() -> None:
    scale, blocks = Scale(np.array([2.0, 3.0])), Blocks(np.array([[[1.0, 1.0], [0.0, 1.0]]]))
    np.testing.assert_array_equal(Transform((scale, blocks)).dense(), [[2.0, 2.0], [0.0, 3.0]])
    np.testing.assert_array_equal(Transform((blocks, scale)).dense(), [[2.0, 3.0], [0.0, 3.0]])


@given(st.sampled_from([1, 2, 4, 12, 20, 36, 72, 96]), st.integers(1, 3))
def test_hadamard_is_orthonormal_and_equals_its_dense_form(order: int, count: int) -> None:
    factor = Hadamard(count * order, order)
    dense, identity = factor.dense(), np.eye(count * order)
    np.testing.assert_allclose(dense @ dense.T, identity, rtol=0, atol=1e-13)  # measured 2e-15
    np.testing.assert_allclose(factor.solve(identity), dense.T, rtol=0, atol=1e-13)  # measured 0
    assert np.count_nonzero(np.abs(dense) > 1e-12) == count * order**2


def test_a_permutation_says_where_each_channel_comes_from() -> None:
    factor = Permutation(np.array([2, 0, 1]))
    np.testing.assert_array_equal(factor.apply(np.array([[10.0, 11.0, 12.0]])), [[12.0, 10.0, 11.0]])
    np.testing.assert_array_equal(factor.solve(np.array([[0.0], [1.0], [2.0]])), [[2.0], [0.0], [1.0]])
    np.testing.assert_array_equal(factor.dense(), [[0, 1, 0], [0, 0, 1], [1, 0, 0]])


def test_a_kronecker_product_is_numpys() -> None:
    rng = np.random.default_rng(3)
    factor = random_kronecker(rng, 3, 5)
    np.testing.assert_allclose(factor.dense(), np.kron(factor.first, factor.second), rtol=0, atol=1e-15)
    same = Hadamard(48, 48)
    pair = Kronecker(*(hadamard_matrix(order) for order in kronecker_pair(48)))
    np.testing.assert_allclose(pair.dense(), same.dense(), rtol=0, atol=1e-15)
    assert pair.multiply_adds == same.multiply_adds


def test_costs_per_row() -> None:
    assert Permutation(np.array([1, 0])).multiply_adds == 0
    assert Kronecker(np.eye(3) * 2, np.eye(4)).multiply_adds == 12 * 7
    assert Scale(np.full(6, 2.0)).multiply_adds == 6
    assert random_blocks(np.random.default_rng(0), 3, 4).multiply_adds == 12 * 4
    assert Hadamard(48, 12).multiply_adds == 48 * 12
    assert kronecker_pair(576) == (36, 16)
    assert Hadamard(1152, 576).multiply_adds == 1152 * 52
    assert Transform((Scale(np.ones(4)), Scale(np.full(4, 2.0)))).multiply_adds == 4


def test_identities_are_recognised() -> None:
    nothing: list[Factor] = [
        Scale(np.ones(4)),
        Blocks(np.broadcast_to(np.eye(2), (2, 2, 2))),
        Hadamard(4, 1),
        Permutation(np.arange(4)),
        Kronecker(2 * np.eye(2), np.eye(2) / 2),
    ]
    assert Transform(tuple(nothing)).is_identity
    assert Transform.identity(4).is_identity
    something_done: list[Factor] = [
        Scale(np.array([1, 1, 1, 1.5])),
        Blocks(np.stack([np.eye(2), 2 * np.eye(2)])),
        Hadamard(4, 2),
        Permutation(np.array([0, 1, 3, 2])),
        Kronecker(2 * np.eye(2), np.eye(2)),
        Kronecker(np.eye(2), np.array([[0.0, 1.0], [1.0, 0.0]])),
    ]
    for something in something_done:
        assert not Transform((nothing[0], something)).is_identity


def test_arrays_of_a_factor_are_its_own() -> None:
    vector = np.ones(3)
    scale = Scale(vector)
    vector[0] = 0.0
    assert scale.vector[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        scale.vector[0] = 0.0
    order = np.array([1, 0])
    permutation = Permutation(order)
    order[0] = 0
    assert permutation.order[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        permutation.order[0] = 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Scale(np.array([1.0, 0.0])), "scale of channel 1 is 0.0"),
        (lambda: Scale(np.array([np.inf, 1.0])), "scale of channel 0 is inf"),
        (lambda: Scale(np.ones((2, 2))), r"shape \(2, 2\)"),
        (lambda: Scale(np.ones(0)), r"shape \(0,\)"),
        (lambda: Blocks(np.ones((2, 3))), r"must be \(n, k, k\)"),
        (lambda: Blocks(np.stack([np.eye(2), np.ones((2, 2))])), "block 1 of 2 cannot be inverted"),
        (lambda: Blocks(np.stack([np.diag([1.0, 1e-11]), np.eye(2)])), "block 0 of 2 cannot be inverted"),
        (lambda: Blocks(np.full((1, 2, 2), np.nan)), "block 0 of 1 holds NaN"),
        (lambda: Permutation(np.array([0, 2, 2, 1])), "channel 3 of 4 is not in the order"),
        (lambda: Permutation(np.array([0.0, 1.0])), "one vector of integers"),
        (lambda: Permutation(np.zeros((1, 1), np.int64)), r"shape \(1, 1\)"),
        (lambda: Permutation(np.zeros(0, np.int64)), r"shape \(0,\)"),
        (lambda: Kronecker(np.ones((2, 3)), np.eye(2)), r"first matrix of a Kronecker product has shape \(2, 3\)"),
        (lambda: Kronecker(np.eye(2), np.ones((2, 2))), "second matrix 0 of 1 cannot be inverted"),
        (lambda: Kronecker(np.full((2, 2), np.inf), np.eye(2)), "first matrix 0 of 1 holds NaN"),
        (lambda: Hadamard(24, 16), "24 is the largest that does"),
        (lambda: Hadamard(18, 6), "2 is the largest that does"),
        (lambda: Hadamard(0, 1), "order 1 tiles 0 channels"),
        (lambda: Transform(()), r"Transform.identity\(width\)"),
        (lambda: Transform((Hadamard(4, 4), Scale(np.ones(5)))), r"\[4, 5\]"),
        (lambda: Scale(np.ones(3)).apply(np.ones((2, 4))), "covers 3 channels"),
        (lambda: Scale(np.ones(3)).solve(np.ones((4, 2))), "covers 3 channels"),
    ],
)
def test_nonsense_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@given(transforms())
def test_arrays_bring_the_transform_back(transform: Transform) -> None:
    arrays = transform_to_arrays(transform)
    again = transform_from_arrays(dict(reversed(arrays.items())))
    assert [factor.kind for factor in again.factors] == [factor.kind for factor in transform.factors]
    np.testing.assert_array_equal(again.dense(), transform.dense())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "at least one factor"),
        ({"0.rotation": np.eye(2)}, "does not name a factor"),
        ({"scale": np.ones(2)}, "does not name a factor"),
        ({"1.scale": np.ones(2)}, "do not count up from 0"),
        ({"0.scale": np.ones(2), "2.scale": np.ones(2)}, "do not count up from 0"),
        ({"0.scale": np.ones(2), "0.hadamard": np.array([2, 2])}, r"position 0 holds \['hadamard', 'scale'\]"),
        ({"0.kronecker": np.eye(2)}, "does not name a factor"),
        ({"0.kronecker.first": np.eye(2)}, "one factor is"),
        ({"0.kronecker.first": np.eye(2), "0.kronecker.second": np.array([[1]])}, "must be floating point"),
        ({"0.permutation": np.array([1.0, 0.0])}, "one vector of integers"),
        ({"0.scale": np.array(["a", "b"])}, "floating point"),
        ({"0.blocks": np.ones(4)}, r"must be \(n, k, k\)"),
        ({"0.hadamard": np.array([4.0, 4.0])}, "the integers"),
        ({"0.hadamard": np.array([4, 4, 4])}, "the integers"),
    ],
)
def test_nonsense_arrays_are_refused(arrays: dict[str, NDArray[np.float64]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transform_from_arrays(arrays)
