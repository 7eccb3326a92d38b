"""How fast integer products are: fp32, onnxruntime's own int4, and catonnx in form integer, in turns, in one run.

    python -m tools.bench_speed                       # 10 minutes on 2 cores, most of it optimizing
    python -m tools.bench_speed --rounds 3 --keep out # the models stay in a folder, and are taken again

Prefill takes in a row of Wikipedia at once, transforms included; decode goes on token by token. Every round times all
models, each beginning in turn, so that what slows the machine down slows down all of them; ratios are medians over
rounds. "head in 8 bits" also rounds the output head, which is a fifth of SmolLM2's products.

Exit codes: 0 all bounds met; 1 one missed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import models
from catonnx.pipeline import optimize
from catonnx.recipe import Recipe
from catonnx.runtime.text import TokenStream, pack_text, read_text
from tools.arguments import add_calibration, add_places
from tools.child import run
from tools.machine import surroundings
from tools.stepping import Times, Variant, median_ratio, open_runner, take_turns
from tools.tables import Row, all_well, markdown, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "speed.json"

FLOAT, PEER, INTEGER, HEAD = "fp32", "onnxruntime int4, level 4", "catonnx w4a4 integer", "the same, head in 8 bits"

_SCHEME: dict[str, Any] = {"scheme": "w4a4", "form": "integer", "group_size": None, "activation_range": "symmetric"}
_RECIPES: dict[str, dict[str, Any]] = {INTEGER: _SCHEME, HEAD: _SCHEME | {"lm_head": True, "w8": ("*lm_head*",)}}
_BOUND = 2.5


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    model = options.model or models.path("smollm2")
    with tempfile.TemporaryDirectory(prefix="catonnx-speed-") as scratch:
        folder = options.keep or Path(scratch)
        variants = _variants(model, folder, options)
        tokens = pack_text(
            read_text(models.path("wikipedia")), TokenStream.load(model), seq_len=options.row_tokens, samples=1
        )[0]
        runners = {name: open_runner(variant) for name, variant in variants.items()}
        times = take_turns(
            runners, tokens, rounds=options.rounds, context=options.row_tokens // 4, decoded=options.decoded
        )
    rows = [_speed(name, own, options.row_tokens) for name, own in times.items()]
    rows += [_ratio(times, name, other) for name in _RECIPES for other in (FLOAT, PEER)]
    head = surroundings() | {"model": str(options.model or "SmolLM2-135M-Instruct"), "row_tokens": options.row_tokens}
    write_json(options.json, head, rows)
    print(markdown(rows))
    return 0 if all_well(rows) else 1


def _variants(model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Variant]:
    """Make the models that are not there yet."""
    paths = {FLOAT: model / "model.onnx"}
    left: list[str] = []
    for number, (name, wishes) in enumerate(_RECIPES.items()):
        out = folder / f"integer-{number}"
        paths[name] = out / "model.onnx"
        if not out.exists():
            print(f"making: {name}", file=sys.stderr, flush=True)
            text = str(models.path("news"))
            recipe = Recipe(calibration=text, samples=options.samples, seq_len=options.seq_len, **wishes)
            report = optimize(model, out, recipe)
            left = left or [node for node, _, _ in report.left]
    peer = folder / "peer"
    if not (peer / "model.onnx").exists():
        print(f"making: {PEER}", file=sys.stderr, flush=True)
        run("peer", {"model": str(model), "out": str(peer), "exclude": left, "accuracy_level": 4})
    paths[PEER] = peer / "model.onnx"
    return {name: Variant(paths[name], {}) for name in (FLOAT, PEER, *_RECIPES)}


def _speed(name: str, own: Times, tokens: int) -> Row:
    decode, prefill = sorted(1 / second for second in own.decode), sorted(tokens / second for second in own.prefill)
    shown = (
        f"prefill {statistics.median(prefill):.0f} ({prefill[0]:.0f} to {prefill[-1]:.0f}), "
        f"decode {statistics.median(decode):.1f} ({decode[0]:.1f} to {decode[-1]:.1f})"
    )
    values = {"prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode}
    return Row("tokens/s", name, shown, values=values)


def _ratio(times: dict[str, Times], name: str, other: str) -> Row:
    ratios = [first / second for first, second in zip(times[other].prefill, times[name].prefill, strict=True)]
    ratio = median_ratio(times[other].prefill, times[name].prefill)
    shown = f"{ratio:.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
    bound = f">= {_BOUND} x"
    return Row("prefill", f"{name} over {other}", shown, bound, ratio >= _BOUND, {"ratio": ratio, "ratios": ratios})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_speed", description="Time integer products; see the file's first lines."
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")
    parser.add_argument("--decoded", type=int, default=32, help="tokens decoded in each round (default 32)")
    parser.add_argument("--row-tokens", type=int, default=512, help="tokens of prefill (default 512)")
    add_calibration(parser)
    parser.add_argument("--keep", type=Path, help="folder in which the models stay")
    add_places(parser, RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
