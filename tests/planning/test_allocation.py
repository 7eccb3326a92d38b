"""Who keeps 8 bits: those where 4 cost most, within what was asked for, and what was named before anybody else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from catonnx.analysis import analyse
from catonnx.errors import UsageError
from catonnx.graph.sites import Linear, Site
from catonnx.math.activations import ActivationGrid
from catonnx.math.factors import Blocks, Factor, Scale
from catonnx.math.moments import Moments
from catonnx.math.rounding import quantize_weight
from catonnx.planning.allocation import Allotment, allot, decide, with_bits
from catonnx.planning.quality import Prediction
from catonnx.planning.siteplan import Plan, SitePlan
from catonnx.recipe import Recipe
from tests.graph.builder import Net

Array = NDArray[np.float64]
Weights = Mapping[str, Sequence[Array]]
CHANNEL = Recipe(group_size=None)


def _column(error: float) -> Array:
    """Return a column that 4 bits round to (8, 0): its scale is 1, and `error`, below 1/2, is lost."""
    return np.array([[8.0], [error]])


def _noise(error: float) -> float:
    """Return how much of the energy of such a column is lost."""
    return error**2 / (64 + error**2)


def _weight(error: float, columns: int) -> Array:
    return np.repeat(_column(error), columns, axis=1)


def _site(name: str, inputs: int, *outputs: int) -> Site:
    value = ir.val(name)
    nodes = [ir.node("MatMul", [value, ir.val("w")], name=f"{name}/{index}") for index in range(len(outputs))]
    linears = (Linear(node, inputs, width, ir.DataType.FLOAT) for node, width in zip(nodes, outputs, strict=True))
    return Site(value, inputs, tuple(linears))


def _white(width: int = 2) -> Moments:
    """Return moments of independent channels of mean square 1, no row of them kept."""
    moments = Moments(width, 1)
    moments.update(np.ones((4, width)))
    return moments


def _allot(recipe: Recipe, weights: Weights, named: Sequence[str] = ()) -> tuple[Allotment, ...]:
    """Allot bits to sites that keep their basis, those named keeping 8 bits already."""
    sites = [_site(name, 2, *(weight.shape[1] for weight in own)) for name, own in weights.items()]
    plan = with_bits(Plan(tuple(SitePlan(name, (), ()) for name in weights)), set(named))
    return allot(recipe, plan, sites, {name: _white() for name in weights}, {}, lambda site: weights[site.name])


def _wide(rows: Sequence[Allotment]) -> set[str]:
    return {row.site for row in rows if row.bits == 8}


FOUR: Weights = {
    "large": [_weight(0.4, 8)],
    "noisy": [_weight(0.3, 2)],
    "middle": [_weight(0.35, 2), _weight(0.35, 2)],
    "quiet": [_weight(0.1, 2)],
}
"""Sites of 16, 4, 8 and 4 weights, 32 in all. To keep 8 bits costs 64, 16, 32 and 16 bits above 4; saved per weight is
most at `noisy`, then `middle`, `large`, `quiet`."""


@pytest.mark.parametrize(
    ("keep", "named", "wide"),
    [
        (1, (), {"large"}),
        (2, (), {"large", "middle"}),
        (4, (), set(FOUR)),
        (2, ("quiet",), {"quiet", "large"}),
        (1, ("quiet", "noisy"), {"quiet", "noisy"}),
    ],
)
def test_a_number_of_sites_is_spent_on_the_noisiest_after_those_named(
    keep: int, named: Sequence[str], wide: set[str]
) -> None:
    assert _wide(_allot(replace(CHANNEL, keep_8bit=keep), FOUR, named)) == wide


def test_no_more_sites_can_keep_8_bits_than_there_are() -> None:
    with pytest.raises(UsageError, match="keep_8bit is 5, and there are 4 sites"):
        _allot(replace(CHANNEL, keep_8bit=5), FOUR)


@pytest.mark.parametrize(
    ("mean", "named", "wide"),
    [
        (4.0, (), set()),
        (4.4, (), set()),  # 12.8 bits to spare
        (4.5, (), {"noisy"}),  # 16: just enough
        (5.5, (), {"noisy", "middle"}),  # 48
        (6.0, (), {"noisy", "middle", "quiet"}),  # 64: not enough is left for `large`, but for what comes after it
        (7.5, (), {"noisy", "middle", "large"}),  # 112
        (8.0, (), set(FOUR)),
        (4.0, ("large",), {"large"}),  # named, whatever it costs
        (6.0, ("large",), {"large"}),  # and nothing is left
        (6.5, ("large",), {"large", "noisy"}),
    ],
)
def test_a_mean_of_bits_is_spent_where_a_weight_saves_most(mean: float, named: Sequence[str], wide: set[str]) -> None:
    assert _wide(_allot(replace(CHANNEL, target_bits=mean), FOUR, named)) == wide


def test_an_allotment_tells_weights_and_both_figures() -> None:
    weights = {"two": [_weight(0.4, 3), _weight(0.2, 5)], "wide": [_weight(0.4, 3)]}
    sites = [_site("two", 2, 3, 5), _site("wide", 2, 3)]
    plan = with_bits(Plan((SitePlan("two", (), ()), SitePlan("wide", (), ()))), {"wide"})
    moments = {"two": _white(), "wide": _white()}
    predictions = {"two": Prediction(12.0, 20.0, (0.0, 4.0), (-9.0, -5.0))}
    two, wide = allot(CHANNEL, plan, sites, moments, predictions, lambda site: weights[site.name])
    assert (two.weights, two.predicted_db, two.bits) == (16, 20, 4)
    assert (wide.weights, wide.predicted_db, wide.bits) == (6, None, 8)
    mean = (_noise(0.4) + _noise(0.2)) / 2  # each linear counts once, whatever its width
    assert two.measured_db == pytest.approx(-10 * np.log10(mean))
    # 8 bits have a scale of 8 / 128: 0.4 is 6.4 of them, and 0.4 of one is lost.
    assert wide.measured_db == pytest.approx(-10 * np.log10((0.4 / 16) ** 2 / (64 + 0.4**2)))


def test_without_rows_an_error_counts_by_the_moments_of_the_new_basis() -> None:
    moments = Moments(2, 1)
    moments.update(np.array([[1.0, 3.0]]))
    plan = Plan((SitePlan("x", (Scale(np.array([0.5, 2.0])),), ()),))
    weight = np.array([[4.0], [0.8]])  # read as (8, 0.4) by x' = (0.5, 6)
    (row,) = allot(CHANNEL, plan, [_site("x", 2, 1)], {"x": moments}, {}, lambda _: [weight])
    assert row.measured_db == pytest.approx(10 * np.log10((4.0**2 + 2.4**2) / 2.4**2))


@pytest.mark.parametrize("grid", [None, ActivationGrid(4), ActivationGrid(8, symmetric=False)])
def test_with_rows_the_error_is_that_of_the_rounded_product(grid: ActivationGrid | None) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 8)).astype(np.float32) * np.geomspace(0.01, 100, 40, dtype=np.float32)[:, None]
    weights = [rng.standard_normal((8, columns)) for columns in (3, 30)]
    basis = np.eye(8) + 0.4 * rng.standard_normal((8, 8))
    factors: tuple[Factor, ...] = (Blocks(basis[None]),)
    moments = Moments(8, 1, kept_rows=200)
    moments.update(rows)
    plan = Plan((SitePlan("x", (), factors, grid=grid),))
    (row,) = allot(CHANNEL, plan, [_site("x", 8, 3, 30)], {"x": moments}, {}, lambda _: weights)

    read = rows @ basis if grid is None else grid.round(rows @ basis)
    shares = []
    for weight in weights:
        rounded = quantize_weight(np.linalg.inv(basis) @ weight, None, method="nearest").dequantize()
        exact = rows @ weight
        sizes = np.linalg.norm(exact, axis=1)
        shares.append(np.sum(((read @ rounded - exact) ** 2).sum(axis=1) / sizes) / sizes.sum())
    assert row.measured_db == pytest.approx(-10 * np.log10(np.mean(shares)), abs=1e-3)  # float32


@pytest.mark.parametrize(
    "grid",
    [
        ActivationGrid(4, clip=0.7),
        ActivationGrid(4, symmetric=False, group_size=4, clip=0.8),
        ActivationGrid(4, fixed=(0.3, 0.0)),
        ActivationGrid(4, symmetric=False, fixed=(0.2, -1.3)),
    ],
)
def test_8_bits_span_the_same_fixed_range_or_the_whole_of_each_token(grid: ActivationGrid) -> None:
    other = SitePlan("other", (), (), grid=grid)
    untouched, wide = with_bits(Plan((other, SitePlan("x", (), (), grid=grid))), {"x"}).sites
    assert untouched is other
    assert wide.bits == 8
    assert wide.grid is not None
    assert (wide.grid.bits, wide.grid.symmetric, wide.grid.group_size) == (8, grid.symmetric, grid.group_size)
    assert wide.grid.clip == 1
    assert (wide.grid.fixed is None) == (grid.fixed is None)
    if grid.fixed is not None and wide.grid.fixed is not None:
        ends = [
            fixed[0] * each.codes[1] + fixed[1] for each, fixed in ((grid, grid.fixed), (wide.grid, wide.grid.fixed))
        ]
        assert ends[0] == pytest.approx(ends[1])
        assert wide.grid.fixed[1] == grid.fixed[1]


@pytest.mark.parametrize("grid", [None, ActivationGrid(8, clip=0.9), ActivationGrid(8, fixed=(0.1, 0.0))])
def test_an_activation_in_float_or_8_bits_stays_as_it_is(grid: ActivationGrid | None) -> None:
    (wide,) = with_bits(Plan((SitePlan("x", (), (), grid=grid),)), {"x"}).sites
    assert (wide.bits, wide.grid) == (8, grid)


def _decided(recipe: Recipe, seen: list[Allotment] | None = None) -> Plan:
    """Return the plan of x -> three linears (the last is left in float) -> Relu -> one more."""
    net = Net()
    x = net.input("x", ["rows", 8])
    first, second, third = (net.op("MatMul", x, net.normal(8, 8)) for _ in range(3))
    hidden = net.op("Relu", net.op("Add", net.op("Add", first, second), third), result="hidden")
    net.output(net.op("MatMul", hidden, net.normal(8, 4)))
    for node, name in zip((node for node in net.nodes if node.op_type == "MatMul"), "qkvo", strict=True):
        node.name = name
    opened = analyse(net.model(), replace(recipe, exclude=("v",), lm_head=True))
    moments = {site.name: _white(8) for site in opened.sites}
    return decide(opened, moments, opened.recipe, (lambda _: None) if seen is None else seen.extend)


@pytest.mark.parametrize(
    ("patterns", "bits"),
    [((), [4, 4]), (("q",), [8, 4]), (("k",), [8, 4]), (("o",), [4, 8]), (("k", "o"), [8, 8]), (("[ko]",), [8, 8])],
)
def test_a_site_keeps_8_bits_if_one_of_its_linears_is_named(patterns: tuple[str, ...], bits: list[int]) -> None:
    recipe = Recipe(transform="none", w8=patterns)
    assert [site.bits for site in _decided(recipe).sites] == bits


@pytest.mark.parametrize("pattern", ["v", "Q", "nothing*"])
def test_a_name_of_nothing_that_is_rounded_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="names no linear that is rounded"):
        _decided(Recipe(transform="none", w8=("q", pattern)))


def test_who_keeps_8_bits_is_announced_and_planned() -> None:
    seen: list[Allotment] = []
    plan = _decided(Recipe(transform="none", w8=("o",), target_bits=8.0), seen)
    assert [(row.site, row.weights, row.bits) for row in seen] == [("x", 128, 8), ("hidden", 32, 8)]
    assert [site.bits for site in plan.sites] == [8, 8]
    assert all(row.predicted_db is not None and np.isfinite(row.measured_db) for row in seen)
