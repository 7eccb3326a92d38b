"""Every tiny model in each type: is its function kept, and how many of its linears are rounded.

    python -m tools.bench_dialects                                # all: 7 minutes on 2 cores, and the exports at first
    python -m tools.bench_dialects --type bfloat16 --only tiny-llama

Each file is rounded to 4 bits with default options after a few tokens of calibration. Reported are the relative L2 of
the outputs between the source and the transformed model before rounding, on the CPU, and the linears with a constant
2-D weight, counted without catonnx, that were rounded; output heads, which stay by default, are counted apart. float16
and bfloat16 models are made by `models.casting`; bfloat16 runs as its float32 twin. `narrowed` is a float32 model that
`--dtype float16` makes a float16 one, compared with float32.

Exit codes: 0 all bounds met; 1 one missed, or a measurement failed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import catonnx
from catonnx.errors import NothingToOptimizeError
from catonnx.runtime.decoding import is_cache_name
from models import dialects
from models.casting import write_cast
from tools.machine import surroundings
from tools.tables import Row, all_well, attempt, markdown, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tools" / "results" / "dialects.json"

NARROWED = "narrowed"
BOUNDS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-2, NARROWED: 2e-2}
"""Type -> relative L2 allowed."""

SHARE = 0.95
"""Part of the linears that has to be rounded."""

RECIPE = catonnx.Recipe(samples=2, seq_len=32)


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one file.

    Attributes:
        constants: Products with a constant matrix, counted without catonnx.
        rounded: Linears that were rounded.
        heads: Output heads that were left.
        reasons: Why the others were left, and how many.
        relative_l2: Between source and transformed model; None if nothing was rounded.
        same_types: Whether inputs and outputs have the names and types that they had; caches may become float16.
    """

    constants: int
    rounded: int
    heads: int
    reasons: dict[str, int]
    relative_l2: float | None
    same_types: bool

    @property
    def explained(self) -> bool:
        """Whether every linear was rounded, or it is said why not."""
        return self.constants == self.rounded + self.heads + sum(self.reasons.values())


def measure(name: str, element: str, folder: Path) -> Result:
    """Round one file in one type.

    Args:
        name: As `models.dialects.names` returns it.
        element: A key of `BOUNDS`.
        folder: A new folder for everything that is written.
    """
    source = dialects.file_of(name)
    folder.mkdir()
    text = folder / "text.txt"
    text.write_text(dialects.TEXT, encoding="utf-8")
    file = source if element in ("float32", NARROWED) else write_cast(source, folder / "model", element)
    constants = dialects.constant_matrices(file)
    dtype: Literal["source", "float16"] = "float16" if element == NARROWED else "source"
    recipe = dataclasses.replace(RECIPE, calibration=dialects.calibration(file, text), dtype=dtype)
    try:
        report = catonnx.optimize(file, folder / "out", recipe)
    except NothingToOptimizeError as error:
        return Result(constants, 0, 0, {error.what: constants}, None, True)
    left = Counter(reason for _, operator, reason in report.left if operator in ("MatMul", "Gemm"))
    heads = sum(count for reason, count in left.items() if reason.startswith("output head"))
    return Result(
        constants,
        report.verification["linears"],
        heads,
        {reason: count for reason, count in left.items() if not reason.startswith("output head")},
        report.verification["transform_relative_l2"],
        _but_for_caches(file, element) == _but_for_caches(folder / "out" / "model.onnx", element),
    )


def _but_for_caches(file: Path, element: str) -> list[tuple[str, int]]:
    """Return the names and types of inputs and outputs, of caches only the names where they become float16."""
    values = dialects.signature(file)
    return [(name, 0 if element == NARROWED and is_cache_name(name) else kind) for name, kind in values]


def rows_of(name: str, element: str, results: dict[str, Result]) -> list[Row]:
    """Measure one file in one type, keep the result, and tell it."""
    with tempfile.TemporaryDirectory() as folder:
        result = results[name] = measure(name, element, Path(folder) / "work")
    bound, error = BOUNDS[element], result.relative_l2
    shown = f"{result.rounded} of {result.constants - result.heads} rounded"
    shown += "" if error is None else f", relative L2 {error:.1e}"
    shown += "".join(f"; {count} left: {reason}" for reason, count in result.reasons.items())
    met = result.same_types and result.explained and (error is None or error <= bound)
    return [Row(element, name, shown, f"<= {bound:.0e}", met, dataclasses.asdict(result))]


def totals(element: str, results: dict[str, Result]) -> list[Row]:
    """Sum up all files in one type."""
    rounded = sum(result.rounded for result in results.values())
    heads = sum(result.heads for result in results.values())
    wanted = sum(result.constants for result in results.values()) - heads
    worst = max((result.relative_l2 or 0.0 for result in results.values()), default=0.0)
    share = rounded / wanted if wanted else 0.0
    values = {"rounded": rounded, "wanted": wanted, "heads": heads, "share": share, "worst_relative_l2": worst}
    shown = (
        f"{rounded} of {wanted} linears ({share:.1%}), and {heads} output heads left; relative L2 {worst:.1e} at most"
    )
    return [Row(element, f"all {len(results)} files", shown, f">= {SHARE:.0%}", share >= SHARE, values)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    wanted = [name for name in dialects.names() if not options.only or name.partition("/")[0] in options.only]
    head = surroundings()
    rows: list[Row] = []
    for element in options.type or list(BOUNDS):
        results: dict[str, Result] = {}
        for name in wanted:
            print(f"{element}: {name}", file=sys.stderr, flush=True)
            rows += attempt(element, name, lambda: rows_of(name, element, results))  # noqa: B023  # called at once
            # After every measurement, so that what was measured survives an interruption.
            write_json(options.out, head, rows)
        rows += totals(element, results)
    write_json(options.out, head, rows)
    print(markdown(rows))
    return 0 if all_well(rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_dialects", description="Round every tiny model in every type; see the file's first lines."
    )
    parser.add_argument("--type", action="append", choices=list(BOUNDS), help="only this type; repeatable")
    parser.add_argument("--only", action="append", metavar="MODEL", help="only the files of this model; repeatable")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes (default tools/results/)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
