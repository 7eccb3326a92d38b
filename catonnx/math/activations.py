"""Rounding of activations to b = 4 or 8 bits: each token, or each group of its channels, has a scale of its own.

    symmetric    s = c max|x| / (2^(b-1) - 1)                            x ~= s q,      q from -2^(b-1) to 2^(b-1) - 1
    asymmetric   s = c (max x - min x) / (2^b - 1)                       x ~= s q + o,  q from 0 to 2^b - 1
                 o = (1 - c) / 2 max x + (1 + c) / 2 min x

q = round((x - o) / s), ties to even, cut to its range; c <= 1 is the clip ratio. The offset o is a number, not an
integer zero point: that is finer, and 4-bit zero points cannot be cast at run time everywhere. All is computed in
float32 (float64 for rows of float64), operation by operation as the graphs of `catonnx.passes` compute it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]

SMALLEST_SCALE = 1e-30
"""Least scale, so that a token of zeros is divided by something: its codes are 0."""

CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
"""Clip ratios that `search_clip` tries; 576 Gaussian channels in 4 bits want about 0.8."""

STATIC_CLIPS = tuple(float(clip) for clip in np.geomspace(1, 1 / 256, 33))
"""Parts of the range of all rows that `fixed_range` tries: one token may be hundreds of times larger than others."""


@dataclass(frozen=True)
class ActivationGrid:
    """The numbers that a rounded activation can take.

    Attributes:
        bits: 4 or 8.
        symmetric: Whether zero is the middle of the range; else it runs from the smallest to the largest number.
        group_size: Neighbouring channels of one token that share a scale; None for the whole token.
        clip: Part of the range that is kept; what lies outside is cut to its end.
        fixed: Scale and offset for all tokens, from calibration; clip and group_size have no meaning then.

    Raises:
        ValueError: when a value is out of range or two contradict each other.
    """

    bits: Literal[4, 8]
    symmetric: bool = True
    group_size: int | None = None
    clip: float = 1.0
    fixed: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"activations cannot be rounded to {self.bits} bits; choose 4 or 8")
        if self.group_size is not None and self.group_size < 2:
            raise ValueError(f"the group size is {self.group_size}; take 2 at least, or None for one scale per token")
        if not 0 < self.clip <= 1:
            raise ValueError(f"the clip ratio is {self.clip}; it must be above 0 and at most 1")
        if self.fixed is None:
            return
        scale, offset = self.fixed
        if not (np.isfinite(scale) and scale > 0 and np.isfinite(offset)):
            raise ValueError(f"the fixed scale is {scale} and the offset {offset}; the scale must be positive")
        if self.symmetric and offset:
            raise ValueError(f"the fixed offset is {offset}; a symmetric range has none")
        if self.group_size is not None or self.clip != 1:
            raise ValueError("a fixed scale leaves no room for groups or a clip ratio; leave them out")

    @property
    def codes(self) -> tuple[int, int]:
        """Lowest and highest code."""
        return (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.symmetric else (0, (1 << self.bits) - 1)

    @property
    def scale_factor(self) -> float:
        """What the range (max |x|, or max - min) is multiplied by to give the scale."""
        return self.clip / ((1 << self.bits - 1) - 1 if self.symmetric else (1 << self.bits) - 1)

    @property
    def offset_factors(self) -> tuple[float, float]:
        """What maximum and minimum are multiplied by to give the offset of an asymmetric range."""
        return (1 - self.clip) / 2, (1 + self.clip) / 2

    def groups(self, width: int) -> int:
        """Return the number of scales of a token with `width` channels.

        Raises:
            ValueError: if groups do not divide it.
        """
        if self.group_size is None:
            return 1
        if width % self.group_size:
            raise ValueError(
                f"{width} channels cannot be split into groups of {self.group_size}; "
                f"choose a group size that divides {width}, or one scale per token"
            )
        return width // self.group_size

    def round(self, rows: Floats) -> Floats:
        """Return rows (..., d) rounded, of their type.

        Raises:
            ValueError: if groups do not divide d.
        """
        codes, scale, offset = self._encode(rows)
        codes *= scale
        codes += offset
        return codes.reshape(rows.shape).astype(rows.dtype, copy=False)

    def encode(self, rows: Floats) -> tuple[NDArray[np.int16], Floats, Floats]:
        """Return codes (..., d), scales and offsets (..., groups) of rows (..., d).

        Raises:
            ValueError: if groups do not divide d.
        """
        codes, scale, offset = self._encode(rows)
        return codes.reshape(rows.shape).astype(np.int16), scale[..., 0], offset[..., 0]

    def _encode(self, rows: Floats) -> tuple[Floats, Floats, Floats]:
        """Return codes as floats (..., groups, d / groups), scales and offsets (..., groups, 1)."""
        kind = np.dtype(np.float64 if rows.dtype == np.float64 else np.float32).type
        groups = self.groups(rows.shape[-1])
        split = rows.reshape(*rows.shape[:-1], groups, rows.shape[-1] // groups).astype(kind)
        scale, offset = self._scales(split, kind)
        codes = split if self.symmetric else split - offset
        codes = codes / scale
        np.rint(codes, out=codes)
        np.clip(codes, *self.codes, out=codes)
        return codes, scale, offset

    def _scales(self, split: Floats, kind: Any) -> tuple[Floats, Floats]:
        none = np.zeros((*split.shape[:-1], 1), kind)
        if self.fixed is not None:
            return none + kind(self.fixed[0]), none + kind(self.fixed[1])
        if self.symmetric:
            extent = np.abs(split).max(axis=-1, keepdims=True)
            return np.maximum(extent * kind(self.scale_factor), kind(SMALLEST_SCALE)), none
        high, low = split.max(axis=-1, keepdims=True), split.min(axis=-1, keepdims=True)
        scale = np.maximum((high - low) * kind(self.scale_factor), kind(SMALLEST_SCALE))
        if self.clip == 1:
            return scale, low
        of_high, of_low = self.offset_factors
        return scale, high * kind(of_high) + low * kind(of_low)


def relative_error(rows: Floats, rounded: Floats, *, by_size: bool = False) -> float:
    """Return the error of rounding rows, relative to their size; rows of zeros are left out.

    Args:
        rows: Shape (..., d).
        rounded: The same rounded.
        by_size: Let rows count by their size. One token may be hundreds of times larger than all others, and be read by
            all of them: by its own error it is cheap to cut, by the plain squared error nothing else counts.

    Returns:
        The mean over rows of ``|e|^2 / |x|^2``, or, by size, ``sum |e|^2 / |x|`` over ``sum |x|``.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    energy = np.einsum("nd,nd->n", flat, flat, dtype=np.float64)
    difference = rounded.reshape(flat.shape) - flat
    error = np.einsum("nd,nd->n", difference, difference, dtype=np.float64)
    alive = energy > 0
    if not alive.any():
        return 0.0
    size = np.sqrt(energy[alive]) if by_size else energy[alive]
    return float(np.sum(error[alive] / size) / (np.sum(size) if by_size else len(size)))


def _judge(rows: Floats, weight: Floats | None) -> Callable[[ActivationGrid], float]:
    """Return what tells how much a grid hurts: rows themselves, or the outputs ``x W`` of what reads them."""
    if weight is None:
        return lambda grid: relative_error(rows, grid.round(rows))
    outputs = rows @ weight
    return lambda grid: relative_error(outputs, grid.round(rows) @ weight, by_size=True)


def search_clip(
    rows: Floats, grid: ActivationGrid, candidates: Sequence[float] = CLIPS, weight: Floats | None = None
) -> ActivationGrid:
    """Return a grid with the clip ratio that rounds rows best.

    Args:
        rows: Shape (n, d); a few hundred tell as much as all.
        grid: Its clip ratio is replaced.
        candidates: Ratios to try; the first wins a draw.
        weight: What reads the rows, (d, N): its outputs are judged then; some hundred columns tell as much as all.

    Returns:
        The grid of smallest `relative_error`.

    Raises:
        ValueError: if rows are NaN or Inf, groups do not divide d, or the grid is fixed.
    """
    _check(rows)
    tried = [replace(grid, clip=clip) for clip in candidates]
    return min(tried, key=_judge(rows, weight))


def fixed_range(
    rows: Floats, grid: ActivationGrid, candidates: Sequence[float] = STATIC_CLIPS, weight: Floats | None = None
) -> ActivationGrid:
    """Return a grid with one scale and offset for all tokens, that rounds rows best.

    Both ends of an asymmetric range are searched in turn, because large tokens often lie on one side only.

    Args:
        rows: Shape (n, d); a few hundred tell as much as all.
        grid: Its bits and symmetry are kept, its clip ratio is not used.
        candidates: Parts of the range of all rows to try; the first wins a draw.
        weight: As for `search_clip`.

    Returns:
        The grid of smallest `relative_error`.

    Raises:
        ValueError: if rows are NaN or Inf, or the grid has groups.
    """
    _check(rows)
    if grid.group_size is not None:
        raise ValueError(f"a fixed range has no groups of {grid.group_size} channels; leave the group size out")
    low, high = min(0.0, float(rows.min())), max(0.0, float(rows.max()))  # zero stays inside

    def spanning(low_part: float, high_part: float) -> ActivationGrid:
        if grid.symmetric:
            extent = max(high, -low) * high_part
            scale, offset = extent / ((1 << grid.bits - 1) - 1), 0.0
        else:
            offset = low * low_part
            scale = (high * high_part - offset) / ((1 << grid.bits) - 1)
        return replace(grid, clip=1.0, fixed=(max(scale, SMALLEST_SCALE), offset))

    judge = _judge(rows, weight)

    def error(parts: tuple[float, float]) -> float:
        return judge(spanning(*parts))

    best = min(((part, part) for part in candidates), key=error)
    if not grid.symmetric:
        best = min(((part, best[1]) for part in candidates), key=error)
        best = min(((best[0], part) for part in candidates), key=error)
    return spanning(*best)


def _check(rows: Floats) -> None:
    if rows.size == 0 or not np.isfinite(rows).all():
        raise ValueError("the rows are empty or hold NaN or Inf; no range can be found for them")
