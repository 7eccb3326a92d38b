"""Rounding of weights to b = 4 or 8 bits: codes from -2^(b-1) to 2^(b-1) - 1, one scale per group and output channel.

    w ~= scale * code        scale [G, N], code [K, N], group g holds rows g * group_size ... (the last may be shorter)

The code range has one more step below zero than above, and a scale may be negative: its sign decides on which side of a
group the extra step lies. At 4 bits that is worth up to 0.6 dB; standard ONNX and ONNX Runtime take negative scales.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from catonnx.cores import usable_cores

Array: TypeAlias = NDArray[np.float64]
Float32: TypeAlias = NDArray[np.float32]

Bits: TypeAlias = Literal[4, 8]
Method: TypeAlias = Literal["nearest", "mse"]

GRIDS = {
    4: np.geomspace(0.5, 8 / 7, 24).astype(np.float32),
    8: np.geomspace(0.75, 128 / 127, 24).astype(np.float32),
}
"""Candidate scales of b bits, in units of absmax / 2^(b-1): at 4 bits 8/7 clips nothing on either side, 1/2 clips what
exceeds absmax / 2. At 8 bits clipping pays less."""

GRID_BELOW = np.geomspace(0.3, 0.48, 6).astype(np.float32)
"""Further candidates where rows do not count alike: an outlier in a row that counts little may be clipped harder.

Untransformed SmolLM2, `gptq` in groups of 32: 0.5 dB at a down projection ruled by few channels, 0 elsewhere.
"""

SCALE_TYPES = ("bfloat16", "float16", "float32", "float64")
"""Names of the types that scales are stored in; numpy knows bfloat16 from ml_dtypes."""

ELEMENTS_PER_CHUNK = 262144
"""Weights searched at a time by one thread, about 10 MB of work arrays.

2 threads, the 106 million weights of SmolLM2-135M: 65 536 take 6 to 8 s, 262 144 take 3 to 6, a million 5 to 8. Smaller
chunks fit the L2 cache but make the threads wait for each other between the many short numpy calls.
"""

MINIMAL_COLUMNS = 64
"""Columns of a chunk, however tall its groups: sums over rows would crawl with fewer."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight [K, N] in 4 or 8 bits.

    Args:
        codes: Integers of the range of `bits`, int8, shape (K, N).
        scales: Scale of each group and output channel, shape (G, N), of the type that will be stored; may be negative.
        group_size: Rows per group; None is one group of all K rows, G = 1.
        bits: 4 (codes -8 to 7) or 8 (codes -128 to 127).

    Raises:
        ValueError: Shapes, types or codes are not of that form.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.floating[Any]]
    group_size: int | None
    bits: Bits = 4

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != np.int8 or self.codes.size == 0:
            raise ValueError(f"codes are {self.codes.dtype} of shape {self.codes.shape}; they must be int8 [K, N]")
        lowest, highest = code_range(self.bits)
        if self.codes.min() < lowest or self.codes.max() > highest:
            raise ValueError(
                f"codes run from {self.codes.min()} to {self.codes.max()}; {self.bits} bits hold {lowest} to {highest}"
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

    @functools.cached_property
    def digest(self) -> bytes:
        """What is the same for two weights if all their numbers are, and their types."""
        layout = f"{self.codes.shape} {self.group_size} {self.bits} {self.scales.dtype}"
        return hashlib.sha256(layout.encode() + self.codes.tobytes() + self.scales.tobytes()).digest()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return arrays that `from_arrays` reads back; codes of 4 bits stand two to a byte."""
        codes: NDArray[np.uint8] = self.codes.reshape(-1).view(np.uint8)
        if self.bits == 4:
            even = np.zeros(codes.size + codes.size % 2, np.uint8)
            even[: codes.size] = codes & 0xF
            codes = np.asarray(even[::2] | even[1::2] << 4, np.uint8)
        return {
            "codes": codes,
            "shape": np.array(self.codes.shape),
            "scales": self.scales.astype(np.float64),
            "format": np.array([self.group_size or 0, self.bits]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], scale_dtype: DTypeLike) -> QuantizedWeight:
        """Rebuild a weight from what `to_arrays` returned; its scales were of `scale_dtype`."""
        codes, (group_size, bits) = arrays["codes"], arrays["format"].tolist()
        rows, columns = arrays["shape"].tolist()
        if bits == 4:
            low, high = codes << 4, codes & 0xF0
            codes = np.stack([low, high], axis=1).reshape(-1)[: rows * columns].view(np.int8) >> 4
        scales = arrays["scales"].astype(scale_dtype)
        return cls(codes.view(np.int8).reshape(rows, columns), scales, group_size or None, bits)


def code_range(bits: int) -> tuple[int, int]:
    """Return the lowest and the highest code: -8 and 7, or -128 and 127.

    Raises:
        ValueError: Bits are neither 4 nor 8.
    """
    if bits not in (4, 8):
        raise ValueError(f"weights cannot be stored in {bits} bits; choose 4 or 8")
    return -(1 << bits - 1), (1 << bits - 1) - 1


def quantize_weight(
    weight: NDArray[Any],
    group_size: int | None,
    *,
    bits: Bits = 4,
    method: Method = "mse",
    signed: bool = True,
    scale_dtype: DTypeLike = np.float32,
    importance: NDArray[Any] | None = None,
) -> QuantizedWeight:
    """Round a weight to 4 or 8 bits.

    Scales are rounded to their type first; codes are then the nearest integers, ties to even.

    Args:
        weight: Shape (K, N), any floating type.
        group_size: Rows that share a scale; None is one scale per output channel.
        bits: 4 or 8.
        method: ``nearest`` maps the entry of largest magnitude to the lowest code. ``mse`` searches for the scale of
            smallest squared error of each group, and is never worse than ``nearest`` in any group.
        signed: Scales may be negative. False keeps them positive: ``nearest`` then maps the entry of largest magnitude
            to plus or minus the highest code, and ``mse`` searches positive scales only.
        scale_dtype: One of `SCALE_TYPES`.
        importance: What an error in each row counts in the search of ``mse``, shape (K,), not negative; None counts all
            rows alike. With ``E[x_i^2]`` of the layer's input it is the output's error as far as channels are
            uncorrelated. A group whose rows all count nothing gets the scale of ``nearest``.

    Returns:
        Codes and scales. A group of zeros has scale 1.

    Raises:
        ValueError: The weight is not [K, N], is empty, or holds NaN or Inf; the group size is below 1; the method or
            the number of bits is unknown; the importance does not fit; or a scale overflows its type.
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
    if scale_type.name not in SCALE_TYPES:
        raise ValueError(f"scales cannot be {scale_type}; they are {', '.join(SCALE_TYPES)}")
    code_range(bits)
    rows, columns = weight.shape
    importance = _checked(importance, rows)
    size = min(group_size or rows, rows)
    codes = np.empty((rows, columns), dtype=np.int8)
    scales = np.empty((-(-rows // size), columns), dtype=scale_type)

    def quantize(place: tuple[slice, slice]) -> None:
        row_span, column_span = place
        height = min(size, row_span.stop - row_span.start)
        chunk = weight[place].astype(np.float64).reshape(-1, height, column_span.stop - column_span.start)  # (G, g, N)
        chunk_scales = _nearest_scales(chunk, bits, signed, scale_type)
        if method == "mse":
            counts = None if importance is None else importance[row_span].reshape(-1, height)  # (G, g)
            chunk_scales = _search_scales(chunk, chunk_scales, bits, signed, scale_type, counts)
        codes[place] = _codes(chunk, chunk_scales, bits).reshape(-1, chunk.shape[2])
        scales[row_span.start // size : -(-row_span.stop // size), column_span] = chunk_scales

    with ThreadPoolExecutor(usable_cores()) as pool:  # numpy lets go of the interpreter inside its loops
        for _ in pool.map(quantize, _chunks(rows, columns, size)):
            pass
    return QuantizedWeight(codes, scales, group_size, bits)


def _checked(importance: NDArray[Any] | None, rows: int) -> Array | None:
    """Return the importance as float64, or refuse it."""
    if importance is None:
        return None
    importance = np.asarray(importance, dtype=np.float64)
    if importance.shape != (rows,) or not np.isfinite(importance).all() or importance.min() < 0:
        raise ValueError(
            f"importance of shape {importance.shape} must be ({rows},), one finite number of at least 0 for each row"
        )
    return importance


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


def _nearest_scales(chunk: Array, bits: Bits, signed: bool, scale_type: np.dtype[Any]) -> Array:
    """Return the scales (G, N) that map the entry of largest magnitude to the lowest code, or to the highest."""
    high, low = chunk.max(axis=1), chunk.min(axis=1)
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        raise ValueError("weight holds NaN or Inf; look at the weight in the source model, it cannot be rounded")
    lowest, highest = code_range(bits)
    if not signed:
        return round_scales(np.maximum(high, -low) / highest, scale_type)
    return round_scales(np.where(high > -low, high, low) / lowest, scale_type)


def _search_scales(
    chunk: Array, nearest: Array, bits: Bits, signed: bool, scale_type: np.dtype[Any], importance: Array | None
) -> Array:
    """Return scales (G, N) of smallest squared error: the grid's best, refined, or `nearest` where that is better."""
    lowest, highest = code_range(bits)
    unit = np.abs(nearest) if signed else np.abs(nearest) * (-highest / lowest)  # absmax / 2^(b-1)
    grid = round_scales(_grid_factors(chunk, unit, bits, signed, importance) * unit, scale_type)
    codes = _codes(chunk, grid, bits)
    # Given its codes, a group's best scale is a least-squares fit, and codes can then change once more: neither step
    # raises the error. Rounding the scale to its type may, and `nearest` may lie between two points of the grid.
    counted = codes if importance is None else codes * importance[:, :, None]
    fit, energy = np.einsum("gkn,gkn->gn", chunk, counted), np.einsum("gkn,gkn->gn", codes, counted)
    refined = round_scales(fit / np.where(energy > 0, energy, 1), scale_type)
    better = _squared_error(chunk, refined, bits, importance) < _squared_error(chunk, nearest, bits, importance)
    return np.where(better, refined, nearest)


def _grid_factors(chunk: Array, unit: Array, bits: Bits, signed: bool, importance: Array | None) -> Float32:
    """Return, in units of ``unit`` (G, N), the scale of the grid with the smallest squared error.

    float32 is enough to choose by; what is chosen is compared again in float64.
    """
    normal = (chunk / unit[:, None]).astype(np.float32)
    roots = None if importance is None else np.sqrt(_relative(importance)).astype(np.float32)[:, :, None]
    ratio, rounded, error = (np.empty_like(normal) for _ in range(3))
    best = np.ones(unit.shape, dtype=np.float32)
    best_error = np.full(unit.shape, np.inf, dtype=np.float32)
    low, high = code_range(bits)
    for factor in GRIDS[bits] if roots is None else np.concatenate((GRID_BELOW, GRIDS[bits])):
        np.multiply(normal, 1 / factor, out=ratio)
        np.rint(ratio, out=rounded)
        for sign in (np.float32(1), np.float32(-1))[: 2 if signed else 1]:
            # A negative scale has codes -round(ratio) from -8 to 7, that is round(ratio) from -7 to 8.
            lowest, highest = (low, high) if sign > 0 else (-high, -low)
            np.clip(rounded, lowest, highest, out=error)
            np.subtract(ratio, error, out=error)
            if roots is not None:
                np.multiply(error, roots, out=error)
            total = np.einsum("gkn,gkn->gn", error, error) * factor**2
            better = total < best_error
            np.copyto(best, sign * factor, where=better)
            np.copyto(best_error, total, where=better)
    return best


def _relative(importance: Array) -> Array:
    """Return the importance (G, g) in units of each group's largest, which float32 holds."""
    largest = importance.max(axis=1, keepdims=True)
    return importance / np.where(largest > 0, largest, 1)


def round_scales(scales: NDArray[np.floating[Any]], scale_type: np.dtype[Any]) -> Array:
    """Round scales to the type that stores them; zero becomes 1, what would underflow becomes the smallest number.

    Raises:
        ValueError: A scale overflows the type.
    """
    smallest = np.nextafter(scale_type.type(0), scale_type.type(1))
    magnitude = np.maximum(np.abs(scales), float(smallest))
    safe = np.where(scales == 0, 1.0, np.copysign(magnitude, scales))
    with np.errstate(over="ignore"):
        rounded = safe.astype(scale_type).astype(np.float64)
    if not np.isfinite(rounded).all():
        raise ValueError(f"a scale of {np.abs(scales).max():.3g} overflows {scale_type}; store scales in a wider type")
    return rounded


def _codes(chunk: Array, scales: Array, bits: Bits) -> Array:
    """Return the nearest codes of (G, g, N) for scales (G, N), as floats."""
    codes = chunk / scales[:, None]
    np.rint(codes, out=codes)
    return np.clip(codes, *code_range(bits), out=codes)


def _squared_error(chunk: Array, scales: Array, bits: Bits, importance: Array | None) -> Array:
    """Return the squared error (G, N) of rounding with scales."""
    error = _codes(chunk, scales, bits)
    error *= scales[:, None]
    error -= chunk
    counted = error if importance is None else error * importance[:, :, None]
    return np.asarray(np.einsum("gkn,gkn->gn", error, counted), dtype=np.float64)
