"""catonnx: 4-bit ONNX models by Concentration-Alignment Transforms (arXiv 2603.04359).

`catonnx.optimize(model, out, recipe)` is the whole way, and `catonnx.session(out)` opens what it wrote. Importing
catonnx costs nothing: what it hands out is loaded when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["CatQuantizer", "Recipe", "Report", "__version__", "ops", "optimize", "session"]

if TYPE_CHECKING:
    from catonnx import ops
    from catonnx.hub.quantizer import CatQuantizer
    from catonnx.pipeline import optimize
    from catonnx.recipe import Recipe
    from catonnx.report import Report
    from catonnx.runtime.library import session
else:
    _HOMES = {
        "CatQuantizer": "catonnx.hub.quantizer",
        "optimize": "catonnx.pipeline",
        "Recipe": "catonnx.recipe",
        "Report": "catonnx.report",
        "session": "catonnx.runtime.library",
    }

    def __getattr__(name: str) -> object:
        """Load what `catonnx` hands out (PEP 562); hidden from type checkers, which would believe in any name."""
        if name == "ops":
            return importlib.import_module("catonnx.ops")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
