"""catonnx: 4-bit ONNX models by Concentration-Alignment Transforms (arXiv 2603.04359)."""

from __future__ import annotations

__version__ = "0.1.0"
