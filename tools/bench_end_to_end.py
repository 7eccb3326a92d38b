"""Every figure of the end-to-end table, measured by one command: a language model and a sentence encoder, int4 weights.

    python -m tools.bench_end_to_end                  # everything: half an hour on 2 cores
    python -m tools.bench_end_to_end --quick          # minutes; shows that it runs, its figures mean nothing
    python -m tools.bench_end_to_end --only speed --reuse

Language models are calibrated on news and judged on Wikipedia; the encoder is calibrated on Wikipedia and judged on
news, because its score is measured on the news documents. `--only demo` times `make demo` on a fresh clone; it
downloads packages and is therefore no part of the whole. A busy machine distorts times: what is compared runs in turns,
and the load at the start is written down.

Exit codes: 0 all bounds met; 1 one missed, or a measurement failed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from tools import bench_cost, bench_encoder, bench_equivalence
from tools.bench_subjects import QUICK, Sizes, Subjects
from tools.machine import surroundings
from tools.tables import Row, all_well, attempt, markdown, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tools" / "results" / "end_to_end.json"
CACHE = ROOT / ".cache" / "bench"

Measure = Callable[[Subjects], list[Row]]

STEPS: dict[str, tuple[Measure, ...]] = {
    # First, because it makes the model that the others measure.
    "time": (bench_cost.optimize_time,),
    "quality": (
        bench_equivalence.equivalence,
        bench_equivalence.perplexities,
        bench_equivalence.structure,
        bench_equivalence.sizes,
    ),
    "speed": (bench_cost.speed,),
    "minilm": (bench_encoder.cosines,),
    "demo": (bench_cost.demo,),
}
BY_THEMSELVES = frozenset({"demo"})
"""Steps that run only when they are named."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Sizes)}
    sizes = dataclasses.replace(
        QUICK if options.quick else Sizes(), **{name: value for name, value in given.items() if value is not None}
    )
    subjects = Subjects(sizes, options.cache, reuse=options.reuse, model=options.model, encoder=options.encoder)
    head = surroundings() | {
        "quick": options.quick,
        "sizes": dataclasses.asdict(sizes),
        "model": options.model or "SmolLM2-135M-Instruct",
        "encoder": options.encoder or "all-MiniLM-L6-v2",
    }
    rows: list[Row] = []
    for step in options.only or [name for name in STEPS if name not in BY_THEMSELVES]:
        for measure in STEPS[step]:
            name = measure.__name__.replace("_", " ")
            print(f"{step}: {name}", file=sys.stderr, flush=True)
            rows += attempt(step, name, lambda measure=measure: measure(subjects))  # type: ignore[misc]
            # After every measurement, so that what was measured survives an interruption.
            write_json(options.out, {key: _shown(value) for key, value in head.items()}, rows)
    print(_title(head))
    print(markdown(rows))
    return 0 if all_well(rows) else 1


def _title(head: dict[str, object]) -> str:
    machine = head["machine"]
    assert isinstance(machine, dict)
    note = " (quick: these figures mean nothing)" if head["quick"] else ""
    return (
        f"{head['date']}, {machine['cpu']}, {machine['cores']} cores, load {machine['load_1_minute']} at the start"
        f"{note}\n"
    )


def _shown(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_end_to_end", description="Measure every figure of the end-to-end table; see the file's first lines."
    )
    parser.add_argument(
        "--only", action="append", choices=list(STEPS), help="run this step; repeatable (default: all but demo)"
    )
    parser.add_argument("--quick", action="store_true", help="a few short texts: shows that everything runs")
    parser.add_argument("--reuse", action="store_true", help="take optimized models that an earlier run left")
    parser.add_argument("--rows", type=int, help="rows of Wikipedia text for perplexity (default 32)")
    parser.add_argument("--row-tokens", type=int, help="tokens in each (default 512)")
    parser.add_argument("--samples", type=int, help="calibration texts (default 32)")
    parser.add_argument("--seq-len", type=int, help="tokens in each (default 512)")
    parser.add_argument("--rounds", type=int, help="timed rounds of decode and prefill (default 9)")
    parser.add_argument("--decoded", type=int, help="tokens decoded in each round (default 32)")
    parser.add_argument("--repeats", type=int, help="timed runs of optimize, of which the median counts (default 1)")
    parser.add_argument("--documents", type=int, help="documents for the encoder (default 300)")
    parser.add_argument("--model", type=Path, help="folder of another language model with cache and tokenizer")
    parser.add_argument("--encoder", type=Path, help="folder of another text encoder")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for optimized models (default .cache/bench)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes (default tools/results/)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
