"""How fast each form runs, with and without transforms, beside fp32 and onnxruntime's own int4 and int8; in turns.

    python -m tools.bench_runtime                                 # SmolLM2 on the CPU, the models that have bounds
    python -m tools.bench_runtime --all                           # every form with every transform: an hour of making
    python -m tools.bench_runtime --only 'op*' --keep out         # the models stay in a folder, and are taken again
    python -m tools.bench_runtime --provider cuda                 # Llama-shaped layers of 1B, 3B and 8B, no network
    python -m tools.bench_runtime --provider cuda --shape 8B

Prefill takes in a row at once; decode goes on token by token, in 1, 8 and 32 copies of the text, of which fewer tokens
are decoded. Every round times all models, each beginning in turn, so that what slows the machine down slows down all of
them; ratios are medians over rounds. SmolLM2 reads Wikipedia; its output head, a fifth of its products, stays in float
in all models. The layers of Llama 3 (4 of 1B, 3 of 3B, 2 of 8B, vocabulary 1024) are in float16, with random weights,
and read random tokens. What a session takes of the memory is measured in a process of its own: resident memory on the
CPU, the card's on CUDA. As many texts are timed for 5 minutes at most (`--limit`), and a model takes about a minute to
make, on two cores.

Exit codes: 0 all bounds met; 1 one missed; 2 wrong arguments; 8 nothing runs on the provider, or there is no library.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import models
from catonnx.errors import CatonnxError, RuntimeUnavailableError, UsageError
from catonnx.ops.place import BUILD, BUILD_CUDA, has_cuda, library
from catonnx.runtime.evaluate import disk_bytes
from catonnx.runtime.probe import why_not
from catonnx.runtime.sessions import runtime_errors
from tools import runtime_rows
from tools.arguments import add_calibration, add_places
from tools.child import ChildError, run
from tools.machine import graphics_cards, surroundings
from tools.runtime_models import INT4, SHAPES, Subject, chosen, make, random_subject, text_subject
from tools.runtime_rows import OTHER_KERNEL, PREFILL, in_groups, int4_of
from tools.stepping import Runner, Variant, open_runner, take_turns
from tools.tables import Row, all_well, markdown, write_json

_RESULTS = Path(__file__).resolve().parent / "results"
RESULTS, RESULTS_CUDA = _RESULTS / "runtime.json", _RESULTS / "runtime_cuda.json"

LLAMAS = ("1B", "3B", "8B")

_OCCUPYING_TOKENS = 128

_CUTLASS = {"ep.cuda.fpa_intb_gemm": "1"}
"""What demands it."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is timed.

    Attributes:
        rounds: Rounds that count.
        decoded: Tokens decoded in a round at one text; of several texts fewer.
        batches: Texts at once.
        most_seconds: After that time with as many texts no further round begins.
    """

    rounds: int
    decoded: int
    batches: tuple[int, ...]
    most_seconds: float = math.inf

    def steps(self, batch: int) -> int:
        """Return how many tokens are decoded in a round: the more texts, the fewer."""
        return min(self.decoded, max(4, 64 // batch))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    shapes = options.shape or (LLAMAS if options.provider == "cuda" else ())
    wanted = chosen("fp16" if shapes else "fp32", options.only, options.all)
    if options.only and not wanted:
        print(f"error: no model of ours is named {' or '.join(options.only)}", file=sys.stderr)
        return UsageError.exit_code
    missing = _missing(options.provider, wanted)
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return RuntimeUnavailableError.exit_code
    cards = graphics_cards() if options.provider == "cuda" else []
    head = surroundings() | {"provider": options.provider, "gpus": cards}
    head["models"] = list(shapes) or [str(options.model or "SmolLM2-135M-Instruct")]
    sizes = Sizes(options.rounds, options.decoded, tuple(options.batch), options.limit)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="catonnx-runtime-") as scratch:
        for subject, folder in _subjects(options, shapes, options.keep or Path(scratch)):
            rows += measure(subject, make(subject, folder, wanted), options.provider, sizes)
            write_json(options.json or (RESULTS_CUDA if shapes else RESULTS), head, rows)
    print(markdown(rows))
    return 0 if all_well(rows) else 1


def measure(subject: Subject, paths: Mapping[str, Path], provider: str, sizes: Sizes) -> list[Row]:
    """Time models that were made of one, and say how large their files are and what their sessions take.

    What does not run becomes a row, and the others go on.

    Args:
        subject: What they were made of.
        paths: Of each by name, as `make` returns it.
        provider: "cpu" or "cuda".
        sizes: How much is timed.
    """
    files = {name: disk_bytes(path) for name, path in paths.items()}
    print("measuring memory", file=sys.stderr, flush=True)
    taken, rows = _taken(subject, paths, provider)
    runners, broken = _opened(subject, paths, provider)
    times = _timed(subject, runners, sizes) if runners else {}
    return [
        *rows,
        *broken,
        *runtime_rows.speeds(subject, times),
        *runtime_rows.ratios(subject, times, provider),
        *runtime_rows.costs(subject, times),
        *runtime_rows.sizes(subject, files),
        *runtime_rows.memories(subject, taken),
    ]


def _taken(
    subject: Subject, paths: Mapping[str, Path], provider: str
) -> tuple[dict[str, Mapping[str, int | None]], list[Row]]:
    """Return what sessions take of the memory, of those that are compared; and rows of those that do not run."""
    compared = in_groups(paths)
    tokens = [int(token) for token in subject.tokens[:_OCCUPYING_TOKENS]]
    found: dict[str, Mapping[str, int | None]] = {}
    rows = []
    for name in dict.fromkeys([*(int4_of(subject, name) for name in compared), *compared]):
        try:
            found[name] = run("occupy", {"model": str(paths[name]), "provider": provider, "tokens": tokens}).result
        except ChildError as error:
            rows.append(Row(runtime_rows.group_of(subject, "memory"), name, str(error), failed=True))
    return found, rows


def _opened(subject: Subject, paths: Mapping[str, Path], provider: str) -> tuple[dict[str, Runner], list[Row]]:
    """Return all that runs, on CUDA with both kernels of MatMulNBits; and rows of what does not."""
    variants = {name: Variant(path, {}) for name, path in paths.items()}
    if provider == "cuda":
        products = [name for name in paths if name == INT4 or "w4a16" in name]
        variants |= {f"{name}, {OTHER_KERNEL}": Variant(paths[name], _CUTLASS) for name in products}
    refusals: tuple[type[Exception], ...] = (CatonnxError, *runtime_errors())
    found, rows = {}, []
    for name, variant in variants.items():
        try:
            runner = open_runner(variant, provider)
            runner.step(subject.tokens[np.newaxis])
        except refusals as error:
            told = " ".join(str(error).split())
            needed = not name.endswith(OTHER_KERNEL)  # that kernel has its limits
            rows.append(Row(runtime_rows.group_of(subject, "tokens/s"), name, f"does not run: {told}", failed=needed))
        else:
            found[name] = runner
    return found, rows


def _timed(subject: Subject, runners: Mapping[str, Runner], sizes: Sizes) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return the seconds of each model's phases, one entry a round."""
    times: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in runners}
    for batch in sizes.batches:
        print(f"timing: {batch} texts", file=sys.stderr, flush=True)
        context = len(subject.tokens) // 4
        turns = take_turns(
            runners,
            subject.tokens,
            rounds=sizes.rounds,
            context=context,
            decoded=min(sizes.steps(batch), len(subject.tokens) - context - 2),
            batch=batch,
            prefill=batch == 1,
            most_seconds=sizes.most_seconds,
        )
        for name, own in turns.items():
            times[name][f"decode {batch}"] = own.decode
            if own.prefill:
                times[name][PREFILL] = own.prefill
    return times


def _missing(provider: str, wanted: Mapping[str, Any]) -> str:
    """Return what is not there and has to be, or an empty text."""
    reason = why_not(provider)
    if reason or not any(name.startswith("op") for name in wanted):
        return reason
    found = library()
    if found is None:
        return f"the library of our operators is not there: {BUILD_CUDA if provider == 'cuda' else BUILD}"
    if provider == "cuda" and not has_cuda(found):
        return f"the library of our operators has no kernels for CUDA: {BUILD_CUDA}"
    return ""


def _subjects(options: argparse.Namespace, shapes: tuple[str, ...], folder: Path) -> Iterator[tuple[Subject, Path]]:
    """Yield each model that is measured, and where its versions lie; those of shapes do while it is their turn."""
    if not shapes:
        model = options.model or models.path("smollm2")
        yield text_subject(model, options.row_tokens or 512, options.samples, options.seq_len), folder
        return
    for name in shapes:
        shape = SHAPES[name]
        print(f"shape: {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=None if options.keep else folder) as scratch:
            own = options.keep / name if options.keep else Path(scratch)
            yield (
                random_subject(
                    f"{name} in {shape.layers} layers",
                    shape,
                    own,
                    tokens=min(options.row_tokens or 2048, shape.positions // 2),
                    provider=options.provider,
                ),
                own / "made",
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_runtime", description="Time all forms; see the file's first lines.")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="where they run (default cpu)")
    parser.add_argument(
        "--shape", nargs="+", choices=list(SHAPES), help=f"Llama-shaped layers (default on cuda: {' '.join(LLAMAS)})"
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")
    parser.add_argument("--decoded", type=int, default=32, help="tokens decoded in each round, at most (default 32)")
    parser.add_argument("--row-tokens", type=int, help="tokens of prefill (default 512; of shapes 2048)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="texts at once (default 1 8 32)")
    parser.add_argument(
        "--limit",
        type=float,
        default=300,
        metavar="SECONDS",
        help="begin no further round of as many texts after this (default 300)",
    )
    parser.add_argument("--only", action="append", help="models of ours to make, a pattern; repeatable")
    parser.add_argument("--all", action="store_true", help="every form with every transform")
    add_calibration(parser, samples=8, seq_len=256)
    parser.add_argument("--keep", type=Path, help="folder in which the models stay")
    add_places(parser, RESULTS)
    parser.set_defaults(json=None)
    return parser


if __name__ == "__main__":
    sys.exit(main())
