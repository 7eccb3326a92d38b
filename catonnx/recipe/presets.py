"""Recipes by name: by effort, and by where the model will run. What is said one by one goes before both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["fast", "balanced", "best"]
Target = Literal["portable", "cpu", "cuda"]

PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "fast": {"samples": 8},
    "balanced": {},
    "best": {"rounding": "gptq", "correct_bias": True},
}
"""What each effort sets."""

TARGETS: Mapping[Target, Mapping[str, Any]] = {
    "portable": {"form": "qdq"},
    "cpu": {"form": "nbits", "scheme": "w4a8", "provider": "cpu"},
    "cuda": {"form": "nbits", "scheme": "w4a16", "group_size": 32, "provider": "cuda"},
}
"""What each place to run sets: standard ONNX for any; MatMulNBits with activations in int8, which only CPUs have; the
weights that CUDA's kernels take, of symmetric groups of 32 without zero points."""
