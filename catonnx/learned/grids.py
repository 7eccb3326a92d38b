"""The rounding of `catonnx.math` once more in torch, with gradients: what training sees of the quantizer.

Rounding has gradient zero almost everywhere; the straight-through estimator (arXiv 1308.3432) takes it for the
identity.
Clamping and the scale keep their true gradients: a clip ratio, and the entry that sets a range, are trained too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from catonnx.math.activations import SMALLEST_SCALE, ActivationGrid
from catonnx.math.rounding import code_range

SHARES = (1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
"""Weight scales that are tried, in units of the one that maps the largest magnitude to the lowest code. The rounding
searches a finer grid, once; this is done at every step, so that the transform is made for weights that will be clipped
well. Of what the rounding's search gains on Gaussian weights it gains 72 % in groups of 16, 88 % of 64, 97 % of 576."""


def round_activation(rows: Tensor, grid: ActivationGrid, clip: Tensor | float) -> Tensor:
    """Return rows (n, d) as a grid with scales at run time rounds them; ``clip``, perhaps trained, replaces its own."""
    groups = rows.reshape(len(rows), grid.groups(rows.shape[1]), -1)
    high, low = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    bottom, top = grid.codes
    if grid.symmetric:
        scale = (torch.maximum(high, -low) * (clip / top)).clamp_min(SMALLEST_SCALE)
        rounded = _codes(groups / scale, bottom, top) * scale
    else:
        scale = ((high - low) * (clip / top)).clamp_min(SMALLEST_SCALE)
        offset = high * ((1 - clip) / 2) + low * ((1 + clip) / 2)
        rounded = _codes((groups - offset) / scale, bottom, top) * scale + offset
    return rounded.reshape(rows.shape)


def round_weight(columns: Tensor, group_size: int | None, bits: int) -> Tensor:
    """Return output channels rounded, with the best of a few scales for each group.

    Args:
        columns: Output channels (C, d): columns of a weight [d, N].
        group_size: Input channels that share a scale, the last group may be shorter; None is all d.
        bits: 4 or 8.
    """
    width = columns.shape[1]
    size = min(group_size or width, width)
    missing = -width % size
    if missing:  # copies of the last entry change no range, and hardly the choice of its group's scale
        columns = torch.cat([columns, columns[:, -1:].expand(-1, missing)], dim=1)
    groups = columns.reshape(len(columns), -1, size)
    rounded = _codes_times(groups, _best_scale(groups, bits), bits)
    return rounded.reshape(columns.shape)[:, :width]


def _best_scale(groups: Tensor, bits: int) -> Tensor:
    """Return the scales (C, G, 1) with the smallest squared error; the gradient is that of the range."""
    lowest, _ = code_range(bits)
    high, low = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    # The sign of the scale puts the entry of largest magnitude on the side with the extra step.
    unit = torch.where(high > -low, high, low) / lowest
    unit = torch.where(unit == 0, torch.ones_like(unit), unit)
    with torch.no_grad():
        best, best_error = torch.ones_like(unit), torch.full_like(unit, torch.inf)
        for share in SHARES:
            error = (_codes_times(groups, unit * share, bits) - groups).square_().sum(-1, keepdim=True)
            best = torch.where(error < best_error, share, best)
            best_error = torch.minimum(error, best_error)
    return unit * best


def _codes_times(groups: Tensor, scale: Tensor, bits: int) -> Tensor:
    return _codes(groups / scale, *code_range(bits)) * scale


def _codes(ratio: Tensor, lowest: int, highest: int) -> Tensor:
    """Round, ties to even, and clamp; the gradient is 1 inside the range and 0 outside."""
    if torch.is_grad_enabled():
        return (ratio + (ratio.round() - ratio).detach()).clamp(lowest, highest)
    return ratio.round().clamp_(lowest, highest)
