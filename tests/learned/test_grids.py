"""Rounding in torch is rounding in numpy, and lets gradients through."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learned methods need PyTorch")

from catonnx.learned import grids  # noqa: E402
from catonnx.math.activations import ActivationGrid  # noqa: E402
from catonnx.math.rounding import quantize_weight  # noqa: E402


def rows(count: int = 40, width: int = 48, seed: int = 0) -> np.ndarray:
    """Return rows of very different sizes, with one of zeros and a constant one."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((count, width)) * np.exp(3 * rng.standard_normal((count, 1)))
    made[0], made[1] = 0, 2.5
    return np.asarray(made, dtype=np.float32)


@pytest.mark.parametrize("clip", [1.0, 0.7])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_activations_are_rounded_as_numpy_does(bits: int, symmetric: bool, group_size: int | None, clip: float) -> None:
    grid = ActivationGrid(bits, symmetric, group_size, clip)  # type: ignore[arg-type]
    found = grids.round_activation(torch.from_numpy(rows()), replace(grid, clip=1.0), clip).numpy()
    expected = grid.round(rows())
    # Its straight-through sum x + (round(x) - x) may miss an integer by the last digit.
    assert (np.abs(found - expected) <= 2e-6 * np.abs(rows()).max(axis=1, keepdims=True)).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [None, 16, 20])  # 48 = 2 * 20 + 8
def test_unclipped_weights_are_rounded_to_nearest(
    bits: int, group_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grids, "SHARES", (1.0,))
    found = grids.round_weight(torch.from_numpy(rows()), group_size, bits).numpy()
    expected = quantize_weight(rows().T, group_size, bits=bits, method="nearest").dequantize().T  # type: ignore[arg-type]
    assert (np.abs(found - expected) <= 2e-6 * np.abs(rows()).max(axis=1, keepdims=True)).all()


@pytest.mark.parametrize("group_size", [None, 16, 20])
def test_searched_weights_are_nearly_as_good_as_those_of_numpy(group_size: int | None) -> None:
    weight = np.random.default_rng(1).standard_normal((200, 480)).astype(np.float32)
    found = grids.round_weight(torch.from_numpy(weight), group_size, 4).numpy()
    nearest, searched = (
        np.square(quantize_weight(weight.T, group_size, method=method).dequantize().T - weight).sum()
        for method in ("nearest", "mse")
    )
    assert np.square(found - weight).sum() < nearest - 0.6 * (nearest - searched)  # measured 0.72 to 0.97


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_pass_through_rounding_and_stay_finite(symmetric: bool) -> None:
    inputs = torch.from_numpy(rows()).requires_grad_()
    clip = torch.tensor(0.8, requires_grad=True)
    rounded = grids.round_activation(inputs, ActivationGrid(4, symmetric), clip)
    rounded.square().sum().backward()
    assert torch.isfinite(inputs.grad).all()
    assert torch.isfinite(clip.grad)
    assert clip.grad != 0
    inside = (inputs - rounded).abs() < 0.05 * inputs.abs().amax(1, keepdim=True)
    middle = inside & (inputs.abs() < 0.5 * inputs.abs().amax(1, keepdim=True))
    if symmetric:  # what sets no range and is not cut: d|x~|^2 / dx = 2 x~
        torch.testing.assert_close(inputs.grad[middle], 2 * rounded[middle].detach())


def test_gradients_of_weights_are_finite() -> None:
    weight = torch.from_numpy(rows()).requires_grad_()
    grids.round_weight(weight, 16, 4).square().sum().backward()
    assert torch.isfinite(weight.grad).all()
    assert weight.grad.any()
