"""Factors follow from moments and weights: ties are kept, all linears are heard, and orders move both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from catonnx.graph.absorb import Absorption, Permutable
from catonnx.graph.sites import Linear, Site
from catonnx.graph.writers import Writer
from catonnx.math.cat import cat_blocks, weight_moment
from catonnx.math.factors import Blocks, Factor, Permutation, Scale
from catonnx.math.moments import Moments
from catonnx.math.permuting import gathering_order
from catonnx.planning.fitting import balanced, fit_factors
from catonnx.recipe import Recipe

Array = NDArray[np.float64]
WIDTH = 16
FREE = np.arange(WIDTH)


def _site() -> Site:
    node = ir.node("MatMul", [ir.val("x"), ir.val("w")], name="linear")
    value = node.inputs[0]
    assert value is not None
    return Site(value, WIDTH, (Linear(node, WIDTH, 4, ir.DataType.FLOAT),))


def _rows(seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    rows: Array = rng.standard_normal((400, WIDTH)) @ rng.standard_normal((WIDTH, WIDTH))
    return rows


def _moments(rows: Array) -> Moments:
    moments = Moments(WIDTH, WIDTH)
    moments.update(rows)
    return moments


def _weights(*loudness: float, seed: int = 1) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [level * rng.standard_normal((WIDTH, 6)) * rng.uniform(0.2, 5, (WIDTH, 1)) for level in loudness]


def _fit(recipe: Recipe, rows: Array, weights: Sequence[Array], absorption: Absorption, block: int = 1) -> list[Factor]:
    return fit_factors(recipe, _site(), absorption, _moments(rows), lambda _: weights, block)


def _moved() -> Absorption:
    """Return what takes up any order, and nothing else."""
    writer = Writer(ir.node("MatMul", [ir.val("v"), ir.val("u")]), 1, (1,), (WIDTH,), FREE)
    return Absorption((), 0, FREE, permutable=Permutable((writer,), np.zeros(WIDTH), FREE))


def test_smoothing_makes_both_ranges_equal_over_all_linears() -> None:
    rows, weights = _rows(), _weights(3, 0.5)
    (factor,) = _fit(Recipe(transform="smoothquant"), rows, weights, Absorption((), 0, FREE))
    assert isinstance(factor, Scale)
    activation = np.abs(rows).max(axis=0) * factor.vector
    weight = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0) / factor.vector
    np.testing.assert_allclose(activation, weight, rtol=1e-9)


@pytest.mark.parametrize("width", [0, 1])
def test_smoothing_of_tied_channels_sees_the_largest_of_them_where_it_can_be_absorbed(width: int) -> None:
    rows, weights, ties = _rows(), _weights(1), FREE % 8
    (factor,) = _fit(Recipe(transform="smoothquant"), rows, weights, Absorption((), width, ties))
    assert isinstance(factor, Scale)
    sides = [np.abs(rows).max(axis=0), np.abs(weights[0]).max(axis=1)]
    if width:
        sides = [np.tile(side.reshape(2, 8).max(axis=0), 2) for side in sides]
    np.testing.assert_allclose(factor.vector, np.sqrt(sides[1] / sides[0]), rtol=1e-9)


def test_wush_leaves_every_channel_of_a_block_the_same_energy_and_cat_does_not() -> None:
    rows, weights = _rows(), _weights(1)
    spread = {}
    for transform in ("cat", "wush"):
        recipe = replace(Recipe(block_size=8), transform=transform)
        (factor,) = _fit(recipe, rows, weights, Absorption((), 0, FREE), 8)
        energies = (factor.apply(rows) ** 2).mean(axis=0).reshape(2, 8)
        spread[transform] = (energies.max(axis=1) / energies.min(axis=1)).max()
    assert spread["wush"] < 1.01  # damping
    assert spread["cat"] > 1.5


def test_channels_are_gathered_by_the_products_of_both_sides_all_linears_alike() -> None:
    rows, weights = _rows(), _weights(100, 1)
    order, blocks = _fit(replace(Recipe(block_size=4), permute=True), rows, weights, _moved(), 4)
    assert isinstance(order, Permutation)
    assert isinstance(blocks, Blocks)
    x_moment = rows.T @ rows / len(rows)
    joint = balanced(weights, np.diagonal(x_moment))
    np.testing.assert_array_equal(order.order, gathering_order(x_moment, sum(w @ w.T for w in joint), 4))
    moved = rows[:, order.order].reshape(-1, 4, 4)
    expected = cat_blocks(
        np.einsum("nbi,nbj->bij", moved, moved) / len(rows), weight_moment([w[order.order] for w in joint], 4)
    )
    np.testing.assert_allclose(blocks.matrices, expected, rtol=1e-5)  # damping is that of float64 sums
