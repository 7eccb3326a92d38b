"""Is the transformed model the same function, how much does rounding hurt, and what became of the linears."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catonnx.graph.load import read
from catonnx.runtime.compare import compare_models
from catonnx.runtime.evaluate import disk_bytes, evaluate
from catonnx.runtime.feeds import InputSpec, graph_inputs, token_feeds
from catonnx.runtime.fusion import fused_ops
from tools.bench_subjects import CAT, EXACT, FLOAT, NONE, PEER, Subjects, file_of
from tools.tables import Row

GROUP = "quality"

_EQUAL_ROWS = 4
"""Rows on which the transformed model is compared with its source: they differ by float rounding or everywhere."""


def equivalence(subjects: Subjects) -> list[Row]:
    """Compare logits of the saved model after transforms, nothing rounded, with the source's."""
    source = subjects.model / "model.onnx"
    spec = InputSpec.of(graph_inputs(read(source)))
    feeds = token_feeds(spec, subjects.rows[:_EQUAL_ROWS])
    transformed = file_of(subjects.optimized(CAT, scheme="float"))
    error = compare_models(source, transformed, feeds, outputs=["logits"]).relative_l2
    what = "float equivalence after transforms, relative L2 of logits"
    return [Row(GROUP, what, f"{error:.1e}", "<= 1e-4", error <= 1e-4, {"relative_l2": error, "rows": len(feeds)})]


def perplexities(subjects: Subjects) -> list[Row]:
    """Measure perplexity of the source, of both int4 models and of onnxruntime's own, exact and as deployed."""
    source = subjects.model / "model.onnx"
    none, cat = (file_of(subjects.optimized(transform)) for transform in (NONE, CAT))
    exact_peer, fast_peer = (file_of(subjects.peer(level)) for level in (0, 4))
    base = _perplexity(subjects, source, {})
    exact = {
        NONE: _perplexity(subjects, none, EXACT),
        CAT: _perplexity(subjects, cat, EXACT),
        PEER: _perplexity(subjects, exact_peer, {}),
    }
    deployed = {
        NONE: _perplexity(subjects, none, {}),
        CAT: _perplexity(subjects, cat, {}),
        PEER: _perplexity(subjects, fast_peer, {}),
    }
    count, length = subjects.rows.shape
    rows = [Row(GROUP, f"perplexity: {FLOAT}", f"{base:.2f} on {count} x {length} tokens", values={"perplexity": base})]
    for name in (NONE, CAT, PEER):
        gaps = math.log(exact[name] / base), math.log(deployed[name] / base)
        shown = f"{exact[name]:.2f}, gap {gaps[0]:.3f}; int8 activations {deployed[name]:.2f}, gap {gaps[1]:.3f}"
        values = {"exact": exact[name], "deployed": deployed[name], "exact_gap": gaps[0], "deployed_gap": gaps[1]}
        rows.append(Row(GROUP, f"perplexity, w4a16 group 32: {name}", shown, values=values))
    over_none = _ratio(base, exact, deployed, NONE)
    over_peer = _ratio(base, exact, deployed, PEER)
    return [
        *rows,
        _ratio_row("gap of cat over gap of --transform none", over_none, "<= 0.45", over_none[0] <= 0.45),
        _ratio_row("gap of cat over gap of onnxruntime's quantizer", over_peer, "< 0.5", over_peer[0] < 0.5),
    ]


def _perplexity(subjects: Subjects, path: Path, config: Mapping[str, str]) -> float:
    value = evaluate(path, subjects.rows, config=config, speed=False).perplexity
    if value is None:
        raise ValueError(f"{path} predicts no next token")
    return value


def _ratio(base: float, exact: Mapping[str, float], deployed: Mapping[str, float], other: str) -> tuple[float, float]:
    """Return the ratio of CAT's gap to the other's, exact and as deployed; NaN where the other lost nothing."""
    first, second = (
        math.log(own[CAT] / base) / gap if (gap := math.log(own[other] / base)) > 0 else math.nan
        for own in (exact, deployed)
    )
    return first, second


def _ratio_row(what: str, ratio: tuple[float, float], bound: str, met: bool) -> Row:
    exact, deployed = (f"{value:.3f}" if math.isfinite(value) else "no gap to compare with" for value in ratio)
    shown = f"{exact}; int8 activations {deployed}"
    known = met if math.isfinite(ratio[0]) else None
    return Row(GROUP, what, shown, bound, known, {"exact": ratio[0], "deployed": ratio[1]})


def structure(subjects: Subjects) -> list[Row]:
    """Count fused linears and absorbed factors of the model after CAT."""
    report = subjects.optimized(CAT)
    sites: list[dict[str, Any]] = report["sites"]
    linears = sum(len(site["linears"]) for site in sites)
    graph = fused_ops(file_of(report))
    fused = graph.operators["MatMulNBits"]
    aligned = [site for site in sites if any(_aligns(factor) for factor in site["absorbed"])]
    mixed = [site for site in aligned if any(factor.startswith("blocks") for factor in site["absorbed"])]
    attention = [site for site in sites if _one_square(site)]
    blocks = sorted({factor for site in mixed for factor in site["absorbed"]})
    return [
        Row(
            GROUP,
            "linears that run as MatMulNBits",
            f"{fused} of {linears}",
            "all",
            fused == linears and not graph.unfused,
            {"fused": fused, "linears": linears, "unfused": list(graph.unfused)},
        ),
        Row(
            GROUP,
            "sites with the aligning factor absorbed",
            f"{len(aligned)} of {len(sites)}",
            "all",
            len(aligned) == len(sites),
            {"absorbed": len(aligned), "sites": len(sites)},
        ),
        Row(
            GROUP,
            "o_proj sites with a block per head absorbed",
            f"{len(mixed)} of {len(attention)} ({', '.join(blocks)})",
            "all",
            len(mixed) == len(attention),
            {"absorbed": len(mixed), "o_proj": len(attention), "factors": blocks},
        ),
    ]


def _aligns(factor: str) -> bool:
    return factor == "scale" or factor.startswith("blocks")


def _one_square(site: dict[str, Any]) -> bool:
    """Whether a site is read by one square linear: in a Llama that is the output projection of the attention."""
    shapes = site["shapes"]
    return len(shapes) == 1 and shapes[0][0] == shapes[0][1]


def sizes(subjects: Subjects) -> list[Row]:
    """Say how large the models are on disk."""
    paths = {
        FLOAT: subjects.model / "model.onnx",
        NONE: file_of(subjects.optimized(NONE)),
        CAT: file_of(subjects.optimized(CAT)),
        PEER: file_of(subjects.peer(0)),
    }
    found = {name: disk_bytes(path) for name, path in paths.items()}
    shown = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in found.items())
    return [Row(GROUP, "size on disk, MB", shown, values=found)]
