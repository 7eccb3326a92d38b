"""Rounding of weights to 4 bits: codes from -8 to 7 and one scale per group of rows and output channel.

    w ~= scale * code        scale [G, N], code [K, N], group g holds rows g * group_size ... (the last may be shorter)

The code range has one more step below zero than above, and a scale may be negative: its sign decides on which side of a
group the extra step lies. That is worth up to 0.6 dB, and standard ONNX and ONNX Runtime take negative scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from catonnx.cores import usable_cores

Array: TypeAlias = NDArray[np.float64]
Float32: TypeAlias = NDArray[np.float32]

LOWEST, HIGHEST = -8, 7

GRID = np.geomspace(0.5, 8 / 7, 24).astype(np.float32)
"""Candidate scales, in units of absmax / 8: 8/7 clips nothing on either side, 1/2 clips whatever exceeds absmax / 2."""

ELEMENTS_PER_CHUNK = 262144
"""Weights searched at a time by one thread, about 10 MB of work arrays.

2 threads, the 106 million weights of SmolLM2-135M: 65 536 take 6 to 8 s, 262 144 take 3 to 6, a million 5 to 8. Smaller
chunks fit the L2 cache but make the threads wait for each other between the many short numpy calls.
"""

MINIMAL_COLUMNS = 64
"""Columns of a chunk, however tall its groups: sums over rows would crawl with fewer."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight [K, N] in 4 bits.

    Args:
        codes: Integers from -8 to 7, int8, shape (K, N).
        scales: Scale of each group and output channel, shape (G, N), of the type that will be stored; may be negative.
        group_size: Rows per group; None is one group of all K rows, G = 1.

    Raises:
        ValueError: Shapes, types or codes are not of that form.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.floating[Any]]
    group_size: int | None

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != np.int8 or self.codes.size == 0:
            raise ValueError(f"codes are {self.codes.dtype} of shape {self.codes.shape}; they must be int8 [K, N]")
        if self.codes.min() < LOWEST or self.codes.max() > HIGHEST:
            raise ValueError(
                f"codes run from {self.codes.min()} to {self.codes.max()}; 4 bits hold {LOWEST} to {HIGHEST}"
            )
        rows, columns = self.codes.shape
        groups = -(-rows // self._rows_per_group)
        if self.scales.shape != (groups, columns):
            raise ValueError(f"scales have shape {self.scales.shape}; this weight has ({groups}, {columns}) groups")

    @property
    def _rows_per_group(self) -> int:
        return self.codes.shape[0] if self.group_size is None else self.group_size

    def dequantize(self) -> Array:
        """Return ``scale * code``, shape (K, N), float64."""
        scales = np.repeat(self.scales.astype(np.float64), self._rows_per_group, axis=0)
        return np.asarray(scales[: len(self.codes)] * self.codes, dtype=np.float64)


def quantize_weight(
    weight: NDArray[Any],
    group_size: int | None,
    *,
    method: Literal["nearest", "mse"] = "mse",
    scale_dtype: DTypeLike = np.float32,
) -> QuantizedWeight:
    """Round a weight to 4 bits.

    Scales are rounded to their type first; codes are then the nearest integers, ties to even.

    Args:
        weight: Shape (K, N), any floating type.
        group_size: Rows that share a scale; None is one scale per output channel.
        method: ``nearest`` maps the entry of largest magnitude to -8. ``mse`` searches scales of both signs for the
            smallest squared error of each group, and is never worse than ``nearest`` in any group.
        scale_dtype: float16, float32 or float64.

    Returns:
        Codes and scales. A group of zeros has scale 1.

    Raises:
        ValueError: The weight is not [K, N], is empty, or holds NaN or Inf; the group size is below 1; the method is
            unknown; or a scale overflows its type.
    """
    weight = np.asarray(weight)
    if weight.ndim != 2 or weight.size == 0 or weight.dtype.kind != "f":
        raise ValueError(
            f"weight is {weight.dtype} of shape {weight.shape}; it must be floating point [K, N], not empty"
        )
    if group_size is not None and group_size < 1:
        raise ValueError(f"group size is {group_size}; it must be at least 1, or None for one scale per output channel")
    if method not in ("nearest", "mse"):
        raise ValueError(f"rounding method {method!r} is unknown; there are 'nearest' and 'mse'")
    scale_type = np.dtype(scale_dtype)
    if scale_type not in (np.float16, np.float32, np.float64):
        raise ValueError(f"scales cannot be {scale_type}; they are float16, float32 or float64")

    rows, columns = weight.shape
    size = min(group_size or rows, rows)
    codes = np.empty((rows, columns), dtype=np.int8)
    scales = np.empty((-(-rows // size), columns), dtype=scale_type)

    def quantize(place: tuple[slice, slice]) -> None:
        row_span, column_span = place
        height = min(size, row_span.stop - row_span.start)
        chunk = weight[place].astype(np.float64).reshape(-1, height, column_span.stop - column_span.start)  # (G, g, N)
        chunk_scales = _nearest_scales(chunk, scale_type)
        if method == "mse":
            chunk_scales = _search_scales(chunk, chunk_scales, scale_type)
        codes[place] = _codes(chunk, chunk_scales).reshape(-1, chunk.shape[2])
        scales[row_span.start // size : -(-row_span.stop // size), column_span] = chunk_scales

    with ThreadPoolExecutor(usable_cores()) as pool:  # numpy lets go of the interpreter inside its loops
        for _ in pool.map(quantize, _chunks(rows, columns, size)):
            pass
    return QuantizedWeight(codes, scales, group_size)


def _chunks(rows: int, columns: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Tile a weight by spans of whole groups (rows) and of columns; the shorter last group has spans of its own."""
    whole = rows // size * size
    column_step = min(columns, max(MINIMAL_COLUMNS, ELEMENTS_PER_CHUNK // size))
    row_step = size * max(1, ELEMENTS_PER_CHUNK // (size * column_step))
    for start in range(0, columns, column_step):
        column_span = slice(start, min(start + column_step, columns))
        for top in range(0, whole, row_step):
            yield slice(top, min(top + row_step, whole)), column_span
        if whole < rows:
            yield slice(whole, rows), column_span


def _nearest_scales(chunk: Array, scale_type: np.dtype[Any]) -> Array:
    """Return the scales (G, N) that map the entry of largest magnitude to -8."""
    high, low = chunk.max(axis=1), chunk.min(axis=1)
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        raise ValueError("weight holds NaN or Inf; look at the weight in the source model, it cannot be rounded")
    return _rounded(np.where(high > -low, high, low) / LOWEST, scale_type)


def _search_scales(chunk: Array, nearest: Array, scale_type: np.dtype[Any]) -> Array:
    """Return scales (G, N) of smallest squared error: the grid's best, refined, or `nearest` where that is better."""
    grid = _rounded(_grid_factors(chunk, np.abs(nearest)) * np.abs(nearest), scale_type)
    codes = _codes(chunk, grid)
    # Given its codes, a group's best scale is a least-squares fit, and codes can then change once more: neither step
    # raises the error. Rounding the scale to its type may, and `nearest` may lie between two points of the grid.
    fit, energy = np.einsum("gkn,gkn->gn", chunk, codes), np.einsum("gkn,gkn->gn", codes, codes)
    refined = _rounded(fit / np.maximum(energy, 1), scale_type)
    return np.where(_squared_error(chunk, refined) < _squared_error(chunk, nearest), refined, nearest)


def _grid_factors(chunk: Array, unit: Array) -> Float32:
    """Return, in units of ``unit`` (G, N), the signed scale of `GRID` with the smallest squared error.

    float32 is enough to choose by; what is chosen is compared again in float64.
    """
    normal = (chunk / unit[:, None]).astype(np.float32)
    ratio, rounded, error = (np.empty_like(normal) for _ in range(3))
    best = np.ones(unit.shape, dtype=np.float32)
    best_error = np.full(unit.shape, np.inf, dtype=np.float32)
    for factor in GRID:
        np.multiply(normal, 1 / factor, out=ratio)
        np.rint(ratio, out=rounded)
        for sign in (np.float32(1), np.float32(-1)):
            # A negative scale has codes -round(ratio) from -8 to 7, that is round(ratio) from -7 to 8.
            lowest, highest = (LOWEST, HIGHEST) if sign > 0 else (-HIGHEST, -LOWEST)
            np.clip(rounded, lowest, highest, out=error)
            np.subtract(ratio, error, out=error)
            total = np.einsum("gkn,gkn->gn", error, error) * factor**2
            better = total < best_error
            np.copyto(best, sign * factor, where=better)
            np.copyto(best_error, total, where=better)
    return best


def _rounded(scales: NDArray[np.floating[Any]], scale_type: np.dtype[Any]) -> Array:
    """Round scales to the type that stores them; zero becomes 1, what would underflow becomes the smallest number."""
    if np.abs(scales).max() > np.finfo(scale_type).max:
        raise ValueError(f"a scale of {np.abs(scales).max():.3g} overflows {scale_type}; store scales in a wider type")
    smallest = np.nextafter(scale_type.type(0), scale_type.type(1))
    magnitude = np.maximum(np.abs(scales), float(smallest))
    safe = np.where(scales == 0, 1.0, np.copysign(magnitude, scales))
    return safe.astype(scale_type).astype(np.float64)


def _codes(chunk: Array, scales: Array) -> Array:
    """Return the nearest codes of (G, g, N) for scales (G, N), as floats."""
    codes = chunk / scales[:, None]
    np.rint(codes, out=codes)
    return np.clip(codes, LOWEST, HIGHEST, out=codes)


def _squared_error(chunk: Array, scales: Array) -> Array:
    """Return the squared error (G, N) of rounding with scales."""
    error = _codes(chunk, scales)
    error *= scales[:, None]
    error -= chunk
    return np.asarray(np.einsum("gkn,gkn->gn", error, error), dtype=np.float64)
