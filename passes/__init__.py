"""Graph rewrites, one per file; installed as `catonnx.passes`."""

from __future__ import annotations

if __name__ != "catonnx.passes":
    raise ImportError("the folder passes/ is installed as the package catonnx.passes; import that instead")
