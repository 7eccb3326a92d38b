"""Models and texts for the README, the tests and the benchmarks: made from PyPI packages, never from a hub.

`models.path("smollm2")` returns the folder of an export and makes it first if it is not there yet. `python -m models`
lists the recipes. This package belongs to the repository, not to the wheel.
"""

from __future__ import annotations

from models.cache import path
from models.recipes import RECIPES

__all__ = ["RECIPES", "path"]
