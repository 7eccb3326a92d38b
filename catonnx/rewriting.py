"""What becomes of a model, in order: transforms taken up and inserted, weights and activations rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from catonnx.analysis import Opened
from catonnx.graph.save import Spill, held
from catonnx.passes.absorb import Absorb, AbsorbedTransform
from catonnx.passes.add_as_sum import AddAsSum
from catonnx.passes.clamp_as_max import ClampAsMax
from catonnx.passes.insert import Insert, OnlineTransform
from catonnx.passes.integer_products import IntegerProducts
from catonnx.passes.operator_products import OperatorProducts
from catonnx.passes.quantize_activations import QuantizeActivations
from catonnx.passes.quantize_weights import Observer, QuantizeWeights, Rounder
from catonnx.passes.shift_outputs import ShiftOutputs
from catonnx.planning.siteplan import Plan
from catonnx.progress import Progress


def transform(opened: Opened, plan: Plan) -> None:
    """Bring every site of a model into its new basis, in place: the same function, nothing rounded."""
    Absorb(_absorbed(opened, plan))(opened.model)
    Insert(_online(opened, plan), operators=opened.recipe.form == "op")(opened.model)


def write_rounded(
    opened: Opened,
    plan: Plan,
    rounder: Rounder,
    observe: Observer,
    shifts: Mapping[str, np.ndarray] | None,
    progress: Progress,
    spill: Spill = held,
) -> None:
    """Round a transformed model in place, in the form that its recipe wants.

    Args:
        opened: The model in its new basis.
        plan: Its changes of basis, bits and activation grids.
        rounder: Rounds each weight.
        observe: Is told what became of it.
        shifts: What is added to the outputs of linears, once all of them are rounded; `observe` may fill it in.
        progress: Told of long steps.
        spill: Takes codes and scales out of memory.
    """
    recipe, plans = opened.recipe, plan.by_site()
    # A product of codes needs its activation rounded, and in bodies activations stay in float.
    grids = tuple((site, grid) for site in opened.sites if (grid := plans[site.name].grid) is not None)
    codes = grids if recipe.form in ("integer", "op") else ()
    ours = tuple(item for item in codes if recipe.form == "op" and plans[item[0].name].bits == 4)
    if ours:
        OperatorProducts(ours, rounder, observe, spill, progress, opened.tables)(opened.model)
    if integer := tuple(item for item in codes if item not in ours):
        IntegerProducts(integer, rounder, recipe.provider, observe, spill, progress, opened.tables)(opened.model)
    done = {site for site, _ in codes}
    linears = tuple(linear for site in opened.sites if site not in done for linear in site.selected)
    form: Literal["qdq", "nbits"] = "nbits" if recipe.form in ("nbits", "op") else "qdq"
    level = recipe.kernel_level
    QuantizeWeights(linears, rounder, form, level, observe, spill, progress, opened.tables)(opened.model)
    if shifts:
        ShiftOutputs(shifts)(opened.model)
    if recipe.form == "qdq":
        QuantizeActivations(grids)(opened.model)
    if form == "qdq":
        AddAsSum(linears)(opened.model)
        ClampAsMax(linears)(opened.model)


def _absorbed(opened: Opened, plan: Plan) -> tuple[AbsorbedTransform, ...]:
    plans, result = plan.by_site(), []
    for site in opened.sites:
        absorption, factors = opened.absorptions[site.name], plans[site.name].absorbed
        if not factors or absorption.peers[:1] not in ((), (site,)):
            continue  # what several sites share is written once, for the first of them
        others = tuple(other for other in absorption.shared if other is not site)
        result.append(AbsorbedTransform(site, absorption.writers, factors, absorption.permutable, others))
    return tuple(result)


def _online(opened: Opened, plan: Plan) -> tuple[OnlineTransform, ...]:
    plans = plan.by_site()
    return tuple(OnlineTransform(site, plans[site.name].online) for site in opened.sites if plans[site.name].online)
