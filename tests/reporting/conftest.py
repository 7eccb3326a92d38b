"""A report of a small model, made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import catonnx
from catonnx.report import Report
from catonnx.reporting.reportfile import load_report

RECIPE = catonnx.Recipe(scheme="w4a4", keep_8bit=2, samples=4, seq_len=32)


@pytest.fixture(scope="session")
def optimized(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small Llama, weights and activations in 4 bits, two sites in 8."""
    out = tmp_path_factory.mktemp("reporting") / "out"
    catonnx.optimize(tiny_llama, out, RECIPE)
    return out


@pytest.fixture
def told(optimized: Path) -> dict[str, Any]:
    """Its report as JSON has it, to be changed at will."""
    data: dict[str, Any] = json.loads((optimized / "catonnx.json").read_text())
    return data


@pytest.fixture(scope="session")
def report(optimized: Path) -> Report:
    """Its report as it is read back."""
    return load_report(optimized)
