"""What becomes of a model, in order: transforms taken up and inserted, weights and activations rounded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from catonnx.analysis import Opened
from catonnx.passes.absorb import Absorb, AbsorbedTransform
from catonnx.passes.clamp_as_max import ClampAsMax
from catonnx.passes.insert import Insert, OnlineTransform
from catonnx.passes.integer_products import IntegerProducts
from catonnx.passes.quantize_activations import QuantizeActivations
from catonnx.passes.quantize_weights import Observer, QuantizeWeights, Rounder
from catonnx.passes.shift_outputs import ShiftOutputs
from catonnx.progress import Progress
from catonnx.siteplan import Plan


def transform(opened: Opened, plan: Plan) -> None:
    """Bring every site of a model into its new basis, in place: the same function, nothing rounded."""
    Absorb(_absorbed(opened, plan))(opened.model)
    Insert(_online(opened, plan))(opened.model)


def write_rounded(
    opened: Opened,
    plan: Plan,
    rounder: Rounder,
    observe: Observer,
    shifts: Mapping[str, np.ndarray] | None,
    progress: Progress,
) -> None:
    """Round a transformed model in place, in the form that its recipe wants.

    Args:
        opened: The model in its new basis.
        plan: Its changes of basis, bits and activation grids.
        rounder: Rounds each weight.
        observe: Is told what became of it.
        shifts: What is added to the outputs of linears, once all of them are rounded; `observe` may fill it in.
        progress: Told of long steps.
    """
    recipe, plans = opened.recipe, plan.by_site()
    linears = tuple(linear for site in opened.sites for linear in site.selected)
    grids = tuple((site, grid) for site in opened.sites if (grid := plans[site.name].grid) is not None)
    if recipe.form == "integer":
        IntegerProducts(grids, rounder, recipe.provider, observe, progress, opened.tables)(opened.model)
    else:
        level = recipe.kernel_level
        QuantizeWeights(linears, rounder, recipe.form, level, observe, progress, opened.tables)(opened.model)
    if shifts:
        ShiftOutputs(shifts)(opened.model)
    if recipe.form == "qdq":
        QuantizeActivations(grids)(opened.model)
        ClampAsMax(linears)(opened.model)


def _absorbed(opened: Opened, plan: Plan) -> tuple[AbsorbedTransform, ...]:
    plans = plan.by_site()
    return tuple(
        AbsorbedTransform(site, absorption.writers, plans[site.name].absorbed, absorption.permutable)
        for site in opened.sites
        if plans[site.name].absorbed and (absorption := opened.absorptions[site.name])
    )


def _online(opened: Opened, plan: Plan) -> tuple[OnlineTransform, ...]:
    plans = plan.by_site()
    return tuple(OnlineTransform(site, plans[site.name].online) for site in opened.sites if plans[site.name].online)
