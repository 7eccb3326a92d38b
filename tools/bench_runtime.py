"""How fast each form runs, with and without transforms, beside fp32 and onnxruntime's own int4 and int8; in turns.

    python -m tools.bench_runtime                                 # SmolLM2 on the CPU, the models that have bounds
    python -m tools.bench_runtime --all                           # every form with every transform: an hour of making
    python -m tools.bench_runtime --only 'op*' --keep out         # the models stay in a folder, and are taken again

Prefill takes in a row of Wikipedia at once; decode goes on token by token, in 1, 8 and 32 copies of the text. Every
round times all models, each beginning in turn, so that what slows the machine down slows down all of them; ratios are
medians over rounds. The output head, a fifth of SmolLM2's products, stays in float in all of them.

Exit codes: 0 all bounds met; 1 one missed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import models
from catonnx.ops.place import BUILD, library
from catonnx.runtime.evaluate import disk_bytes
from catonnx.runtime.text import TokenStream, pack_text, read_text
from tools.arguments import add_calibration, add_places
from tools.child import run
from tools.machine import surroundings
from tools.stepping import Variant, median_ratio, open_runner, take_turns
from tools.tables import Row, all_well, markdown, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "runtime.json"

FLOAT, INT8 = "fp32", "onnxruntime int8"
PEERS = {"onnxruntime int4, exact": 0, "onnxruntime int4, level 4": 4}
"""Their accuracy level: 4 rounds activations to int8 per block."""

TRANSFORMS: Mapping[str, dict[str, Any]] = {
    "none": {"transform": "none"},
    "scale + hadamard": {"transform": "cat", "block_size": 1},
    "cat 128": {"transform": "cat", "block_size": 128},
}

_PER_TOKEN: dict[str, Any] = {"group_size": None, "activation_range": "symmetric"}
_SYMMETRIC: dict[str, Any] = {"activation_range": "symmetric"}
FORMS: Mapping[str, dict[str, Any]] = {
    "qdq w4a16": {},
    "nbits w4a16": {"form": "nbits"},
    "nbits w4a8": {"form": "nbits", "scheme": "w4a8"},
    "integer w4a8": {"form": "integer", "scheme": "w4a8"} | _PER_TOKEN,
    "integer w4a4": {"form": "integer", "scheme": "w4a4"} | _PER_TOKEN,
    "op w4a16": {"form": "op"},
    "op w4a8": {"form": "op", "scheme": "w4a8"} | _SYMMETRIC,
    "op w4a8 a channel": {"form": "op", "scheme": "w4a8"} | _PER_TOKEN,
    "op w4a4 a channel": {"form": "op", "scheme": "w4a4"} | _PER_TOKEN,
}

BOUNDED = [
    f"{form}, {transform}"
    for form in ("op w4a16", "op w4a8", "op w4a8 a channel", "integer w4a8", "integer w4a4")
    for transform in ("none", "scale + hadamard")
]
"""What is made unless more is asked for."""

PREFILL = "prefill"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    model = options.model or models.path("smollm2")
    wanted = _wanted(options)
    if library() is None and any(name.startswith("op") for name in wanted):
        print(f"the library of our operators is not there: {BUILD}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="catonnx-runtime-") as scratch:
        variants = _variants(model, options.keep or Path(scratch), wanted, options)
        sizes = {name: disk_bytes(variant.path) for name, variant in variants.items()}
        text = read_text(models.path("wikipedia"))
        tokens = pack_text(text, TokenStream.load(model), seq_len=options.row_tokens, samples=1)[0]
        runners = {name: open_runner(variant) for name, variant in variants.items()}
        times: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in runners}
        for batch in options.batch:
            print(f"timing: {batch} texts", file=sys.stderr, flush=True)
            turns = take_turns(
                runners,
                tokens,
                rounds=options.rounds,
                context=options.row_tokens // 4,
                decoded=options.decoded,
                batch=batch,
                prefill=batch == 1,
            )
            for name, own in turns.items():
                times[name][f"decode {batch}"] = own.decode
                if own.prefill:
                    times[name][PREFILL] = own.prefill
    rows = [_speed(name, own, options.row_tokens) for name, own in times.items()]
    rows += [*_ratios(times), *_costs(times), *_sizes(sizes)]
    head = surroundings() | {"model": str(options.model or "SmolLM2-135M-Instruct"), "row_tokens": options.row_tokens}
    write_json(options.json, head, rows)
    print(markdown(rows))
    return 0 if all_well(rows) else 1


def _wanted(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the models of ours that are made, by name."""
    every = {
        f"{form}, {transform}": wishes | TRANSFORMS[transform]
        for form, wishes in FORMS.items()
        for transform in TRANSFORMS
    }
    patterns: Sequence[str] = options.only or (["*"] if options.all else BOUNDED)
    return {name: wishes for name, wishes in every.items() if any(fnmatch.fnmatchcase(name, one) for one in patterns)}


def _variants(
    model: Path, folder: Path, wanted: Mapping[str, dict[str, Any]], options: argparse.Namespace
) -> dict[str, Variant]:
    """Make the models that are not there yet, each in a process of its own."""
    left: list[str] = []
    common = {"calibration": str(models.path("news")), "samples": options.samples, "seq_len": options.seq_len}

    def made(name: str, job: str, arguments: dict[str, Any]) -> Path:
        out = folder / name.replace(" ", "_").replace(",", "")
        if not out.exists():
            print(f"making: {name}", file=sys.stderr, flush=True)
            done = run(job, {"model": str(model), "out": str(out), **arguments})
            left.extend(node for node, _, _ in done.result.get("left", []) if node not in left)
        return out / "model.onnx"

    ours = {name: made(name, "optimize", {"recipe": common | wishes}) for name, wishes in wanted.items()}
    # What we leave in float they leave too, output head first of all.
    exclude = {"exclude": left}
    peers = {name: made(name, "peer", exclude | {"accuracy_level": level}) for name, level in PEERS.items()}
    paths = {FLOAT: model / "model.onnx", INT8: made(INT8, "int8", exclude)} | peers | ours
    return {name: Variant(path, {}) for name, path in paths.items()}


def _speed(name: str, own: Mapping[str, tuple[float, ...]], tokens: int) -> Row:
    shown, values = [], {}
    for phase, seconds in own.items():
        count = tokens if phase == PREFILL else int(phase.split()[1])
        speeds = sorted(count / second for second in seconds)
        values[phase] = speeds
        shown.append(f"{phase} {statistics.median(speeds):.1f} ({speeds[0]:.1f} to {speeds[-1]:.1f})")
    return Row("tokens/s", name, ", ".join(shown), values=values)


def _ratios(times: Mapping[str, Mapping[str, tuple[float, ...]]]) -> list[Row]:
    """Compare what has transforms with fp32 and with onnxruntime's int4 without."""
    with_transforms = [name for name in times if name.endswith("scale + hadamard")]
    exact, rounded = PEERS
    rows = []
    for name in with_transforms:
        peer = exact if "w4a16" in name else rounded
        rows.append(_ratio(times, "decode 1", name, peer, 1.0))
        if "w4a16" not in name:
            rows += [_ratio(times, PREFILL, name, other, 5.0) for other in (FLOAT, rounded)]
    return [row for row in rows if row is not None]


def _ratio(
    times: Mapping[str, Mapping[str, tuple[float, ...]]], phase: str, name: str, other: str, bound: float
) -> Row | None:
    if phase not in times[name]:
        return None
    over, under = times[other][phase], times[name][phase]
    ratio, ratios = median_ratio(over, under), [first / second for first, second in zip(over, under, strict=True)]
    shown = f"{ratio:.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
    values = {"ratio": ratio, "ratios": ratios}
    return Row(phase, f"{name} over {other}", shown, f">= {bound} x", ratio >= bound, values)


def _costs(times: Mapping[str, Mapping[str, tuple[float, ...]]]) -> list[Row]:
    """Say what transforms add to a form's own time."""
    rows = []
    for name in times:
        plain = name.replace("scale + hadamard", "none")
        if plain == name or plain not in times:
            continue
        for phase, bound in (("decode 1", 0.02), (PREFILL, 0.03)):
            if phase in times[name]:
                cost = median_ratio(times[name][phase], times[plain][phase]) - 1
                what = f"{phase}, scale + hadamard in {name.split(',')[0]}"
                rows.append(Row("cost", what, f"{cost:.1%}", f"<= {bound:.0%}", cost <= bound, {"cost": cost}))
    return rows


def _sizes(sizes: Mapping[str, int]) -> list[Row]:
    """Compare the size of files with groups of 32 with that of onnxruntime's int4 of the same groups."""
    peer = sizes[next(iter(PEERS))]
    rows = []
    for name, size in sizes.items():
        if name.startswith("op") and "channel" not in name:
            ratio = size / peer
            rows.append(Row("size", name, f"{ratio:.3f} x", "<= 1.02 x", ratio <= 1.02, {"bytes": size}))
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_runtime", description="Time all forms; see the file's first lines.")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")
    parser.add_argument("--decoded", type=int, default=32, help="tokens decoded in each round (default 32)")
    parser.add_argument("--row-tokens", type=int, default=512, help="tokens of prefill (default 512)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="texts at once (default 1 8 32)")
    parser.add_argument("--only", action="append", help="models of ours to make, a pattern; repeatable")
    parser.add_argument("--all", action="store_true", help="every form with every transform")
    add_calibration(parser)
    parser.add_argument("--keep", type=Path, help="folder in which the models stay")
    add_places(parser, RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
