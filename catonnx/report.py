"""What an optimization did, as rows: for the terminal, for JSON, and for the `catonnx.json` beside the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from catonnx.naming import kind_of
from catonnx.planning.siteplan import Plan

FORMAT = 1
"""Version of the JSON layout; it grows when a key changes its meaning or goes away."""

_DECIBELS = ("sqnr_", "concentration_", "alignment_")
"""Beginnings of the names of figures in dB."""


@dataclasses.dataclass(frozen=True)
class SiteRow:
    """One site, before and after.

    Attributes:
        site: Name of the activation.
        linears: Names of the linears that were rounded.
        shapes: Their [K, N].
        absorbed: Factors that the nodes before the site took up.
        online: Factors that run as nodes.
        why: Notes of the plan.
        sqnr_before: Predicted SQNR in dB of rounding the weights as they were; None if nothing was measured.
        sqnr_after: The same in the new basis.
        sqnr_weights: The same for the weights as they were really rounded: mean over the linears, in dB. Without kept
            rows all three see the activation through the diagonal blocks of its second moment only; what reaches the
            outputs stands under `verification`.
        sqnr_outputs: SQNR in dB of the outputs, weights and activation rounded, measured on rows that calibration kept;
            None if it kept none.
        bits: Of the weights.
        activation: How the activation is rounded, empty if it is not.
        bytes_before: Size of the weights.
        bytes_after: Size of codes and scales.
        concentration_before: C(x) || C(W) in dB as they were: how far what is rounded is from having outliers; C(W)
            alone where the activation stays in float. None if not measured, or read from a report that did not tell.
        concentration_after: The same in the new basis.
        alignment_before: A in dB as they were: how well weights and activation point in the same directions, 0 at best.
            `sqnr_before` is 10 log10(12 (2^bits - 1)^2) + concentration + alignment.
        alignment_after: The same in the new basis.
    """

    site: str
    linears: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    absorbed: tuple[str, ...]
    online: tuple[str, ...]
    why: str
    sqnr_before: float | None
    sqnr_after: float | None
    sqnr_weights: float | None
    sqnr_outputs: float | None
    bits: int
    activation: str
    bytes_before: int
    bytes_after: int
    concentration_before: float | None = None
    concentration_after: float | None = None
    alignment_before: float | None = None
    alignment_after: float | None = None

    @property
    def kind(self) -> str:
        """A name for all sites like this one: the linears' names with numbers left out and common parts joined."""
        return kind_of(self.linears)


@dataclasses.dataclass(frozen=True)
class KindRow:
    """All sites of one kind."""

    kind: str
    sites: int
    linears: int
    absorbed: str
    online: str
    sqnr_before: float | None
    sqnr_after: float | None
    sqnr_weights: float | None
    sqnr_outputs: float | None
    bits: str
    bytes_before: int
    bytes_after: int


@dataclasses.dataclass(frozen=True)
class Report:
    """One run of `optimize`.

    Attributes:
        source: The model that was read.
        out: The folder that was written.
        digest: SHA-256 over the source.
        recipe: What was asked for.
        unchanged: Why the model was handed on as it is; empty if it was optimized.
        sites: What was done, in graph order.
        left: (node, operator, reason) of everything that looks like a linear and was left alone.
        turned: What became of its residual streams; empty if they were not to be turned.
        changed_caches: Outputs whose content is in another basis than the source's.
        not_copied: Other files of the source folder that were left there: links out of it.
        verification: What was checked, and how well it held.
        steps: (step, seconds) in order.
        size_before: Bytes of the source model with its data.
        size_after: Bytes of the result.
        peak_memory: Largest resident memory of the process so far, in bytes.
        multiply_adds: Of the linears, per token.
        online_multiply_adds: Of the factors that run as nodes, per token.
        dampings: Sites whose second moment needed more damping than asked for, and how much it got.
        calibration_rows: Rows that the moments were summed over.
        versions: Versions of everything that had a hand in it.
        plan: The plan that was applied; not part of the JSON.
        genai: What was done for onnxruntime-genai, and what is missing for it.
        narrowed: What became float16, and what did not; empty if all stayed as it was.
    """

    source: str
    out: str
    digest: str
    recipe: dict[str, Any]
    unchanged: str
    sites: tuple[SiteRow, ...]
    left: tuple[tuple[str, str, str], ...]
    turned: tuple[str, ...]
    changed_caches: tuple[str, ...]
    not_copied: tuple[str, ...]
    verification: dict[str, Any]
    steps: tuple[tuple[str, float], ...]
    size_before: int
    size_after: int
    peak_memory: int
    multiply_adds: int
    online_multiply_adds: int
    dampings: dict[str, float]
    calibration_rows: int
    versions: dict[str, str]
    plan: Plan = dataclasses.field(repr=False)
    genai: tuple[str, ...] = ()
    narrowed: tuple[str, ...] = ()

    def kinds(self) -> tuple[KindRow, ...]:
        """Return the sites summed up by kind."""
        groups: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[SiteRow]] = {}
        for row in self.sites:
            groups.setdefault((row.kind, row.absorbed, row.online), []).append(row)
        return tuple(
            KindRow(
                kind,
                len(rows),
                sum(len(row.linears) for row in rows),
                ", ".join(absorbed),
                ", ".join(online),
                _mean([row.sqnr_before for row in rows]),
                _mean([row.sqnr_after for row in rows]),
                _mean([row.sqnr_weights for row in rows]),
                _mean([row.sqnr_outputs for row in rows]),
                ", ".join(dict.fromkeys(" x ".join(filter(None, [str(row.bits), row.activation])) for row in rows)),
                sum(row.bytes_before for row in rows),
                sum(row.bytes_after for row in rows),
            )
            for (kind, absorbed, online), rows in groups.items()
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data, numbers rounded to what they are worth."""
        data: dict[str, Any] = {"format": FORMAT}
        data |= dataclasses.asdict(dataclasses.replace(self, plan=Plan(())))
        del data["plan"]
        data["steps"] = {step: round(seconds, 3) for step, seconds in self.steps}
        for row in data["sites"]:
            # JSON knows no infinity: an SQNR is infinite where the weights lie on the grid already.
            row |= {name: _json_decibels(row[name]) for name in row if name.startswith(_DECIBELS)}
        return data


def _json_decibels(value: float | None) -> float | None:
    return round(value, 2) if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
