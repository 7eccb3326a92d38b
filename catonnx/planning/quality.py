"""How well a site is rounded: predicted by theory before, measured against the weights after.

Energies of outputs are sums over diagonal blocks of the activation's second moment, so correlation between blocks is
left out of both the signal and the error; differences between before and after do not depend on that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from catonnx.graph.sites import Site
from catonnx.math.factors import Hadamard
from catonnx.math.merging import changed_moment, mixing_width, widened
from catonnx.math.moments import Moments
from catonnx.math.sqnr import (
    concentration_rows,
    concentration_w,
    decibels,
    joint_concentration,
    output_energy,
    predicted_sqnr_db,
)
from catonnx.planning.siteplan import Plan, SitePlan
from catonnx.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted SQNR in dB of a site's outputs before and after the change of basis.

    Weights are rounded, and the activation too where the plan has a grid for it; its ranges are those of the rows that
    calibration kept, nothing cut off.

    Attributes:
        before: SQNR of the old basis.
        after: SQNR of the new one.
        concentrations: C(x) || C(W) before and after, in dB; C(W) alone where the activation stays in float.
        alignments: A before and after, in dB. SQNR is 10 log10(12 (2^bits - 1)^2) + concentration + alignment.
    """

    before: float
    after: float
    concentrations: tuple[float, float]
    alignments: tuple[float, float]


@dataclasses.dataclass
class RoundedSite:
    """What rounding did to a site so far.

    Attributes:
        noise: For each linear the energy of the error in its outputs, in units of the energy of the outputs. Linears of
            one site cannot be summed up before that: one of them may have taken up the scale of a site further on.
        output_noise: The same of weights and activation rounded together, measured on the rows that calibration kept.
        size: Bytes of codes and scales.
    """

    noise: list[float] = dataclasses.field(default_factory=list)
    output_noise: list[float] = dataclasses.field(default_factory=list)
    size: int = 0

    def add(self, moment: np.ndarray, weight: np.ndarray, error: np.ndarray) -> None:
        """Take in one linear: its site's second moment (n, k, k), its weight [d, N] and the error of rounding it."""
        signal = output_energy(moment, weight)
        if signal > 0:
            self.noise.append(output_energy(moment, error) / signal)

    def add_outputs(
        self,
        rows: np.ndarray,
        read: np.ndarray,
        weight: np.ndarray,
        rounded: np.ndarray,
        shift: np.ndarray | None = None,
    ) -> None:
        """Take in one linear.

        Args:
            rows: Some rows of the activation, [n, d].
            read: What is read instead of them.
            weight: The weight, [d, N].
            rounded: The weight as it is rounded.
            shift: Is added to the outputs, [N].
        """
        exact = rows @ weight
        signal = float(np.vdot(exact, exact))
        if signal > 0:
            for noises, seen in ((self.noise, rows), (self.output_noise, read)):
                error = seen @ rounded - exact
                if shift is not None:
                    error += shift
                noises.append(float(np.vdot(error, error)) / signal)

    @property
    def sqnr_db(self) -> float | None:
        """Mean over the linears, in dB; None if no moments were measured."""
        return decibels(len(self.noise), sum(self.noise)) if self.noise else None

    @property
    def output_sqnr_db(self) -> float | None:
        """Mean over the linears of weights and activation rounded together, in dB; None if no rows were kept."""
        return decibels(len(self.output_noise), sum(self.output_noise)) if self.output_noise else None


def mean_error(rows: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return the mean of errors [n, N], each counted by the inverse energy of its row [n, d] of the activation.

    Plainly averaged, a first token that is some hundred times larger than the others would decide for all of them.
    """
    energies = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    counts = 1 / np.maximum(energies, 1e-12 * energies.max(initial=1e-30))
    mean: np.ndarray = counts @ errors / counts.sum()
    return mean


def new_moment(plan: SitePlan, moments: Moments) -> np.ndarray:
    """Return the second moment of a site's activation in its new basis, as diagonal blocks.

    Args:
        plan: The site's change of basis.
        moments: Moments in the old one, diagonal blocks of width k.

    Returns:
        Blocks (d / m, m, m), m the widest mixing of k and all factors.
    """
    widths = [moments.block, *(mixing_width(factor) for factor in plan.factors)]
    block = max(widths)
    if any(block % width for width in widths):
        block = moments.width
    moment = widened(moments.second_moment(), block)
    for factor in plan.factors:
        moment = changed_moment(moment, factor)
    return moment


def _new_energy(plan: SitePlan, moments: Moments) -> float:
    """Return E|x'|^2 of an activation in its new basis; a Hadamard matrix at the end does not change it."""
    factors = list(plan.factors)
    while factors and isinstance(factors[-1], Hadamard):
        factors.pop()
    changing = dataclasses.replace(plan, absorbed=tuple(factors), online=())
    block = math.lcm(*(mixing_width(factor) for factor in factors))
    if moments.block % block == 0:  # nothing wider has a part in the trace
        moments = moments.narrow(block)
    return float(np.trace(new_moment(changing, moments), axis1=1, axis2=2).sum())


def predict(
    sites: Sequence[Site],
    plan: Plan,
    moments: Mapping[str, Moments],
    recipe: Recipe,
    weights_of: Callable[[Site], Sequence[np.ndarray]],
) -> dict[str, Prediction]:
    """Predict the SQNR of every site that has moments and something to round.

    Args:
        sites: Their weights must still be as they were.
        plan: The changes of basis.
        moments: Second moments by site name; sites without are left out.
        recipe: Gives the group size.
        weights_of: Returns the weights [d, N] of a site, float64.
    """
    plans = plan.by_site()
    result = {}
    for site in sites:
        measured = moments.get(site.name)
        if measured is None:
            continue
        own, moment = plans[site.name], measured.second_moment()
        transform, signal = own.transform(site.width), 0.0
        old, new = _Columns(recipe.group_size), _Columns(recipe.group_size)
        for weight in weights_of(site):
            signal += output_energy(moment, weight)
            old.add(weight)
            new.add(transform.solve(weight))
        if not old.energy or not measured.diagonal().any():
            continue
        x_energy = (
            float(measured.diagonal().sum()),
            _new_energy(own, measured),
        )
        rows = measured.rows[: own.grid is not None and len(measured.rows)]
        moved: np.ndarray = transform.apply(rows)
        bits = {"weight_bits": own.bits, "activation_bits": own.grid.bits if own.grid else 4}
        alignments = [signal / (energy * columns.energy) for energy, columns in zip(x_energy, (old, new), strict=True)]
        concentrations = [
            (columns.concentration, _concentration(own, seen))
            for columns, seen in zip((old, new), (rows, moved), strict=True)
        ]
        before, after = (
            predicted_sqnr_db(aligned, *both, **bits) for aligned, both in zip(alignments, concentrations, strict=True)
        )
        joint_before, joint_after = (decibels(joint_concentration(*both, **bits), 1.0) for both in concentrations)
        aligned_before, aligned_after = (decibels(aligned, 1.0) for aligned in alignments)
        result[site.name] = Prediction(before, after, (joint_before, joint_after), (aligned_before, aligned_after))
    return result


@dataclasses.dataclass
class _Columns:
    """Energy and concentration of a weight that comes in parts, some columns at a time: it may be large."""

    group_size: int | None
    energy: float = 0.0
    noise: float = 0.0

    def add(self, weight: np.ndarray) -> None:
        energy = float(np.vdot(weight, weight))
        if energy > 0:
            self.energy += energy
            self.noise += energy / concentration_w(weight, self.group_size)

    @property
    def concentration(self) -> float:
        return self.energy / self.noise


def _concentration(plan: SitePlan, rows: np.ndarray) -> float | None:
    """Return C(x) of rows; None if the activation is not rounded or no rows were kept."""
    return concentration_rows(rows, plan.grid.group_size, plan.grid.symmetric) if plan.grid and len(rows) else None
