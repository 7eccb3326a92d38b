"""What rounding did to every site: gathered while it is done, and told as rows of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from catonnx.analysis import Opened
from catonnx.graph.sites import Linear
from catonnx.math.moments import Moments
from catonnx.math.rounding import QuantizedWeight
from catonnx.passes.quantize_weights import Observer
from catonnx.planning.quality import Prediction, RoundedSite, mean_error, new_moment
from catonnx.planning.siteplan import Plan, SitePlan, describe, describe_grid
from catonnx.report import SiteRow

Shifts: TypeAlias = dict[str, np.ndarray]
"""Name of what a linear gives out -> what has to be added to it so that its mean is right again, shape (N,)."""


@dataclasses.dataclass(frozen=True, eq=False)
class _SeenSite:
    """What calibration saw of a site, in its new basis.

    Attributes:
        moment: Second moment, in blocks (n, k, k); None where rows say more.
        rows: Some of the rows, (m, d).
        read: What the linears read instead of them, rounded if the plan says so.
    """

    moment: np.ndarray | None
    rows: np.ndarray
    read: np.ndarray

    @staticmethod
    def of(plan: SitePlan, moments: Moments) -> _SeenSite:
        rows = plan.transform(moments.width).apply(moments.rows)
        moment = None if len(rows) else new_moment(plan, moments)
        return _SeenSite(moment, rows, rows if plan.grid is None else plan.grid.round(rows))


def observer(
    opened: Opened,
    plan: Plan,
    moments: Mapping[str, Moments],
    rounded: dict[str, RoundedSite],
    shifts: Shifts | None = None,
) -> Observer:
    """Return what sums up noise and size of every site, in `rounded`, while its linears are rounded.

    With `shifts` it also finds the mean of the error and puts there what makes up for it; moments must have rows then.
    """
    plans = plan.by_site()
    site_of = {linear: site.name for site in opened.sites for linear in site.selected}
    latest: dict[str, _SeenSite] = {}
    counted: set[bytes] = set()

    def observe(linear: Linear, weight: np.ndarray, quantized: QuantizedWeight) -> None:
        name = site_of[linear]
        total = rounded.setdefault(name, RoundedSite())
        if quantized.digest not in counted:  # else linears share it
            counted.add(quantized.digest)
            total.size += (quantized.codes.size * quantized.bits + 7) // 8 + quantized.scales.nbytes
        if name not in moments:
            return
        if name not in latest:
            latest.clear()
            latest[name] = _SeenSite.of(plans[name], moments[name])
        seen, dequantized = latest[name], quantized.dequantize()
        shift = None
        if shifts is not None and not moments[name].assumed:
            mean = mean_error(seen.rows, seen.rows @ weight - seen.read @ dequantized)
            shift = shifts[str(linear.node.outputs[0].name)] = mean.astype(linear.dtype.numpy())
            total.size += shift.nbytes
        if seen.moment is None:
            total.add_outputs(seen.rows, seen.read, weight, dequantized, shift)
        else:
            total.add(seen.moment, weight, dequantized - weight)

    return observe


def rows_of(
    opened: Opened, plan: Plan, predictions: Mapping[str, Prediction], rounded: Mapping[str, RoundedSite]
) -> tuple[SiteRow, ...]:
    """Return a row for every site.

    Args:
        opened: The model.
        plan: What was done to it.
        predictions: By site name; sites without moments are missing.
        rounded: What `observer` gathered, by site name.
    """
    plans = plan.by_site()
    rows = []
    for site in opened.sites:
        own, prediction = plans[site.name], predictions.get(site.name)
        size = int(sum(linear.inputs * linear.outputs for linear in site.selected) * site.dtype.itemsize)
        result = rounded.get(site.name, RoundedSite(size=size))
        rows.append(
            SiteRow(
                site=site.name,
                linears=tuple(linear.name for linear in site.selected),
                shapes=tuple((linear.inputs, linear.outputs) for linear in site.selected),
                absorbed=tuple(describe(factor) for factor in own.absorbed),
                online=tuple(describe(factor) for factor in own.online),
                why=own.why,
                sqnr_before=prediction.before if prediction else None,
                sqnr_after=prediction.after if prediction else None,
                concentration_before=prediction.concentrations[0] if prediction else None,
                concentration_after=prediction.concentrations[1] if prediction else None,
                alignment_before=prediction.alignments[0] if prediction else None,
                alignment_after=prediction.alignments[1] if prediction else None,
                sqnr_weights=result.sqnr_db,
                sqnr_outputs=result.output_sqnr_db,
                bits=own.bits,
                activation="" if own.grid is None else describe_grid(own.grid),
                bytes_before=size,
                bytes_after=result.size,
            )
        )
    return tuple(rows)
