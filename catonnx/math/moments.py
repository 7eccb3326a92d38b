"""What calibration keeps of the activation at one site: sums that merge, and at wish a few of the rows themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

FLOAT32_BLOCK = 128
"""From this block width on, x^T x of one update is multiplied in float32, then summed over updates in float64.

512 rows of 1536 channels, one thread: k = 64 takes 2.7 ms in float64 and 1.0 in float32, k = 128 4.1 and 1.6,
k = 1536 32 and 15. The float32 error, 1e-6 of the largest entry, is far below the damping of 1e-4.
"""


@dataclass(eq=False)
class Moments:
    """Accumulated statistics of rows x of d channels.

    Args:
        width: Number of channels d.
        block: Width k of the diagonal blocks of x^T x that are kept; divides d. 1 keeps the diagonal, d everything.
        kept_rows: Rows of every update that are kept as they are: the first, which may be an attention sink, and others
            evenly spread.

    Attributes:
        count: Number of rows seen.
        sums: Diagonal blocks of ``sum x^T x``, shape (d / k, k, k).
        maximum: Largest ``|x|`` of each channel, shape (d,).
        squared_range: ``sum (max(x) - min(x))^2`` over rows, the range of an asymmetric quantizer per row.
        squared_symmetric_range: ``sum (2 max|x|)^2`` over rows, the range of a symmetric one.
        assumed: Made by `unknown`: no row has really been seen.

    Raises:
        ValueError: The block does not divide the width.
    """

    width: int
    block: int
    kept_rows: int = 0
    count: int = field(default=0, init=False)
    sums: Array = field(init=False, repr=False)
    maximum: Array = field(init=False, repr=False)
    squared_range: float = field(default=0.0, init=False)
    squared_symmetric_range: float = field(default=0.0, init=False)
    assumed: bool = field(default=False, init=False)
    _rows: list[NDArray[np.float32]] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def unknown(cls, width: int, block: int, kept_rows: int = 0) -> Moments:
        """Return what is assumed of an activation that was never seen: independent channels, all of unit energy.

        Args:
            width: Number of channels d.
            block: Width of the blocks of x^T x.
            kept_rows: Rows that are made up, normally distributed, the same each time; 64 sum up the ranges if none.
        """
        result = cls(width, block)
        rows = np.random.default_rng(0).standard_normal((kept_rows or 64, width)).astype(np.float32)
        result.update(rows)
        result.sums = np.broadcast_to(np.eye(block), result.sums.shape) * float(result.count)
        result.assumed = True
        if kept_rows:
            result._rows.append(rows)
        return result

    def __post_init__(self) -> None:
        _check_block(self.width, self.block)
        self.sums = np.zeros((self.width // self.block, self.block, self.block))
        self.maximum = np.zeros(self.width)

    def update(self, rows: NDArray[Any], *, keep: bool = True) -> None:
        """Add rows, shape (..., d), any floating type. NaN and Inf are taken in and show in `is_finite`.

        Args:
            rows: The rows.
            keep: Whether `kept_rows` of them are kept.

        Raises:
            ValueError: The last axis is not d wide.
        """
        if rows.ndim == 0 or rows.shape[-1] != self.width:
            raise ValueError(f"activation has shape {rows.shape}, but this site has {self.width} channels")
        rows = rows.reshape(-1, self.width)
        if not len(rows):
            return
        with np.errstate(invalid="ignore", over="ignore"):  # is_finite tells; the caller knows the site's name
            self.sums += _block_products(rows, self.block)
            high, low = rows.max(axis=1).astype(np.float64), rows.min(axis=1).astype(np.float64)
            self.squared_range += float(np.sum((high - low) ** 2))
            self.squared_symmetric_range += float(np.sum((2 * np.maximum(high, -low)) ** 2))
            # Two reductions without a copy of |x|; np.maximum keeps NaN.
            np.maximum(self.maximum, rows.max(axis=0), out=self.maximum)
            np.maximum(self.maximum, -rows.min(axis=0), out=self.maximum)
        self.count += len(rows)
        if self.kept_rows and keep:
            self._rows.append(rows[_spread(len(rows), self.kept_rows)].astype(np.float32))

    def merge(self, other: Moments) -> None:
        """Add what another accumulator of the same site saw.

        Raises:
            ValueError: Width or block differ.
        """
        if (self.width, self.block) != (other.width, other.block):
            raise ValueError(
                f"cannot merge moments of {other.width} channels in blocks of {other.block} into "
                f"{self.width} channels in blocks of {self.block}; narrow the wider blocks first"
            )
        self.sums += other.sums
        np.maximum(self.maximum, other.maximum, out=self.maximum)
        self.squared_range += other.squared_range
        self.squared_symmetric_range += other.squared_symmetric_range
        self.count += other.count
        self._rows += other._rows

    @staticmethod
    def pooled(parts: Sequence[Moments]) -> Moments:
        """Return what accumulators of rows of one value saw together; what is assumed counts only if there is no other.

        Of the rows that they kept it has about as many as one of them.
        """
        seen = [part for part in parts if not part.assumed] or parts[:1]
        total = Moments(seen[0].width, seen[0].block)
        for part in seen:
            total.merge(part)
        total._rows = [part.rows[index % len(seen) :: len(seen)] for index, part in enumerate(seen)]
        total.assumed = seen[0].assumed
        return total

    @property
    def rows(self) -> NDArray[np.float32]:
        """The rows that were kept, float32, shape (n, d); none unless `kept_rows` asked for them."""
        return np.concatenate(self._rows) if self._rows else np.zeros((0, self.width), np.float32)

    @property
    def squared_norm(self) -> float:
        """``sum |x|^2`` over rows."""
        return float(np.trace(self.sums, axis1=1, axis2=2).sum())

    @property
    def is_finite(self) -> bool:
        """Whether no NaN or Inf has been seen."""
        return bool(np.isfinite(self.sums).all() and np.isfinite(self.maximum).all())

    def second_moment(self) -> Array:
        """Return the diagonal blocks of ``E[x^T x]``, shape (d / k, k, k).

        Raises:
            ValueError: No row has been seen.
        """
        if not self.count:
            raise ValueError("no activation was recorded for this site; calibrate it with at least one row")
        return self.sums / self.count

    def diagonal(self) -> Array:
        """Return ``E[x_i^2]`` of each channel, shape (d,).

        Raises:
            ValueError: No row has been seen.
        """
        return np.diagonal(self.second_moment(), axis1=1, axis2=2).reshape(self.width)

    def narrow(self, block: int) -> Moments:
        """Return new moments that keep only blocks of a smaller width.

        Raises:
            ValueError: The width does not divide this one's block.
        """
        _check_block(self.block, block)
        parts = self.block // block
        split = self.sums.reshape(-1, parts, block, parts, block)
        return Moments.from_arrays(
            self.to_arrays() | {"sums": np.einsum("npipj->npij", split).reshape(-1, block, block)}
        )

    def permuted(self, order: NDArray[np.intp]) -> Moments:
        """Return new moments whose channel j is this one's channel ``order[j]``.

        Raises:
            ValueError: Products of all pairs of channels were not kept.
        """
        if self.block != self.width:
            raise ValueError(f"blocks of {self.block} of {self.width} channels cannot be permuted; keep them whole")
        arrays = self.to_arrays()
        arrays["sums"] = self.sums[:, order][:, :, order]
        arrays |= {"maximum": self.maximum[order], "rows": self.rows[:, order]}
        return Moments.from_arrays(arrays)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return arrays that `from_arrays` reads back."""
        return {
            "count": np.array(self.count, dtype=np.int64),
            "sums": self.sums,
            "maximum": self.maximum,
            "squared_ranges": np.array([self.squared_range, self.squared_symmetric_range]),
            "rows": self.rows,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Moments:
        """Rebuild moments from what `to_arrays` returned.

        Raises:
            ValueError: A key is missing or unknown, or a shape, type or value is not one that `to_arrays` writes.
        """
        if set(arrays) != {"count", "sums", "maximum", "squared_ranges", "rows"}:
            raise ValueError(f"moments hold {sorted(arrays)}, not count, maximum, rows, squared_ranges and sums")
        count, sums, maximum, ranges, rows = (
            arrays[name] for name in ("count", "sums", "maximum", "squared_ranges", "rows")
        )
        if sums.ndim != 3 or sums.shape[1] != sums.shape[2] or maximum.shape != (sums.shape[0] * sums.shape[1],):
            raise ValueError(f"sums {sums.shape} and maximum {maximum.shape} are not (d / k, k, k) and (d,)")
        if count.shape != () or count.dtype.kind not in "iu" or count < 0 or ranges.shape != (2,):
            raise ValueError(f"count is {count!r} and squared_ranges {ranges!r}, not one integer and two numbers")
        if rows.ndim != 2 or rows.shape[1] != len(maximum):
            raise ValueError(f"rows have shape {rows.shape}, not (n, {len(maximum)})")
        result = cls(len(maximum), sums.shape[1])
        result.count = int(count)
        result.sums = sums.astype(np.float64)
        result.maximum = maximum.astype(np.float64)
        result.squared_range, result.squared_symmetric_range = map(float, ranges)
        if len(rows):
            result._rows.append(rows.astype(np.float32))
        return result


def _spread(count: int, wanted: int) -> NDArray[np.intp]:
    """Return the first of `count` indices, and the middles of `wanted` - 1 equal parts of them."""
    middles = (np.arange(wanted - 1) + 0.5) * count / max(1, wanted - 1)
    return np.unique(np.concatenate([[0], middles.astype(np.intp)])).astype(np.intp)


def _check_block(width: int, block: int) -> None:
    if width < 1 or block < 1 or width % block:
        raise ValueError(f"blocks of {block} channels do not tile {width}; pick a block width that divides {width}")


def _block_products(rows: NDArray[Any], block: int) -> Array:
    """Return the diagonal blocks of ``rows^T rows``, shape (d / k, k, k)."""
    if block == 1:
        squares: Array = np.einsum("rd,rd->d", rows, rows, dtype=np.float64)
        return squares[:, None, None]
    # float16 would overflow at 256^2.
    precision = np.float64 if block < FLOAT32_BLOCK else np.promote_types(rows.dtype, np.float32)
    by_block = rows.astype(precision, copy=False).reshape(len(rows), -1, block)
    products = by_block.transpose(1, 2, 0) @ by_block.transpose(1, 0, 2)
    return np.asarray(products, dtype=np.float64)
