"""From a PyTorch model in memory to `model.onnx` and `config.json` in a folder, by three exporters.

Optimum makes several files of a model with an encoder and a decoder: `encoder_model.onnx`, `decoder_model.onnx`, ...
"""

from __future__ import annotations

from pathlib import Path

import torch
from optimum.exporters.onnx.convert import onnx_export_from_model
from torch import nn
from transformers import PreTrainedModel

SCRIPT_OPSET = 18


def export_with_optimum(model: PreTrainedModel, folder: Path, task: str, **lengths: int) -> None:
    """Export as `optimum-cli export onnx --task TASK` does, less its validation run and a copy of the weights.

    Args:
        model: What to export.
        folder: Where to.
        task: Optimum's name for what the model does.
        lengths: Of example inputs, by their names there, such as `nb_max_frames`; some stay fixed in the graph.
    """
    # Optimum would look for a tokenizer where the model came from; the recipes write theirs.
    model.config._name_or_path = ""
    # Known only to models that were saved once.
    model.config.architectures = [type(model).__name__]
    onnx_export_from_model(model, folder, task=task, do_validation=False, **lengths)


def export_with_dynamo(model: PreTrainedModel, folder: Path, opset: int) -> None:
    """Export a causal LM without cache by `torch.onnx.export(dynamo=True)`, batch and sequence dynamic.

    From opset 23 on the graph holds RMSNormalization, RotaryEmbedding and Attention nodes; below, plain arithmetic.
    """
    model.config.save_pretrained(folder)
    dimensions = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length", min=2, max=512)}
    torch.onnx.export(
        LogitsOnly(model).eval(),
        _example_inputs(),
        folder / "model.onnx",
        dynamo=True,
        opset_version=opset,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes=(dimensions, dimensions),
        external_data=False,
        verbose=False,
    )


def export_with_script(model: PreTrainedModel, folder: Path) -> None:
    """Export a causal LM without cache by `torch.onnx.export(dynamo=False)`, the TorchScript exporter."""
    model.config.save_pretrained(folder)
    model.set_attn_implementation("eager")
    axes = {0: "batch_size", 1: "sequence_length"}
    torch.onnx.export(
        LogitsOnly(model).eval(),
        _example_inputs(),
        folder / "model.onnx",
        dynamo=False,
        opset_version=SCRIPT_OPSET,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_axes=dict.fromkeys(("input_ids", "attention_mask", "logits"), axes),
    )


def export_fixed_length(model: PreTrainedModel, folder: Path, length: int) -> None:
    """Export a causal LM for texts of one length by `torch.onnx.export(dynamo=False)`: what loops is unrolled."""
    model.config.save_pretrained(folder)
    torch.onnx.export(
        _IdsToLogits(model).eval(),
        (torch.arange(3 * length).reshape(3, length),),
        folder / "model.onnx",
        dynamo=False,
        opset_version=SCRIPT_OPSET,
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_axes={name: {0: "batch_size"} for name in ("input_ids", "logits")},
    )


class LogitsOnly(nn.Module):  # type: ignore[misc]  # torch is not analyzed
    """A causal LM as a function of two tensors that returns one."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, sequence, vocabulary) for ids and mask (batch, sequence)."""
        # transformers takes a 4-D mask as it is; its own comes from vmap, which TorchScript cannot trace.
        positions = torch.arange(input_ids.shape[1])
        causal = positions[None, :] <= positions[:, None]  # (query, key)
        visible = causal[None, None] & attention_mask[:, None, None].bool()
        mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)
        # A row of positions for each row of ids: RotaryEmbedding of opset 23 does not broadcast.
        positions = positions.expand_as(input_ids)
        return self.model(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


class _IdsToLogits(nn.Module):  # type: ignore[misc]  # torch is not analyzed
    """A causal LM without attention, which needs no mask, as a function of ids."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, sequence, vocabulary) for ids (batch, sequence)."""
        return self.model(input_ids=input_ids, use_cache=False).logits


def _example_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    # 3 x 17: no dimension equal to another one of the model, so that none is mistaken for a constant.
    return torch.arange(51).reshape(3, 17), torch.ones(3, 17, dtype=torch.int64)
