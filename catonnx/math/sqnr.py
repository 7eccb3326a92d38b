"""Signal to quantization noise: what concentration and alignment predict, and what was measured. All in decibels.

    SQNR ~= 12 N^2 (C(x) || C(W)) A        a || b = 1 / (1 / a + 1 / b),  N = 2^bits - 1 intervals
    C(x) = E|x|^2 / E[range(x)^2]          activations, one range per row
    C(W) = |W|^2 / sum_j range(w_j)^2      weights, one range per output channel
    A    = E|x W|^2 / (|W|^2 E|x|^2)       only a change of basis that is not orthogonal moves it

It assumes rounding noise that is white and independent of the signal. With only weights rounded it is
``12 N^2 C(W) A``.

Source: Federici et al., "Dissecting Quantization Error: A Concentration-Alignment Perspective", arXiv 2603.04359.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from catonnx.math.moments import Moments

Array: TypeAlias = NDArray[np.float64]


def concentration_x(moments: Moments, symmetric: bool) -> float:
    """Return C(x) of an activation with one range per row: ``max - min``, or ``2 max|x|`` if symmetric.

    Raises:
        ValueError: The site has seen no row that is not zero.
    """
    squared_range = moments.squared_symmetric_range if symmetric else moments.squared_range
    if not squared_range > 0:
        raise ValueError(f"the {moments.count} rows of this site have no range; concentration needs rows that vary")
    return moments.squared_norm / squared_range


def concentration_rows(rows: NDArray[Any], group_size: int | None = None, symmetric: bool = False) -> float:
    """Return C(x) of sampled rows; infinite if no row has a range, since such rows are rounded to what they are.

    With groups, each range is weighted by its share of the channels: exact if the groups of W carry equal energy.

    Args:
        rows: Shape (n, d).
        group_size: Channels that share a range; divides d. None is one range per row.
        symmetric: Ranges are ``2 max|x|`` instead of ``max - min``.

    Raises:
        ValueError: Groups do not divide d.
    """
    rows = np.asarray(rows, dtype=np.float64)
    width = rows.shape[1]
    size = group_size or width
    if width % size:
        raise ValueError(f"groups of {size} channels do not tile {width}; pick a size that divides {width}")
    split = rows.reshape(len(rows), -1, size)
    ranges = 2 * np.abs(split).max(axis=2) if symmetric else split.max(axis=2) - split.min(axis=2)
    noise = size / width * float(np.sum(ranges**2))
    return float(np.sum(rows**2) / noise) if noise > 0 else math.inf


def concentration_w(weight: NDArray[Any], group_size: int | None, symmetric: bool = True) -> float:
    """Return C(W) of a weight.

    With groups, each range is weighted by its group's share of the rows: ``|W|^2 / sum_gj (d_g / d) range(w_gj)^2``.
    That is exact if the groups of x carry equal energy.

    Args:
        weight: Shape (d, N).
        group_size: Rows that share a range; None is one range per output channel.
        symmetric: Ranges are ``2 max|w|`` instead of ``max - min``.

    Raises:
        ValueError: The weight has no range, or the group size is below 1.
    """
    weight = np.asarray(weight, dtype=np.float64)
    rows = len(weight)
    size = rows if group_size is None else group_size
    if size < 1:
        raise ValueError(f"group size is {size}; it must be at least 1, or None for one range per output channel")
    noise = 0.0
    for start in range(0, rows, size):
        group = weight[start : start + size]
        ranges = 2 * np.abs(group).max(axis=0) if symmetric else group.max(axis=0) - group.min(axis=0)
        noise += len(group) / rows * float(np.sum(ranges**2))
    if not noise > 0:
        raise ValueError("weight has no range; concentration needs a weight that is not constant")
    return float(np.sum(weight**2)) / noise


def alignment(x_second_moment: NDArray[Any], weight: NDArray[Any]) -> float:
    """Return A(x, W) from the full second moment (d, d) and the weight (d, N); between 0 and 1.

    Raises:
        ValueError: Shapes do not fit, or one side is zero.
    """
    moment, weight = np.asarray(x_second_moment, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    if moment.shape != (len(weight), len(weight)):
        raise ValueError(f"second moment {moment.shape} does not fit a weight of {len(weight)} rows; give it in full")
    energy = float(np.trace(moment)) * float(np.sum(weight**2))
    if not energy > 0:
        raise ValueError("alignment of a zero activation or a zero weight is not defined")
    return output_energy(moment[None], weight) / energy


def predicted_sqnr_db(
    alignment: float,
    weight_concentration: float,
    activation_concentration: float | None = None,
    *,
    weight_bits: int = 4,
    activation_bits: int = 4,
) -> float:
    """Return the predicted SQNR of one linear layer in dB.

    Args:
        alignment: A(x, W).
        weight_concentration: C(W).
        activation_concentration: C(x); None if only weights are rounded.
        weight_bits: Bits of a weight.
        activation_bits: Bits of an activation.
    """
    joint = joint_concentration(
        weight_concentration, activation_concentration, weight_bits=weight_bits, activation_bits=activation_bits
    )
    return decibels(12 * intervals(weight_bits) ** 2 * alignment * joint, 1.0)


def joint_concentration(
    weight_concentration: float,
    activation_concentration: float | None = None,
    *,
    weight_bits: int = 4,
    activation_bits: int = 4,
) -> float:
    """Return ``C(x) || C(W)``, counted in steps of the weights where activations have other bits.

    Args:
        weight_concentration: C(W).
        activation_concentration: C(x); None if only weights are rounded: then it is C(W).
        weight_bits: Bits of a weight.
        activation_bits: Bits of an activation.
    """
    noise = 1 / weight_concentration
    if activation_concentration is not None:
        noise += (intervals(weight_bits) / intervals(activation_bits)) ** 2 / activation_concentration
    return 1 / noise


def measured_sqnr_db(reference: NDArray[Any], actual: NDArray[Any]) -> float:
    """Return ``|reference|^2 / |reference - actual|^2`` in dB; infinite if they are equal.

    Raises:
        ValueError: Shapes differ.
    """
    if reference.shape != actual.shape:
        raise ValueError(f"reference {reference.shape} and actual {actual.shape} differ in shape")
    signal = np.asarray(reference, dtype=np.float64)
    return decibels(float(np.sum(signal**2)), float(np.sum((signal - actual) ** 2)))


def weight_sqnr_db(x_moment: NDArray[Any], weight: NDArray[Any], error: NDArray[Any]) -> float:
    """Return ``E|x W|^2 / E|x E|^2`` in dB for a weight and the error that rounding made in it.

    Exact for the full second moment (1, d, d). With narrower blocks both energies lack the correlation between blocks.

    Args:
        x_moment: Diagonal blocks of ``E[x^T x]``, shape (n, k, k), ``n k = d``.
        weight: Shape (d, N), in the basis of the moment.
        error: Rounded weight minus weight, shape (d, N).

    Raises:
        ValueError: Shapes do not fit.
    """
    moment = np.asarray(x_moment, dtype=np.float64)
    weight, error = np.asarray(weight, dtype=np.float64), np.asarray(error, dtype=np.float64)
    if moment.ndim != 3 or moment.shape[0] * moment.shape[1] != len(weight) or weight.shape != error.shape:
        raise ValueError(f"moment {moment.shape}, weight {weight.shape} and error {error.shape} do not fit")
    return decibels(output_energy(moment, weight), output_energy(moment, error))


def decibels(signal: float, noise: float) -> float:
    """Return ``10 log10(signal / noise)``: infinite without noise, minus infinite without signal."""
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def intervals(bits: int) -> int:
    """Return N, the steps between the smallest and the largest code."""
    return (1 << bits) - 1


def output_energy(moment: Array, weight: Array) -> float:
    """Return ``E|x W|^2 = trace(W^T S W)``, block by block."""
    by_block = weight.reshape(*moment.shape[:2], -1)
    return float(np.vdot(by_block, moment @ by_block))
