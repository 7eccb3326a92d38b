"""What `tools/bench_quality.py` measures: one line for each row of its table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from catonnx.recipe.presets import PRESETS

TOKEN, GROUPS, WEIGHTS, EIGHT, CHANNEL = "w4a4", "w4a4-g64", "w4a16-g32", "w4a8", "w4a16"

SCHEMES: Mapping[str, Mapping[str, Any]] = {
    TOKEN: {"scheme": "w4a4", "group_size": None},
    GROUPS: {"scheme": "w4a4", "group_size": 64, "activation_group_size": 64},
    WEIGHTS: {"scheme": "w4a16", "group_size": 32},
    EIGHT: {"scheme": "w4a8", "group_size": None},
    CHANNEL: {"scheme": "w4a16", "group_size": None},
}
"""What all rows of a scheme share; everything else is a default of `Recipe` unless the row says so."""

SCHEME_WORDS: Mapping[str, str] = {
    TOKEN: "int4 weights, one scale per output channel; int4 activations, asymmetric, one range per token",
    GROUPS: "int4 weights and activations, one scale per group of 64 channels on both sides",
    WEIGHTS: "int4 weights, one scale per group of 32 rows; activations in float",
    EIGHT: "int4 weights, one scale per output channel; int8 activations, asymmetric, one range per token",
    CHANNEL: "int4 weights, one scale per output channel; activations in float",
}


@dataclasses.dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        scheme: Key of `SCHEMES`.
        name: What it is called within its scheme.
        recipe: What it sets on top of the scheme.
        note: The setting in words, where the name does not say it.
        quick: Whether `--quick` measures it.
        baseline: Whether it is somebody else's method, to be better than.
        peer: Who makes it, in `bench_peers`; empty if it is made by ourselves.
        only_named: Whether it is measured only where `--only` names it, for it is slow or tells little more.
    """

    scheme: str
    name: str
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    quick: bool = False
    baseline: bool = False
    peer: str = ""
    only_named: bool = False

    @property
    def key(self) -> str:
        """The row's name, unique in the table."""
        return f"{self.scheme}/{self.name}"

    @property
    def wishes(self) -> dict[str, Any]:
        """Arguments of `Recipe`, without those that say what to calibrate on."""
        return {**SCHEMES[self.scheme], **self.recipe}


HADAMARD, CAT, BEST, DEFAULT_PEER = "hadamard", "cat", "best", "onnxruntime default"
CAT_128 = "cat 144/128"

_NONE, _HADAMARD, _CAT, _WUSH = ({"transform": name} for name in ("none", "hadamard", "cat", "wush"))
_GPTQ, _SEQUENTIAL = {"rounding": "gptq"}, {"rounding": "sequential"}
_BIAS = {"correct_bias": True}
_BUDGET = {"max_overhead": 0.05, "keep_8bit": 8}

METHODS: tuple[Method, ...] = (
    Method(TOKEN, "none", _NONE, quick=True, baseline=True),
    Method(TOKEN, "smoothquant", {"transform": "smoothquant"}, "alpha 0.5", baseline=True),
    Method(TOKEN, HADAMARD, _HADAMARD, "QuaRot-like, per site, full width", quick=True, baseline=True),
    Method(
        TOKEN, "spinquant", {"transform": "spinquant"}, "SpinQuant-like, a rotation learned per site", baseline=True
    ),
    Method(TOKEN, "flatquant", {"transform": "flatquant"}, "FlatQuant-like, learned per site", baseline=True),
    Method(TOKEN, "onnxsim quarot", note="weights in groups of 32, symmetric", peer="onnxsim quarot", baseline=True),
    Method(TOKEN, "scale + hadamard", {**_CAT, "block_size": 1}),
    Method(TOKEN, "cat 16", {**_CAT, "block_size": 16}),
    Method(TOKEN, "cat 32", {**_CAT, "block_size": 32}, only_named=True),
    Method(TOKEN, "cat 64", {**_CAT, "block_size": 64}),
    Method(TOKEN, CAT_128, {**_CAT, "block_size": 144}, quick=True),
    Method(TOKEN, "cat 144/128 + permute", {**_CAT, "block_size": 144, "permute": True}, "alike channels gathered"),
    Method(TOKEN, "cat full", {**_CAT, "block_size": 1 << 20}, "one block as wide as the site"),
    Method(TOKEN, CAT, _CAT, "only the blocks that are free", quick=True),
    Method(TOKEN, "wush", _WUSH),
    Method(TOKEN, "cat + bias", {**_CAT, **_BIAS}, "the mean of the error added to outputs"),
    Method(TOKEN, "cat + gptq", {**_CAT, **_GPTQ}),
    Method(TOKEN, "cat + sequential", {**_CAT, **_SEQUENTIAL}),
    Method(TOKEN, "cat + refine", {**_CAT, "refine": True}, "scales, blocks and clip ratios learned per site"),
    Method(TOKEN, BEST, {**_CAT, **PRESETS["best"], **_BUDGET}, "5 % of multiply-adds, 8 sites in 8 bits"),
    Method(GROUPS, "none", _NONE, baseline=True),
    Method(GROUPS, HADAMARD, _HADAMARD, quick=True, baseline=True),
    Method(GROUPS, CAT, _CAT, quick=True),
    Method(GROUPS, "cat 64", {**_CAT, "block_size": 64}, "blocks of 64, one matrix with the Hadamard"),
    Method(GROUPS, "wush", _WUSH, "blocks of 64"),
    Method(GROUPS, "cat + gptq", {**_CAT, **_GPTQ}),
    Method(GROUPS, "cat + sequential", {**_CAT, **_SEQUENTIAL}),
    Method(GROUPS, BEST, {**_CAT, **PRESETS["best"], **_BUDGET, "block_size": 64}, "the same budget"),
    Method(WEIGHTS, DEFAULT_PEER, note="RTN, symmetric", quick=True, peer=DEFAULT_PEER, baseline=True),
    Method(WEIGHTS, "onnxruntime k_quant", note="asymmetric", peer="onnxruntime k_quant", baseline=True),
    Method(WEIGHTS, "onnxruntime HQQ 64", note="asymmetric, groups of 64", peer="onnxruntime HQQ 64", baseline=True),
    Method(
        WEIGHTS,
        "onnxruntime GPTQ",
        note="symmetric; it ignores its calibration data, so it gets one short row",
        peer="onnxruntime GPTQ",
        baseline=True,
        only_named=True,
    ),
    Method(WEIGHTS, "onnxsim int4", note="its default, groups of 32", peer="onnxsim int4", baseline=True),
    Method(WEIGHTS, "none", _NONE, baseline=True),
    Method(WEIGHTS, HADAMARD, _HADAMARD, baseline=True),
    Method(WEIGHTS, CAT, _CAT, quick=True),
    Method(WEIGHTS, "cat + bias", {**_CAT, **_BIAS}, "the mean of the error added to outputs"),
    Method(WEIGHTS, "cat + gptq", {**_CAT, **_GPTQ}),
    Method(WEIGHTS, BEST, {**_CAT, **PRESETS["best"]}, "cat, gptq and bias"),
    Method(WEIGHTS, "cat + sequential", {**_CAT, **_SEQUENTIAL}),
    Method(EIGHT, "none", _NONE, baseline=True),
    Method(EIGHT, CAT, _CAT, quick=True),
    Method(CHANNEL, CAT, _CAT, "the weights of w4a8/cat", quick=True),
)
