"""Exports rewritten by ONNX Runtime's own optimizer for transformers."""

from __future__ import annotations

from pathlib import Path

from onnxruntime.transformers import optimizer


def fuse(folder: Path, kind: str, heads: int, width: int) -> None:
    """Fuse `model.onnx` of a folder in place, as `python -m onnxruntime.transformers.optimizer` does.

    Args:
        folder: An export.
        kind: The optimizer's name for the architecture: `bert`, `gpt2`, `vit`.
        heads: Attention heads.
        width: Channels of the stream.
    """
    file = str(folder / "model.onnx")
    fused = optimizer.optimize_model(file, model_type=kind, num_heads=heads, hidden_size=width, opt_level=0)
    fused.save_model_to_file(file)
