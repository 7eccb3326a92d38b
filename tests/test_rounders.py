"""Weights are rounded by the moments of their own site, in its new basis, and by what really arrives there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from catonnx.analysis import Opened, analyse
from catonnx.errors import CalibrationError
from catonnx.graph.sites import Linear
from catonnx.math.activations import ActivationGrid
from catonnx.math.curvature import curvature
from catonnx.math.factors import Blocks, Factor
from catonnx.math.gptq import corrected_weight, gptq
from catonnx.math.moments import Moments
from catonnx.math.rounding import QuantizedWeight, quantize_weight
from catonnx.planning.siteplan import Plan, SitePlan
from catonnx.progress import silent
from catonnx.recipe import Recipe
from catonnx.rounders import SWEEPS, Dampings, make_rounder
from tests.graph.builder import Net

Array = NDArray[np.float64]
WIDTH = 16
GPTQ = Recipe(rounding="gptq", transform="hadamard", group_size=None, lm_head=True)
SEQUENTIAL = replace(GPTQ, rounding="sequential")
PLAIN = Plan((SitePlan("x", (), ()), SitePlan("b", (), ())))


class Chain:
    """x W0 + x W1 -> Sin -> b; b W2 -> y."""

    def __init__(self, recipe: Recipe = GPTQ) -> None:
        net = Net()
        x = net.input("x", ["rows", WIDTH])
        names = [net.normal(WIDTH, WIDTH) for _ in range(3)]
        first, second = (net.op("MatMul", x, name) for name in names[:2])
        net.output(net.op("MatMul", net.op("Sin", net.op("Add", first, second), result="b"), names[2], result="y"))
        self.weights: list[Array] = [net.initializers[name].astype(np.float64) for name in names]
        self.opened: Opened = analyse(net.model(), recipe)

    @property
    def linears(self) -> list[Linear]:
        """Those that read x, then the one that reads b."""
        return [linear for site in self.opened.sites for linear in site.linears]

    @staticmethod
    def rows(count: int = 200, seed: int = 0) -> Array:
        """Return correlated rows of x, its channels of very different sizes."""
        white = np.random.default_rng(seed).standard_normal((count, WIDTH))
        rows: Array = white @ (np.eye(WIDTH) + 0.3) * np.geomspace(0.2, 2, WIDTH)
        return rows

    def arriving(self, x: Array, weights: Sequence[Array] | None = None) -> Array:
        """Return b for rows that W0 and W1, or others in their place, read."""
        first, second = (weights or self.weights)[:2]
        result: Array = np.sin(x @ first + x @ second)
        return result

    def moments(self, x: Array) -> dict[str, Moments]:
        """Return moments of both sites that kept all rows."""
        return {"x": _moments(x), "b": _moments(self.arriving(x))}


def _moments(rows: Array) -> Moments:
    moments = Moments(WIDTH, WIDTH, kept_rows=4 * len(rows))
    moments.update(rows)
    return moments


def _rounded(
    chain: Chain, plan: Plan, recipe: Recipe, moments: dict[str, Moments], dampings: Dampings | None = None
) -> Iterator[QuantizedWeight]:
    rounder = make_rounder(chain.opened, plan, moments, recipe, dampings=dampings, progress=silent)
    for linear, weight in zip(chain.linears, chain.weights, strict=True):
        yield rounder(linear, weight, linear.dtype)


def _assert_same(found: QuantizedWeight, expected: QuantizedWeight) -> None:
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.scales, expected.scales, rtol=1e-5)  # float32
    assert (found.bits, found.group_size) == (expected.bits, expected.group_size)


def _basis(seed: int) -> Array:
    basis: Array = np.eye(WIDTH) + 0.3 * np.random.default_rng(seed).standard_normal((WIDTH, WIDTH))
    return basis


@pytest.mark.parametrize("grid", [None, ActivationGrid(4), ActivationGrid(4, symmetric=False, group_size=8)])
def test_gptq_takes_the_moment_of_each_site_in_its_new_basis_with_the_error_of_rounding_on_top(
    grid: ActivationGrid | None,
) -> None:
    chain, x = Chain(), Chain.rows()
    bases: dict[str, Array] = {"x": _basis(1), "b": _basis(2)}
    factors: dict[str, tuple[Factor, ...]] = {name: (Blocks(basis[None]),) for name, basis in bases.items()}
    plan = Plan(tuple(SitePlan(name, (), own, grid=grid) for name, own in factors.items()))
    hessians = {}
    for name, rows in (("x", x), ("b", chain.arriving(x))):
        read = rows.astype(np.float32).astype(np.float64) @ bases[name]
        noise = np.zeros_like(read) if grid is None else grid.round(read) - read
        hessians[name] = bases[name].T @ rows.T @ rows @ bases[name] / len(rows) + np.diag((noise**2).mean(axis=0))
    found = _rounded(chain, plan, GPTQ, chain.moments(x))
    for name, weight, rounded in zip("xxb", chain.weights, found, strict=True):
        _assert_same(rounded, gptq(weight, hessians[name], None, sweeps=SWEEPS))


def test_sites_may_come_in_any_order() -> None:
    chain = Chain()
    moments = chain.moments(chain.rows())
    rounder = make_rounder(chain.opened, PLAIN, moments, GPTQ, progress=silent)
    for index in (0, 2, 1, 2, 0):
        linear, site = chain.linears[index], "xxb"[index]
        expected = gptq(chain.weights[index], moments[site].second_moment()[0], None, sweeps=SWEEPS)
        _assert_same(rounder(linear, chain.weights[index], linear.dtype), expected)


def test_descent_behind_gptq_lowers_the_error_further() -> None:
    chain = Chain()
    moments = chain.moments(chain.rows())
    for name, weight, rounded in zip("xxb", chain.weights, _rounded(chain, PLAIN, GPTQ, moments), strict=True):
        curved = curvature(moments[name].second_moment()[0], GPTQ.damping)
        error, before = (weight - each.dequantize() for each in (rounded, gptq(weight, curved, None)))
        assert np.vdot(error, curved.hessian @ error) < np.vdot(before, curved.hessian @ before)


WISHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "groups": ({"group_size": 16, "transform": "cat"}, {"group_size": 16}),
    "damping": ({"damping": 0.01}, {"damping": 0.01}),
    "no transform": ({"transform": "none"}, {"toward": "diagonal"}),
    "positive scales": ({"scales": "positive"}, {"signed": False}),
}
"""What is wished -> what GPTQ is told."""


@pytest.mark.parametrize("wish", WISHES)
def test_gptq_is_told_what_was_wished(wish: str) -> None:
    wishes, told = WISHES[wish]
    chain = Chain()
    moments = chain.moments(chain.rows())
    hessian = moments["x"].second_moment()[0]
    (found, *_) = _rounded(chain, PLAIN, replace(GPTQ, **wishes), moments)
    _assert_same(found, gptq(chain.weights[0], hessian, **({"group_size": None, "sweeps": SWEEPS} | told)))


@pytest.mark.parametrize("rounding", ["nearest", "mse", "gptq"])
def test_bits_are_those_of_the_site_and_scales_of_the_type_that_is_stored(rounding: Any) -> None:
    chain, recipe = Chain(), replace(GPTQ, rounding=rounding)
    plan = Plan((PLAIN.sites[0], replace(PLAIN.sites[1], bits=8)))
    rounder = make_rounder(chain.opened, plan, chain.moments(chain.rows()), recipe, progress=silent)
    for linear, weight, bits in zip(chain.linears, chain.weights, (4, 4, 8), strict=True):
        rounded = rounder(linear, weight, ir.DataType.FLOAT16)
        assert rounded.bits == bits
        assert rounded.scales.dtype == np.dtype(np.float16)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "mse"])
def test_weights_are_rounded_by_themselves_as_wished(rounding: Any, signed: bool) -> None:
    chain = Chain()
    recipe = replace(GPTQ, rounding=rounding, group_size=16, scales="signed" if signed else "positive")
    for weight, found in zip(chain.weights, _rounded(chain, PLAIN, recipe, {}), strict=True):
        _assert_same(found, quantize_weight(weight, 16, method=rounding, signed=signed))


def test_a_damping_that_had_to_be_raised_is_noted() -> None:
    chain = Chain()
    moments = chain.moments(chain.rows()) | {"b": _moments(chain.rows(3))}  # 3 rows leave 13 directions empty
    dampings: Dampings = {}
    list(_rounded(chain, PLAIN, replace(GPTQ, damping=0.0), moments, dampings))
    assert dampings.keys() == {"b"}
    assert dampings["b"] > 0


def test_a_moment_that_is_none_is_refused_with_its_site() -> None:
    chain = Chain()
    moments = chain.moments(chain.rows())
    moments["b"].sums *= -1
    with pytest.raises(CalibrationError, match="second moment of the activation cannot be used") as error:
        list(_rounded(chain, PLAIN, GPTQ, moments))
    assert "site b" in str(error.value)


def _sequential(
    chain: Chain, plan: Plan, recipe: Recipe, feeds: Sequence[Array], scratch: Path
) -> tuple[list[QuantizedWeight], Dampings]:
    """Round site by site, on rows of x."""
    dampings: Dampings = {}
    rounder = make_rounder(
        chain.opened,
        plan,
        {},
        recipe,
        feeds=[{"x": rows.astype(np.float32)} for rows in feeds],
        scratch=scratch,
        dampings=dampings,
        progress=silent,
    )
    return [
        rounder(linear, weight, linear.dtype) for linear, weight in zip(chain.linears, chain.weights, strict=True)
    ], dampings


@pytest.mark.parametrize("grid", [None, ActivationGrid(4)])
def test_site_by_site_each_weight_makes_up_for_all_that_was_rounded_before(
    grid: ActivationGrid | None, tmp_path: Path
) -> None:
    """By H = E[y^T y] and C = E[y^T x]: x what was read in float, y what is read now, all rows of all inputs alike."""
    chain, feeds = Chain(SEQUENTIAL), [Chain.rows(60, 1), Chain.rows(90, 2) * 3]
    plan = Plan(tuple(replace(site, grid=grid) for site in PLAIN.sites))
    found, dampings = _sequential(chain, plan, SEQUENTIAL, feeds, tmp_path)
    assert dampings == {}

    def expected(weight: Array, exact: Array, arriving: Array) -> QuantizedWeight:
        read = arriving if grid is None else grid.round(arriving)
        hessian, cross = read.T @ read / len(read), read.T @ exact / len(read)
        return gptq(corrected_weight(weight, hessian, cross, 0.3), hessian, None, sweeps=SWEEPS)

    x = np.concatenate(feeds)
    first = [expected(weight, x, x) for weight in chain.weights[:2]]
    read = x if grid is None else grid.round(x).astype(np.float64)
    now = chain.arriving(read, [rounded.dequantize() for rounded in first])
    for rounded, wanted in zip(found, [*first, expected(chain.weights[2], chain.arriving(x), now)], strict=True):
        _assert_same(rounded, wanted)


def test_site_by_site_a_raised_damping_holds_for_the_correction_too(tmp_path: Path) -> None:
    """With 3 rows nothing but damping makes the moments invertible, and none was asked for."""
    found, dampings = _sequential(Chain(SEQUENTIAL), PLAIN, replace(SEQUENTIAL, damping=0.0), [Chain.rows(3)], tmp_path)
    assert dampings.keys() == {"x", "b"}
    assert all(np.isfinite(rounded.scales).all() for rounded in found)
