"""Time how soon catonnx is there: `python -m tools.bench_start`.

Each is a process of its own, and all take turns. An import counts without the start of Python, `catonnx --help` with
it. One round warms up: nothing comes from a cold disk.

Exit codes: 0 all bounds met; 1 one missed, or a command failed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.child import ROOT
from tools.machine import surroundings
from tools.tables import Row, all_well, attempt, markdown, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "start.json"

_IMPORT = "import time; begin = time.perf_counter(); import catonnx; print(time.perf_counter() - begin)"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    rows = attempt("start", "measured", lambda: measured(options.rounds))
    write_json(options.json, surroundings(), rows)
    print(markdown(rows))
    return 0 if all_well(rows) else 1


def measured(rounds: int) -> list[Row]:
    """Run every command `rounds` times, in turns, and once before that.

    Raises:
        CalledProcessError: one of them failed.
    """
    subjects: Mapping[str, tuple[Callable[[], float], float | None]] = {
        "python alone": (lambda: _wall("-c", "pass"), None),
        "import catonnx": (lambda: float(_output("-c", _IMPORT)), 0.3),
        "catonnx --help": (lambda: _wall("-m", "catonnx", "--help"), 0.5),
        "catonnx optimize --help": (lambda: _wall("-m", "catonnx", "optimize", "--help"), None),
    }
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(rounds + 1):
        for name, (seconds, _) in subjects.items():
            taken = seconds()
            if turn:
                times[name].append(taken)
    rows = []
    for name, (_, bound) in subjects.items():
        median, own = statistics.median(times[name]), times[name]
        shown = f"{median:.3f} s ({min(own):.3f} to {max(own):.3f})"
        wanted, met = ("", None) if bound is None else (f"<= {bound} s", median <= bound)
        rows.append(Row("start", name, shown, wanted, met, {"seconds": own}))
    return rows


def _wall(*arguments: str) -> float:
    begin = time.perf_counter()
    _output(*arguments)
    return time.perf_counter() - begin


def _output(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_start", description="Time imports; see the file's first lines.")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default 15)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the JSON goes (default tools/results/)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
