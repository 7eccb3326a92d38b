"""What was found for each row of the quality table: as a table, against the bounds, and back from a file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tools.bench_methods import (
    BEST,
    CAT,
    CAT_128,
    CHANNEL,
    DEFAULT_PEER,
    EIGHT,
    GROUPS,
    HADAMARD,
    METHODS,
    SCHEME_WORDS,
    TOKEN,
    WEIGHTS,
)
from tools.tables import Row, aligned

_HEADINGS = (
    "",
    "method",
    "perplexity",
    "gap",
    "/ hadamard",
    "/ onnxruntime",
    "KL, nats",
    "top-1",
    "SQNR, dB",
    "online",
    "seconds",
    "",
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One row, measured or not.

    Attributes:
        key: Of the method.
        date: When it was measured.
        perplexity: Of the rounded model; all figures are None if there is none.
        gap: ln(perplexity / perplexity of the float model).
        kl_nats: Mean KL to the float model per position.
        top1: Share of positions where both find the same token most likely.
        sqnr_db: Mean over the sites of the SQNR of their outputs; None for peers.
        overhead: Online multiply-adds over those of the linears; None for peers.
        seconds: To optimize, calibration included where it is needed.
        note: The setting.
        skipped: Why it was not measured.
        failed: How it failed.
        details: What else is known: recipe, factors, sites in 8 bits, dampings, version of a peer.
    """

    key: str
    date: str
    perplexity: float | None = None
    gap: float | None = None
    kl_nats: float | None = None
    top1: float | None = None
    sqnr_db: float | None = None
    overhead: float | None = None
    seconds: float | None = None
    note: str = ""
    skipped: str = ""
    failed: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def scheme(self) -> str:
        """The first part of the key."""
        return self.key.partition("/")[0]

    @property
    def measured(self) -> bool:
        """Whether there are figures."""
        return self.gap is not None

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Finding:
        """Return a finding that was written as plain data."""
        return Finding(**{field.name: data[field.name] for field in dataclasses.fields(Finding)})


Findings = Mapping[str, Finding]


def ratio(findings: Findings, over: str, under: str) -> float | None:
    """Return the gap of one row over that of another; None if one is missing, or the other lost nothing."""
    first, second = findings.get(over), findings.get(under)
    if first is None or second is None or first.gap is None or second.gap is None or second.gap <= 0:
        return None
    return first.gap / second.gap


def table(findings: Findings) -> str:
    """Return a Markdown table of the rows, in the order of `METHODS`."""
    lines, last = [], ""
    for method in METHODS:
        found = findings.get(method.key)
        if found is None:
            continue
        lines.append((found.scheme if found.scheme != last else "", method.name, *_cells(found, findings)))
        last = found.scheme
    return aligned(_HEADINGS, lines)


def legend(findings: Findings) -> str:
    """Return what the schemes mean."""
    used = {found.scheme for found in findings.values()}
    return "\n".join(f"{scheme}: {words}" for scheme, words in SCHEME_WORDS.items() if scheme in used)


def _cells(found: Finding, findings: Findings) -> tuple[str, ...]:
    over_peer = ratio(findings, found.key, f"{WEIGHTS}/{DEFAULT_PEER}") if found.scheme == WEIGHTS else None
    told = found.note
    if not found.measured:
        told = f"FAILED: {found.failed}" if found.failed else f"skipped: {found.skipped}"
    return (
        _shown(found.perplexity, ".2f"),
        _shown(found.gap, ".3f"),
        _shown(ratio(findings, found.key, f"{found.scheme}/{HADAMARD}"), ".2f"),
        _shown(over_peer, ".2f"),
        _shown(found.kl_nats, ".3f"),
        _shown(found.top1, ".1%"),
        _shown(found.sqnr_db, ".1f"),
        _shown(found.overhead, ".1%"),
        _shown(found.seconds, ".0f"),
        told.replace("|", "/"),
    )


def _shown(value: float | None, how: str) -> str:
    return "" if value is None or not math.isfinite(value) else format(value, how)


def bounds(findings: Findings) -> list[Row]:
    """Hold the findings against what they should be."""
    best = _best(findings)
    what = "w4a4: best training-free over hadamard" + (f" ({best.key})" if best else "")
    rows = [
        _ratio_row(findings, f"{TOKEN}/{CAT_128}", f"{TOKEN}/{HADAMARD}", 0.47, "w4a4: cat (k 144/128) over hadamard"),
        _ratio_row(findings, best.key if best else "", f"{TOKEN}/{HADAMARD}", 0.25, what),
    ]
    if best is not None:
        overhead, eight = best.overhead or 0.0, int(best.details.get("sites_in_8_bits", 0))
        within = overhead <= 0.05 and eight <= 8
        shown = f"{overhead:.1%}, {eight} sites"
        rows.append(Row("bound", "its online multiply-adds and sites in 8 bits", shown, "<= 5 %, <= 8", within))
    return [*rows, _groups_row(findings), _weights_row(findings), _eight_row(findings), _agreement_row(findings)]


def _best(findings: Findings) -> Finding | None:
    """Return the better of our best in both schemes of 4-bit activations: scales per token, or per group."""
    found = [finding for scheme in (TOKEN, GROUPS) if (finding := findings.get(f"{scheme}/{BEST}"))]
    return min((finding for finding in found if finding.measured), key=lambda finding: finding.gap or 0.0, default=None)


def _ratio_row(findings: Findings, over: str, under: str, bound: float, what: str) -> Row:
    value = ratio(findings, over, under)
    if value is None:
        return _unknown(what, f"<= {bound}")
    return Row("bound", what, f"{value:.3f}", f"<= {bound}", value <= bound, {"ratio": value})


def _groups_row(findings: Findings) -> Row:
    what = "w4a4 groups of 64, no site in 8 bits: lowest gap"
    own = [found for found in _own(findings, GROUPS) if not found.details.get("sites_in_8_bits")]
    if not own:
        return _unknown(what, "<= 0.20")
    gap = own[0].gap or 0.0
    return Row("bound", what, f"{gap:.3f} ({own[0].key})", "<= 0.20", gap <= 0.20, {"gap": gap})


def _weights_row(findings: Findings) -> Row:
    what, own = "w4a16 group 32: lowest gap over onnxruntime's default", _own(findings, WEIGHTS)
    value = ratio(findings, own[0].key, f"{WEIGHTS}/{DEFAULT_PEER}") if own else None
    if value is None:
        return _unknown(what, "<= 0.25")
    return Row("bound", what, f"{value:.3f} ({own[0].key})", "<= 0.25", value <= 0.25, {"ratio": value})


def _eight_row(findings: Findings) -> Row:
    return _ratio_row(findings, f"{EIGHT}/{CAT}", f"{CHANNEL}/{CAT}", 1.05, "w4a8 over w4a16 of the same weights: cat")


def _agreement_row(findings: Findings) -> Row:
    what, bound = "w4a4: top-1 agreement of the best", "above every baseline"
    best = _best(findings)
    others = {
        method.name: found.top1
        for method in METHODS
        if method.scheme == TOKEN and method.baseline and (found := findings.get(method.key)) and found.top1 is not None
    }
    if best is None or best.top1 is None or not others:
        return _unknown(what, bound)
    name = max(others, key=lambda key: others[key])
    shown = f"{best.top1:.1%}; highest of {len(others)} baselines {others[name]:.1%} ({name})"
    return Row("bound", what, shown, bound, best.top1 > others[name], {"top1": best.top1, "baselines": others})


def _own(findings: Findings, scheme: str) -> Sequence[Finding]:
    """Return what we make ourselves of a scheme, the lowest gap first."""
    keys = [method.key for method in METHODS if method.scheme == scheme and not method.peer]
    own = [found for key in keys if (found := findings.get(key)) and found.measured]
    return sorted(own, key=lambda found: found.gap or 0.0)


def _unknown(what: str, bound: str) -> Row:
    return Row("bound", what, "not measured", bound)
