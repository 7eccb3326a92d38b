"""The operators of the domain `catonnx` as a library for ONNX Runtime: C++ sources, and what builds and finds them.

    python -m catonnx.ops build     compile it, once; all it takes is a C++ compiler

A model that uses these operators holds each of them as a function too, so it runs without the library, only slower.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from catonnx.ops.place import library

__all__ = ["library", "register"]

if TYPE_CHECKING:
    from catonnx.runtime.library import register
else:

    def __getattr__(name: str) -> object:
        """Load `register`, which needs more than the finding and building of the library does (PEP 562)."""
        if name != "register":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module("catonnx.runtime.library").register
