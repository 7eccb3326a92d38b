"""What `bench_runtime` found, as rows: speeds, ratios and costs with their bounds, sizes, memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tools.runtime_models import EXACT, INT4, ROUNDED, Subject
from tools.stepping import median_ratio
from tools.tables import Row

PREFILL = "prefill"
OTHER_KERNEL = "fpA_intB"
"""Another one for MatMulNBits on CUDA, which ONNX Runtime takes only on demand."""

SIZE_BOUND = 1.02

Times = Mapping[str, Mapping[str, Sequence[float]]]
"""Model -> phase -> seconds of each round. Phases are `prefill` and `decode N`, N texts at once."""

_TRANSFORMED, _PLAIN = "scale + hadamard", "none"
_WIDE = 4096
"""Width from which on a prefill on CUDA has a bound."""


def speeds(subject: Subject, times: Times) -> list[Row]:
    """Say how many tokens a second each model takes in or gives out."""
    rows = []
    for name, own in times.items():
        shown, values = [], {}
        for phase, seconds in own.items():
            count = len(subject.tokens) if phase == PREFILL else int(phase.split()[1])
            found = sorted(count / second for second in seconds)
            values[phase] = found
            shown.append(f"{phase} {statistics.median(found):.1f} ({found[0]:.1f} to {found[-1]:.1f})")
        rows.append(Row(group_of(subject, "tokens/s"), name, ", ".join(shown), values=values))
    return rows


def ratios(subject: Subject, times: Times, provider: str) -> list[Row]:
    """Compare what has transforms with the source and with onnxruntime's int4, which has none."""
    rows = []
    for name, own in times.items():
        if not name.endswith(_TRANSFORMED):
            continue
        for phase in own:
            for other, bound in _demands(subject, name, phase, provider):
                if phase in times.get(other, {}):
                    rows.append(_ratio(subject, times, phase, name, other, bound))
    return rows


def _demands(subject: Subject, name: str, phase: str, provider: str) -> list[tuple[str, float | None]]:
    """Return what a model is compared with in a phase, each with the ratio that is demanded of it."""
    rounds_activations = "w4a16" not in name
    if subject.dtype == "fp32":
        peer = ROUNDED if rounds_activations else EXACT
        if phase != PREFILL:
            return [(peer, 1.0 if phase == "decode 1" else None)]
        return [("fp32", 5.0), (peer, 5.0)] if rounds_activations else []
    cuda = provider == "cuda"
    if phase != PREFILL:
        bounded = cuda and phase == "decode 1" and name.startswith("op w4a16")
        return [(peer, 0.97 if bounded else None) for peer in (INT4, f"{INT4}, {OTHER_KERNEL}")]
    bounded = cuda and rounds_activations and subject.width >= _WIDE
    return [("fp16", 1.5 if bounded else None)]


def _ratio(subject: Subject, times: Times, phase: str, name: str, other: str, bound: float | None) -> Row:
    over, under = times[other][phase], times[name][phase]
    ratio, each = median_ratio(over, under), [first / second for first, second in zip(over, under, strict=True)]
    return Row(
        group_of(subject, phase),
        f"{name} over {other}",
        f"{ratio:.2f} x ({min(each):.2f} to {max(each):.2f})",
        "" if bound is None else f">= {bound} x",
        None if bound is None else ratio >= bound,
        {"ratio": ratio, "ratios": each},
    )


def costs(subject: Subject, times: Times) -> list[Row]:
    """Say what transforms add to a form's own time."""
    rows = []
    for name in times:
        plain = name.replace(_TRANSFORMED, _PLAIN)
        if not name.endswith(_TRANSFORMED) or plain not in times:
            continue
        for phase, bound in (("decode 1", 0.02), (PREFILL, 0.03)):
            if phase in times[name]:
                cost = median_ratio(times[name][phase], times[plain][phase]) - 1
                what = f"{phase}, {_TRANSFORMED} in {name.split(',')[0]}"
                group, shown = group_of(subject, "cost"), f"{cost:.1%}"
                rows.append(Row(group, what, shown, f"<= {bound:.0%}", cost <= bound, {"cost": cost}))
    return rows


def sizes(subject: Subject, found: Mapping[str, int]) -> list[Row]:
    """Compare the bytes of files with those of onnxruntime's int4 of the same groups, of 32."""
    rows = []
    for name in in_groups(found):
        ratio = found[name] / found[int4_of(subject, name)]
        met, values = ratio <= SIZE_BOUND, {"bytes": found[name]}
        rows.append(Row(group_of(subject, "size"), name, f"{ratio:.3f} x", f"<= {SIZE_BOUND} x", met, values))
    return rows


def memories(subject: Subject, found: Mapping[str, Mapping[str, int | None]]) -> list[Row]:
    """Compare what sessions take of the memory with one of onnxruntime's int4 of the same groups."""
    rows = []
    for name, taken in found.items():
        kinds = ", ".join(f"{kind.replace('_', ' ')} {size / 1e6:.0f} MB" for kind, size in taken.items() if size)
        own, peer = taken["after_runs"], found.get(int4_of(subject, name), {}).get("after_runs")
        if name not in in_groups(found) or own is None or peer is None or min(own, peer) <= 0:
            rows.append(Row(group_of(subject, "memory"), name, kinds or "not told here", values=taken))
            continue
        ratio = own / peer
        shown, bound = f"{ratio:.3f} x; {kinds}", f"<= {SIZE_BOUND} x"
        values = {**taken, "ratio": ratio}
        rows.append(Row(group_of(subject, "memory"), name, shown, bound, ratio <= SIZE_BOUND, values))
    return rows


def in_groups(names: Mapping[str, Any]) -> list[str]:
    """Return which models are of our operators and have the groups that onnxruntime's int4 has."""
    return [name for name in names if name.startswith("op") and "channel" not in name]


def int4_of(subject: Subject, name: str) -> str:
    """Return the name of onnxruntime's int4 that a model of ours is compared with."""
    if subject.dtype == "fp16":
        return INT4
    return EXACT if "w4a16" in name else ROUNDED


def group_of(subject: Subject, what: str) -> str:
    """Return the group of rows that a kind of figure of a model stands in."""
    return f"{subject.name}: {what}" if subject.name else what
