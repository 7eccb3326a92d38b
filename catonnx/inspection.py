"""`inspect`: what there is to optimize in a model, what the graph before it can take up, and what stands in the way."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from catonnx.analysis import Opened, analyse, selected_weights
from catonnx.calibrating import calibration_feeds, measure_sites
from catonnx.graph import load
from catonnx.graph.absorb import Absorption
from catonnx.graph.sites import Site
from catonnx.math.moments import Moments
from catonnx.math.sqnr import concentration_w, concentration_x, decibels, output_energy
from catonnx.planning.plan import make_plan
from catonnx.planning.plancheck import check_plan
from catonnx.planning.quality import predict
from catonnx.planning.siteplan import Plan, SitePlan, describe
from catonnx.progress import Progress, silent
from catonnx.recipe import Recipe
from catonnx.runtime.blame import blaming
from catonnx.runtime.kernels import Kernel, kernels
from catonnx.runtime.lengths import blaming_length


@dataclasses.dataclass(frozen=True)
class Figures:
    """What rounding to 4 bits does to a site, as theory predicts it, all in dB.

    Energies of activation and output are those of the diagonal blocks that the plan needs, as in the report of
    `optimize`.

    Attributes:
        sqnr_before: Of the outputs, weights rounded as they are.
        sqnr_after: Of the outputs, weights rounded in the new basis.
        x_concentration: C(x): how far the activation is from having outliers (one range per row).
        w_concentration: C(W): the same of the weights (one range per group).
        alignment: A: how well activation and weights point in the same directions; 0 is the best.
    """

    sqnr_before: float
    sqnr_after: float
    x_concentration: float
    w_concentration: float
    alignment: float


@dataclasses.dataclass(frozen=True)
class SiteView:
    """One site.

    Attributes:
        site: Name of the activation.
        linears: Names of the linears that read it and are rounded.
        operators: What they are: MatMul or Gemm.
        inputs: Channels of the activation, K.
        outputs: N of each linear.
        path: Operators from the site back to what could take a factor up.
        width: What could be absorbed: 0 nothing, 1 a scaling, h blocks of h channels.
        ties: Channels are treated alike in sets of this size; 1 if each is free. 0 if the sets differ in size.
        caches: Outputs (attention caches) whose basis would change with it.
        reason: Why nothing, or nothing more, can be absorbed.
        absorbed: Factors of the plan that are absorbed; empty without a plan.
        online: Factors of the plan that stay as nodes.
        why: Notes of the plan.
        figures: Predictions; None without calibration.
    """

    site: str
    linears: tuple[str, ...]
    operators: tuple[str, ...]
    inputs: int
    outputs: tuple[int, ...]
    path: tuple[str, ...]
    width: int
    ties: int
    caches: tuple[str, ...]
    reason: str
    absorbed: tuple[str, ...] = ()
    online: tuple[str, ...] = ()
    why: str = ""
    figures: Figures | None = None


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found in a model.

    Attributes:
        source: The model.
        digest: SHA-256 over it.
        sites: Every site with something to round, in graph order.
        left: (node, operator, reason) of everything that looks like a linear and is left alone.
        planned: Whether the rows tell of a plan.
    """

    source: str
    digest: str
    sites: tuple[SiteView, ...]
    left: tuple[tuple[str, str, str], ...]
    planned: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data; a figure that is not finite becomes None."""
        data = dataclasses.asdict(self)
        for site in data["sites"]:
            figures = site["figures"] or {}
            figures |= {name: None for name, value in figures.items() if not np.isfinite(value)}
        return data


def inspect(
    model: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    plan: Plan | None = None,
    progress: Progress = silent,
) -> Inspection:
    """Look at a model without changing anything.

    Args:
        model: An .onnx file, or a folder with `model.onnx`.
        recipe: Selects linears. If it names a calibration, activations are measured and the effect of its plan is
            predicted.
        plan: Shown, and judged, in place of the one that would be made.
        progress: Told of long steps.

    Raises:
        CatonnxError: one of its subclasses, see `catonnx.errors`.
    """
    recipe = recipe or Recipe()
    source = load.find(Path(model))
    # One BLAS thread for the reason that `optimize` has.
    with (
        threadpool_limits(1, "blas"),
        np.errstate(over="ignore"),
        tempfile.TemporaryDirectory(prefix="catonnx-") as folder,
        load.naming(Path(folder, load.COPY), source.path),
        blaming(source.path, recipe.provider),
        blaming_length(source.path.parent),
    ):
        work = Path(folder)
        if not recipe.calibration:
            opened = analyse(load.load(source.path), recipe)
            moments: Mapping[str, Moments] = {}
        else:
            reference = load.bring(source, work)
            opened = analyse(load.load(reference), recipe)
            moments = _measured(opened, reference, source, work, recipe, progress)
        if plan is None and moments:
            plan = make_plan(
                recipe,
                opened.sites,
                opened.absorptions,
                moments,
                selected_weights,
                tied=opened.tied,
                leaders=opened.leaders,
            )
        if plan is not None:
            check_plan(plan, opened.sites, opened.absorptions, opened.tied)
        figures = _figures(opened, plan, moments, recipe) if plan is not None else {}
        sites = tuple(_view(site, opened.absorptions[site.name], plan, figures.get(site.name)) for site in opened.sites)
        return Inspection(str(model), source.digest, sites, opened.left_alone(), plan is not None)


def _measured(
    opened: Opened, reference: Path, source: load.Source, work: Path, recipe: Recipe, progress: Progress
) -> Mapping[str, Moments]:
    if not opened.sites:
        return {}
    feeds = calibration_feeds(reference, source, opened, recipe, recipe.samples, progress)
    return measure_sites(opened, work, feeds, recipe, progress)


def _figures(opened: Opened, plan: Plan, moments: Mapping[str, Moments], recipe: Recipe) -> dict[str, Figures]:
    predictions = predict(opened.sites, plan, moments, recipe, selected_weights)
    result = {}
    for site in opened.sites:
        prediction = predictions.get(site.name)
        if prediction is None:
            continue
        measured, weight = moments[site.name], np.concatenate(selected_weights(site), axis=1)
        moment = measured.second_moment()
        aligned = output_energy(moment, weight), float(measured.diagonal().sum()) * float(np.vdot(weight, weight))
        result[site.name] = Figures(
            prediction.before,
            prediction.after,
            decibels(concentration_x(measured, symmetric=False), 1.0) if measured.squared_range else math.nan,
            decibels(concentration_w(weight, recipe.group_size), 1.0),
            decibels(*aligned),
        )
    return result


def _view(site: Site, absorption: Absorption, plan: Plan | None, figures: Figures | None) -> SiteView:
    chosen = SitePlan(site.name, (), ()) if plan is None else plan.by_site()[site.name]
    return SiteView(
        site=site.name,
        linears=tuple(linear.name for linear in site.selected),
        operators=tuple(linear.node.op_type for linear in site.selected),
        inputs=site.width,
        outputs=tuple(linear.outputs for linear in site.selected),
        path=absorption.path,
        width=absorption.width,
        ties=_tied(absorption),
        caches=absorption.caches,
        reason=absorption.reason,
        absorbed=tuple(map(describe, chosen.absorbed)),
        online=tuple(map(describe, chosen.online)),
        why=chosen.why,
        figures=figures,
    )


def _tied(absorption: Absorption) -> int:
    """Return how many channels share a factor, 0 if that differs from set to set."""
    sizes = np.unique(np.bincount(absorption.ties))
    return int(sizes[0]) if len(sizes) == 1 else 0


def inspect_runtime(model: str | os.PathLike[str], provider: str = "cpu") -> tuple[Kernel, ...]:
    """Say which kernel of ONNX Runtime runs each linear of a model, optimized or not, and why.

    Args:
        model: An .onnx file, or a folder with `model.onnx`.
        provider: "cpu" or "cuda".

    Raises:
        ModelError: the model does not load.
        RuntimeUnavailableError: ONNX Runtime or the provider is not there.
    """
    return kernels(load.find(Path(model)).path, provider)
