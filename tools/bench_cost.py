"""What optimizing costs, how fast the result decodes, and how long the demo takes."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tools.bench_subjects import CAT, EXACT, FLOAT, NONE, Subjects, file_of
from tools.child import ROOT, run
from tools.stepping import Times, Variant, median_ratio, open_runner, take_turns
from tools.tables import Row

TIME, SPEED, DEMO = "time", "speed", "demo"

_DEPLOYED, _EXACT_NAME = "as deployed", "exact activations"


def optimize_time(subjects: Subjects) -> list[Row]:
    """Time `optimize` and a bare forward pass over the same tokens in turns, each in a process of its own."""
    sizes = subjects.sizes
    forward_arguments = {
        "model": str(subjects.model),
        "text": str(subjects.news),
        "samples": sizes.samples,
        "seq_len": sizes.seq_len,
    }
    optimized, passes = [], []
    for _ in range(sizes.repeats):
        passes.append(run("forward", forward_arguments))
        optimized.append(subjects.optimize_again())
    whole = statistics.median(child.seconds for child in optimized)
    bare = statistics.median(child.result["forward_seconds"] for child in passes)
    loading = statistics.median(child.result["load_seconds"] for child in passes)
    peak = max(child.peak_bytes for child in optimized)
    tokens = passes[0].result["tokens"]
    steps = optimized[-1].result["steps"]
    shown = f"{whole / bare:.2f} x: {whole:.1f} s over {bare:.1f} s for {tokens} tokens (and {loading:.1f} s to load)"
    return [
        Row(
            TIME,
            "wall time of optimize over the bare forward pass",
            shown,
            "<= 2 x",
            whole <= 2 * bare,
            {
                "ratio": whole / bare,
                "optimize_seconds": [child.seconds for child in optimized],
                "forward": [child.result for child in passes],
                "steps": steps,
            },
        ),
        Row(TIME, "its steps, s", ", ".join(f"{step} {seconds:.1f}" for step, seconds in steps.items())),
        Row(
            TIME,
            "peak memory of optimize",
            f"{peak / 1e9:.2f} GB",
            "<= 2 GB",
            peak <= 2e9,
            {"peak_bytes": [child.peak_bytes for child in optimized]},
        ),
    ]


def speed(subjects: Subjects) -> list[Row]:
    """Time decode and prefill of the source and both int4 models in turns, exact and as deployed."""
    sizes = subjects.sizes
    source = subjects.model / "model.onnx"
    none, cat = (file_of(subjects.optimized(transform)) for transform in (NONE, CAT))
    variants = {FLOAT: Variant(source, {})}
    for label, config in ((_DEPLOYED, {}), (_EXACT_NAME, EXACT)):
        variants |= {f"{NONE}, {label}": Variant(none, config), f"{CAT}, {label}": Variant(cat, config)}
    runners = {name: open_runner(variant) for name, variant in variants.items()}
    context = sizes.row_tokens // 4
    times = take_turns(runners, subjects.rows[0], rounds=sizes.rounds, context=context, decoded=sizes.decoded)
    rows = [_speed_row(name, own, sizes.row_tokens) for name, own in times.items()]
    for label in (_DEPLOYED, _EXACT_NAME):
        before, after = times[f"{NONE}, {label}"], times[f"{CAT}, {label}"]
        for what, over, under in (
            ("decode", before.decode, after.decode),
            ("prefill", before.prefill, after.prefill),
        ):
            ratio = median_ratio(over, under)
            ratios = [first / second for first, second in zip(over, under, strict=True)]
            bounded = what == "decode"
            rows.append(
                Row(
                    SPEED,
                    f"{what}, {CAT} over {NONE}, {label}",
                    f"{ratio:.2f} x ({min(ratios):.2f} to {max(ratios):.2f})",
                    ">= 0.85 x" if bounded else "",
                    ratio >= 0.85 if bounded else None,
                    {"ratio": ratio, "ratios": ratios},
                )
            )
    return rows


def _speed_row(name: str, own: Times, tokens: int) -> Row:
    decode = sorted(1 / seconds for seconds in own.decode)
    prefill = sorted(tokens / seconds for seconds in own.prefill)
    shown = (
        f"decode {statistics.median(decode):.1f} ({decode[0]:.1f} to {decode[-1]:.1f}), "
        f"prefill {statistics.median(prefill):.0f} ({prefill[0]:.0f} to {prefill[-1]:.0f})"
    )
    values = {"decode_tokens_per_second": decode, "prefill_tokens_per_second": prefill}
    return Row(SPEED, f"tokens/s: {name}", shown, values=values)


def demo(_: Subjects) -> list[Row]:
    """Clone the last commit and run `make demo` there, environment and downloads included."""
    with tempfile.TemporaryDirectory(prefix="catonnx-demo-") as scratch:
        clone = Path(scratch) / "catonnx"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        begin = time.perf_counter()
        run_demo = subprocess.run(["make", "demo"], cwd=clone, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begin
    if run_demo.returncode:
        raise RuntimeError(f"make demo failed: {run_demo.stderr.strip()[-300:]}")
    shown = f"{seconds / 60:.1f} minutes"
    return [Row(DEMO, "make demo on a fresh clone", shown, "<= 8 minutes", seconds <= 480, {"seconds": seconds})]
