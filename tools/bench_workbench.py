"""One model, calibrated once, and rounded from there as often as there are methods to compare.

It takes the steps of `catonnx.optimize` between calibration and saving, without the checks: they are not what is
compared. Moments are kept whole, as wide as each site, and every plan gets the part that it asks for.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catonnx.analysis import Opened, analyse, selected_weights
from catonnx.calibrating import calibration_feeds, measure_sites
from catonnx.graph import load
from catonnx.graph.save import write_model
from catonnx.math.moments import Moments
from catonnx.outcome import Shifts, observer, rows_of
from catonnx.planning.allocation import decide
from catonnx.planning.plan import moment_width
from catonnx.planning.quality import RoundedSite, predict
from catonnx.planning.siteplan import Plan, describe, online_multiply_adds
from catonnx.progress import silent
from catonnx.recipe import Recipe
from catonnx.report import SiteRow
from catonnx.rewriting import transform, write_rounded
from catonnx.rounders import Dampings, make_rounder
from catonnx.runtime.feeds import Feeds


@dataclasses.dataclass(frozen=True)
class Rounded:
    """One way of rounding, done.

    Attributes:
        sites: What was done where, and how well it held.
        overhead: Multiply-adds of the factors that run as nodes over those of the linears.
        factors: How often each factor was absorbed and left online.
        dampings: Sites whose second moment needed more damping than asked for.
        seconds: What it took, calibration included where the recipe needs it.
    """

    sites: tuple[SiteRow, ...]
    overhead: float
    factors: dict[str, dict[str, int]]
    dampings: Dampings
    seconds: float

    @property
    def sqnr_db(self) -> float:
        """Mean over the sites of the SQNR of their outputs, weights and activations rounded, in dB."""
        known = [row.sqnr_outputs for row in self.sites if row.sqnr_outputs is not None]
        return sum(known) / len(known)

    @property
    def eight(self) -> int:
        """Number of sites that keep 8 bits."""
        return sum(row.bits == 8 for row in self.sites)

    @property
    def notes(self) -> dict[str, int]:
        """What the plan says of sites, and of how many: factors that are not absorbed, blocks that were narrowed."""
        return dict(Counter(row.why for row in self.sites if row.why).most_common())


class Workbench:
    """A model with its calibration.

    Args:
        model: An .onnx file or a folder.
        calibration: The text.
        samples: Sequences of it.
        seq_len: Tokens in each.
        scratch: An existing, empty folder for the model's copy and all work files.
    """

    def __init__(self, model: Path, calibration: Path, samples: int, seq_len: int, scratch: Path) -> None:
        self._text: dict[str, Any] = {"calibration": str(calibration), "samples": samples, "seq_len": seq_len}
        self._scratch = scratch
        # Of all recipes this one wants the most of calibration: whole moments, and rows.
        recipe = Recipe(**self._text, scheme="w4a4", group_size=None, rounding="gptq")
        begin = time.perf_counter()
        source = load.find(model)
        self.reference = load.bring(source, scratch)
        opened = analyse(load.load(self.reference), recipe)
        self._feeds: Sequence[Feeds] = calibration_feeds(self.reference, source, opened, recipe, samples, silent)
        self.moments = measure_sites(opened, scratch, self._feeds, recipe, silent)
        """Of every site, whole, with the rows that were kept."""
        self.left = tuple(name for name, _, _ in opened.left_alone())
        """Names of the nodes that look like linears and stay in float."""
        self.calibration_seconds = time.perf_counter() - begin

    def open(self, wishes: dict[str, Any]) -> Opened:
        """Return the model as it was, opened for a recipe: arguments of `Recipe`, without those about calibration."""
        return analyse(load.load(self.reference), Recipe(**self._text, **wishes))

    def round(self, wishes: dict[str, Any], out: Path) -> Rounded:
        """Write the model that a recipe makes.

        Args:
            wishes: Arguments of `Recipe`, without those about calibration.
            out: A new .onnx file in an existing folder.
        """
        begin = time.perf_counter()
        opened = self.open(wishes)
        recipe, moments = opened.recipe, self._seen(opened)
        plan = decide(opened, moments, recipe)
        predictions = predict(opened.sites, plan, moments, recipe, selected_weights)
        transform(opened, plan)
        rounded: dict[str, RoundedSite] = {}
        dampings: Dampings = {}
        rounder = make_rounder(
            opened,
            plan,
            moments,
            recipe,
            feeds=self._feeds,
            scratch=self._scratch,
            dampings=dampings,
            progress=silent,
        )
        shifts: Shifts | None = {} if recipe.correct_bias else None
        write_rounded(opened, plan, rounder, observer(opened, plan, moments, rounded, shifts), shifts, silent)
        write_model(opened.model, out)
        seconds = time.perf_counter() - begin + (self.calibration_seconds if recipe.needs_moments else 0.0)
        linears = sum(linear.inputs * linear.outputs for site in opened.sites for linear in site.selected)
        return Rounded(
            rows_of(opened, plan, predictions, rounded),
            sum(online_multiply_adds(item) for item in plan.sites) / linears,
            _factors(plan),
            dampings,
            seconds,
        )

    def _seen(self, opened: Opened) -> dict[str, Moments]:
        """Return as much of the moments as `optimize` would have measured; rows are always there, to measure SQNR."""
        result = {}
        for site in opened.sites:
            whole = self.moments[site.name]
            width = moment_width(site.width, opened.absorptions[site.name], opened.recipe)
            result[site.name] = whole if width == whole.block else whole.narrow(width)
        return result


def _factors(plan: Plan) -> dict[str, dict[str, int]]:
    absorbed = Counter(describe(factor) for item in plan.sites for factor in item.absorbed)
    online = Counter(describe(factor) for item in plan.sites for factor in item.online)
    return {"absorbed": dict(absorbed.most_common()), "online": dict(online.most_common())}
