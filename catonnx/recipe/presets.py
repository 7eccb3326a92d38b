"""Recipes by name: by effort, and by where the model will run. What is said one by one goes before both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from catonnx.errors import UsageError

Preset = Literal["fast", "balanced", "best"]
Target = Literal["portable", "cpu", "cuda", "genai-cpu", "genai-cuda"]

PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "fast": {"samples": 8},
    "balanced": {},
    "best": {"rounding": "gptq", "correct_bias": True},
}
"""What each effort sets."""

_CPU: Mapping[str, Any] = {"form": "nbits", "scheme": "w4a8", "provider": "cpu"}
_CUDA: Mapping[str, Any] = {"form": "nbits", "scheme": "w4a16", "group_size": 32, "provider": "cuda"}
TARGETS: Mapping[Target, Mapping[str, Any]] = {
    "portable": {"form": "qdq"},
    "cpu": _CPU,
    "cuda": _CUDA,
    "genai-cpu": _CPU,
    "genai-cuda": _CUDA,
}
"""What each place to run sets: standard ONNX for any; MatMulNBits with activations in int8, which only CPUs have; the
weights that CUDA's kernels take, of symmetric groups of 32 without zero points."""

NAMES: Mapping[str, tuple[str, ...]] = {"preset": get_args(Preset), "target": get_args(Target)}
"""What is no field of a recipe, and stands for several of them -> its values."""


def for_genai(wishes: Mapping[str, Any]) -> bool:
    """Whether a target asks for a folder that onnxruntime-genai opens."""
    return str(wishes.get("target", "")).startswith("genai-")


def settled(wishes: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that wishes mean: what a preset and a target stand for, and what follows from others.

    Args:
        wishes: Fields of `Recipe`, and `preset` and `target`; all others go before these two.

    Raises:
        UsageError: there is no such preset or target.
    """
    for name, known in NAMES.items():
        if name in wishes and wishes[name] not in known:
            raise UsageError(f"{name} is {wishes[name]!r}", hint=f"choose one of {', '.join(known)}")
    whole: dict[str, Any] = dict(PRESETS[wishes["preset"]]) if "preset" in wishes else {}
    whole |= TARGETS[wishes["target"]] if "target" in wishes else {}
    own = {name: value for name, value in wishes.items() if name not in NAMES}
    whole |= own
    if "correct_bias" not in own and (whole.get("rounding") == "sequential" or whole.get("scheme") == "float"):
        whole.pop("correct_bias", None)  # a preset's, and there would be nothing to do for it
    if whole.get("provider") == "cuda":
        whole.setdefault("dtype", "float16")
    if whole.get("form") == "integer":
        whole.setdefault("group_size", None)
    if whole.get("form") == "op" and whole.get("scheme") in ("w4a8", "w4a4"):
        whole.setdefault("activation_range", "symmetric")
    return whole
