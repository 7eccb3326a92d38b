"""What only a GPU can tell, in one command without network and in less than ten minutes.

    tools/gpu_check                                    # or: python -m tools.gpu_check
    tools/gpu_check --provider cpu --small-only        # the same code where there is no GPU: a test of this tool

It writes Llama-shaped float16 models with random weights (a small one, then layers of 8B and 1B), rounds them in
several forms with and without transforms, and says for each: do all nodes run on the GPU, do its outputs agree with the
CPU's, how fast are decode and prefill, how much memory do they take. The last two are what `tools.bench_runtime
--provider cuda` measures, of fewer models. Before that it builds the library of our operators with nvcc and says how
right and how fast each of them is; the models run with it. The small one is written in float32, too, and has to become
float16 on the way. A table goes to the terminal; the same as Markdown and JSON
to tools/results/.

Exit codes: 0 all bounds met; 1 one missed, or a check failed; 2 wrong arguments; 77 no CUDA provider or no device.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from catonnx.ops.place import VARIABLE
from catonnx.runtime.probe import why_not
from tools import bench_runtime, gpu_checks, gpu_operators
from tools.bench_runtime import Sizes
from tools.gpu_checks import Plan
from tools.llama_shape import LlamaShape
from tools.machine import graphics_cards, surroundings
from tools.operator_cases import draw_cases
from tools.runtime_models import SHAPES, Subject
from tools.tables import Row, all_well, attempt, markdown, write_json

NO_DEVICE = 77
"""Exit code where there is nothing to check on: the one by which test harnesses know a skipped test."""

RESULTS = Path(__file__).resolve().parent / "results"

_ALL_FORMS = (
    "qdq w4a16, none",
    "qdq w4a16, cat 128",
    "op w4a16, cat 128",
    "op w4a8, scale + hadamard",
    "op w4a4, scale + hadamard",
    "integer w4a4, scale + hadamard",
)
_BOUNDED = tuple(f"op {scheme}, scale + hadamard" for scheme in ("w4a16", "w4a8", "w4a4"))
_TIMED = Sizes(rounds=5, decoded=32, batches=(1, 8, 32), most_seconds=20)

SMALL = Plan("small", LlamaShape(4, 512, 8, 2, 1536, 32000), _ALL_FORMS, 512, _TIMED, "mse", 4, 128)
LARGE = (Plan("8B", SHAPES["8B"], _BOUNDED, 2048, _TIMED), Plan("1B", SHAPES["1B"], _BOUNDED[:2], 2048, _TIMED))
TINY = Plan("tiny", SHAPES["tiny"], ("qdq w4a16, cat 128", *_ALL_FORMS[3::2]), 48, Sizes(1, 4, (1, 2)), "mse", 2, 16)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    missing = why_not(options.provider)
    if missing:
        print(f"no GPU check: {missing}")
        return NO_DEVICE
    plans = [TINY] if options.tiny else ([SMALL] if options.small_only else [SMALL, *LARGE])
    if options.layers is not None:
        plans = [
            dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, layers=options.layers)) for plan in plans
        ]
    deadline = time.monotonic() + options.seconds
    cards = graphics_cards() if options.provider == "cuda" else []
    head = surroundings() | {"provider": options.provider, "gpus": cards}
    rows: list[Row] = []
    before = os.environ.get(VARIABLE)
    with tempfile.TemporaryDirectory(prefix="gpu-check-", dir=options.scratch) as held:
        rows += check_operators(options.provider, Path(held), deadline, tiny=options.tiny or options.provider == "cpu")
        for plan in plans:
            with tempfile.TemporaryDirectory(prefix="gpu-check-", dir=options.scratch) as scratch:
                if plan is plans[0]:
                    rows += check_narrowing(plan, options.provider, Path(scratch) / "narrowing", deadline)
                rows += check(plan, options.provider, Path(scratch), deadline)
    os.environ.pop(VARIABLE, None)
    if before is not None:
        os.environ[VARIABLE] = before
    report(head, rows, options.out or (RESULTS if options.provider == "cuda" else None))
    return 0 if all_well(rows) else 1


def check_operators(provider: str, folder: Path, deadline: float, *, tiny: bool) -> list[Row]:
    """Build the library of our operators and measure each of them; the models that follow run with it."""
    group, paths = gpu_operators.GROUP, []

    def make() -> list[Row]:
        begin = time.monotonic()
        paths.append(gpu_operators.built(provider, folder))
        return [Row(group, "library built", f"{time.monotonic() - begin:.0f} s")]

    _say(f"{group}: building the library")
    rows = attempt(group, "library built", make)
    if not paths:
        return rows
    (library,) = paths
    os.environ[VARIABLE] = str(library)
    sizes = gpu_operators.TINY if tiny else gpu_operators.Sizes()
    steps = {
        "numerics": lambda: gpu_operators.numerics(library, provider, list(draw_cases(library, few=tiny))),
        "prologue": lambda: gpu_operators.prologues(library, provider, sizes),
        "products": lambda: gpu_operators.products(library, provider, sizes),
    }
    if provider == "cuda":
        steps["races"] = lambda: gpu_operators.races(library)
    return rows + _measured(group, steps, deadline)


def check_narrowing(plan: Plan, provider: str, folder: Path, deadline: float) -> list[Row]:
    """See that a float32 model becomes a float16 one."""
    return _measured(plan.name, {"float32 to float16": lambda: gpu_checks.narrowed(plan, provider, folder)}, deadline)


def _measured(group: str, steps: Mapping[str, Callable[[], list[Row]]], deadline: float) -> list[Row]:
    rows: list[Row] = []
    for name, measure in steps.items():
        if time.monotonic() > deadline:
            rows.append(Row(group, name, "not begun: the time was up; raise --seconds", failed=True))
            continue
        _say(f"{group}: {name}")
        rows += attempt(group, name, measure)
    return rows


def check(plan: Plan, provider: str, scratch: Path, deadline: float) -> list[Row]:
    """Make one model and measure it; what fails becomes a row, and the rest goes on."""
    made: list[tuple[Subject, dict[str, Path]]] = []

    def make(where: str, folder: Path) -> list[Row]:
        rows, subject, paths = gpu_checks.make(plan, where, folder)
        made.append((subject, paths))
        return rows

    rows = _measured(plan.name, {"made": lambda: make(provider, scratch / "models")}, deadline)
    if not made and provider != "cpu":
        # Rounded on the CPU, the models still tell how they run on the GPU.
        rows += _measured(plan.name, {"made on the CPU": lambda: make("cpu", scratch / "models-cpu")}, deadline)
    if not made:
        return rows
    subject, paths = made[0]
    steps = {
        "fusion": lambda: gpu_checks.fusion(plan, provider, paths, scratch),
        "nodes": lambda: gpu_checks.where(plan, provider, subject, paths),
        "runtime": lambda: bench_runtime.measure(subject, paths, provider, plan.sizes),
        "agreement": lambda: gpu_checks.agreement(plan, provider, subject, paths),
    }
    return rows + _measured(plan.name, steps, deadline)


def report(head: dict[str, Any], rows: list[Row], out: Path | None) -> None:
    """Print the table and write it, with what it was measured on, as `gpu_check.md` and `gpu_check.json`."""
    machine, cards = head["machine"], head["gpus"]
    named = [", ".join(f"{key} {value}" for key, value in card.items()) for card in cards]
    facts = [
        f"date: {head['date']}",
        f"gpu: {'; '.join(named) or 'none, a test of the tool on the CPU'}",
        f"cpu: {machine['cpu']}, {machine['cores']} cores",
        f"versions: {', '.join(f'{key} {value}' for key, value in head['versions'].items())}",
    ]
    text = "\n".join([*(f"- {fact}" for fact in facts), "", markdown(rows)])
    print(text)
    if out is not None:
        write_json(out / "gpu_check.json", head, rows)
        (out / "gpu_check.md").write_text(f"# tools/gpu_check\n\n{text}\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_check",
        description="What only a GPU can tell about catonnx's models: placement, agreement with the CPU, speed.",
        epilog="exit codes: 0 all bounds met; 1 one missed or a check failed; 2 wrong arguments; 77 no CUDA",
    )
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda", help="where to run (default cuda)")
    parser.add_argument("--small-only", action="store_true", help="leave the layers of 8B and 1B out")
    parser.add_argument("--tiny", action="store_true", help="one tiny model instead: a test of this tool in seconds")
    parser.add_argument("--layers", type=int, help="decoder layers of the models, instead of 4, 2 and 4")
    parser.add_argument("--seconds", type=float, default=480, help="begin no further check after this (default 480)")
    parser.add_argument("--scratch", type=Path, help="folder for the models, 4 GB free (default: the system's)")
    parser.add_argument(
        "--out", type=Path, help="folder for the results (default: tools/results; on the CPU they are only shown)"
    )
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
