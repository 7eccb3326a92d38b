"""The process that runs cases: it may crash or hang, and whoever started it sees at which case.

It writes one line of JSON before each case and one after it. Standard output and error belong to the libraries.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

MEMORY = 6 << 30
"""Bytes of address space; what a hostile model would take beyond ends in an error here, not in a dead machine."""

QUICK_SHRINK = 45.0
"""Seconds that a failure is made smaller for."""

FREEZE_EVERY = 32
"""Cases between two times when what stays in memory is taken out of Python's garbage collection."""


def graph_case(seed: int, folder: Path, keep: Path | None) -> Mapping[str, Any]:
    """Judge the random graph of a seed; a failure is shrunk and kept."""
    from tools.fuzz.cases import draw
    from tools.fuzz.graphs import judge
    from tools.fuzz.keep import keep_graph

    case = draw(seed)
    outcome = judge(case, folder)
    if outcome.failed and keep is not None:
        keep_graph(keep / f"graph-{seed}", case, outcome, folder, QUICK_SHRINK)
    return {"kind": outcome.kind, "error": outcome.error, "detail": outcome.detail[-2000:]}


def file_case(seed: int, folder: Path, keep: Path | None) -> Mapping[str, Any]:
    """Judge the mutated model of a seed; a failure is kept."""
    from tools.fuzz.files import judge_seed

    outcome = judge_seed(seed, folder, keep)
    return {"kind": outcome.kind, "mutation": outcome.mutation, "detail": outcome.detail[-2000:]}


CASES: Mapping[str, Callable[[int, Path, Path | None], Mapping[str, Any]]] = {
    "graphs": graph_case,
    "files": file_case,
}


def work(kind: str, first: int, count: int, keep: Path | None, lines: TextIO, scratch: Path | None = None) -> None:
    """Run the cases of some seeds and tell of each on `lines`."""
    with tempfile.TemporaryDirectory(prefix="catonnx-fuzz-", dir=scratch) as folder:
        for seed in range(first, first + count):
            if (seed - first) % FREEZE_EVERY == 1:
                gc.freeze()  # optimize collects garbage: among all that is imported, a fifth of the time of a case
            _tell(lines, {"seed": seed})
            begin = time.monotonic()
            outcome = CASES[kind](seed, Path(folder), keep)
            _tell(lines, {"seed": seed, "seconds": round(time.monotonic() - begin, 3), **outcome})


def _tell(lines: TextIO, data: Mapping[str, Any]) -> None:
    lines.write(json.dumps(data) + "\n")
    lines.flush()


def main() -> None:
    """Run what the command line names: KIND FIRST COUNT KEEP, or - for nothing to be kept."""
    kind, first, count, keep = sys.argv[1:5]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with os.fdopen(os.dup(1), "w") as lines:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        work(kind, int(first), int(count), None if keep == "-" else Path(keep), lines)


if __name__ == "__main__":
    main()
