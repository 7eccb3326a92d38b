"""How much quality each scheme and each method keeps: one command, one table, one JSON file.

    python -m tools.bench_quality                     # everything: an hour on 2 cores, two if they are shared
    python -m tools.bench_quality --quick             # under ten minutes: the most telling rows, on less text
    python -m tools.bench_quality --only 'w4a4/cat*'  # measure rows by name again; the file keeps its others
    python -m tools.bench_quality --resume            # go on where an interrupted run ended
    python -m tools.bench_quality --show              # the table of what the file holds, nothing measured

For each row: perplexity; gap = ln(perplexity / float's), and that over the gap of the hadamard row of the same scheme
and over that of onnxruntime's default quantizer; KL to the float model; top-1 agreement with it; mean SQNR of the
outputs of the sites; multiply-adds of the nodes that were added, as a part of the linears'; seconds to optimize.
Calibrated on news, judged on Wikipedia, activations exact. Calibration runs once, as thoroughly as the most demanding
row wants it, and its time is added to every row that needs it; `optimize` also verifies, which is not counted. Peers
come from PyPI and are left out where they are not installed.

Exit codes: 0 no bound missed; 1 one missed, or a row failed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

import models
from catonnx.errors import CatonnxError
from catonnx.runtime.text import TokenStream, pack_text, read_text
from tools.arguments import add_calibration, add_places
from tools.bench_findings import Finding, bounds, legend, table
from tools.bench_judging import Judge, judging
from tools.bench_methods import METHODS, Method
from tools.bench_workbench import Workbench
from tools.child import ChildError, run
from tools.machine import surroundings
from tools.tables import all_well, markdown, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "quality.json"
QUICK_ROWS = 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all rows of one file have in common."""

    model: str
    rows: int
    row_tokens: int
    samples: int
    seq_len: int


class Bench:
    """Measures rows.

    Args:
        folder: Of the model.
        news: Text to calibrate on.
        bench: The calibrated model.
        judge: Knows the float model's logits.
        scratch: An existing folder for rounded models.
    """

    def __init__(self, folder: Path, news: Path, bench: Workbench, judge: Judge, scratch: Path) -> None:
        self._folder, self._news, self._bench, self._judge, self._scratch = folder, news, bench, judge, scratch

    def measure(self, method: Method) -> Finding:
        """Make the model of one row and judge it; a failure becomes a finding, too, so that the next row can go on."""
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        plain = Finding(method.key, date, note=method.note)
        try:
            with tempfile.TemporaryDirectory(dir=self._scratch) as place:
                out = Path(place) / "model.onnx"
                made = self._peer(method, plain, out) if method.peer else self._own(method, plain, out)
                return made if made.skipped else self._judged(made, out)
        except (CatonnxError, ChildError, ArithmeticError, ValueError, RuntimeError, OSError) as error:
            traceback.print_exc()
            return dataclasses.replace(plain, failed=f"{type(error).__name__}: {str(error).strip()[:200]}")

    def _judged(self, made: Finding, out: Path) -> Finding:
        verdict = self._judge.judge(out)
        return dataclasses.replace(
            made,
            perplexity=verdict.perplexity,
            gap=verdict.gap(self._judge.perplexity),
            kl_nats=verdict.kl_nats,
            top1=verdict.top1_agreement,
        )

    def _own(self, method: Method, plain: Finding, out: Path) -> Finding:
        rounded = self._bench.round(method.wishes, out)
        return dataclasses.replace(
            plain,
            sqnr_db=rounded.sqnr_db,
            overhead=rounded.overhead,
            seconds=rounded.seconds,
            details={
                "recipe": method.wishes,
                "factors": rounded.factors,
                "notes": rounded.notes,
                "sites_in_8_bits": rounded.eight,
                "dampings": rounded.dampings,
            },
        )

    def _peer(self, method: Method, plain: Finding, out: Path) -> Finding:
        arguments = {
            "peer": method.peer,
            "model": str(self._folder),
            "out": str(out),
            "exclude": list(self._bench.left),
            "text": str(self._news),
        }
        result = run("round_with", arguments).result
        if "missing" in result:
            return dataclasses.replace(plain, skipped=f"{result['missing']} is not installed")
        version = result["version"]
        note = f"{version}; {plain.note}" if plain.note else version
        return dataclasses.replace(plain, seconds=result["seconds"], note=note, details={"version": version})


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    chosen = _chosen(options.only, options.quick)
    if not chosen:
        print(f"no row is called {' or '.join(options.only)}; --list names them", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(method.key for method in METHODS))
        return 0
    if options.show:
        return _show(_findings_in(options.json))
    folder = options.model or models.path("smollm2")
    settings = Settings(
        str(options.model or "SmolLM2-135M-Instruct"),
        options.rows or (QUICK_ROWS if options.quick else 16),
        options.row_tokens,
        options.samples,
        options.seq_len,
    )
    kept = _kept(options.json, settings) if options.resume or options.only else {}
    findings = {key: found for key, found in kept.items() if found.measured}
    chosen = [method for method in chosen if options.only or method.key not in findings]
    started = time.perf_counter()
    head = surroundings() | {"quick": options.quick, "settings": dataclasses.asdict(settings)}
    with tempfile.TemporaryDirectory(prefix="catonnx-bench-") as place, threadpool_limits(1, "blas"):
        scratch = Path(place)
        rows = pack_text(
            read_text(models.path("wikipedia")),
            TokenStream.load(folder),
            seq_len=settings.row_tokens,
            samples=settings.rows,
        )
        _say("calibrating")
        (scratch / "work").mkdir()
        news = models.path("news")
        workbench = Workbench(folder, news, settings.samples, settings.seq_len, scratch / "work")
        _say("running the float model")
        with judging(workbench.reference, rows, scratch) as judge:
            head |= {"float_perplexity": judge.perplexity, "calibration_seconds": workbench.calibration_seconds}
            bench = Bench(folder, news, workbench, judge, scratch)
            for number, method in enumerate(chosen, 1):
                begin = time.perf_counter()
                findings[method.key] = bench.measure(method)
                _say(f"{number} of {len(chosen)}: {method.key}, {time.perf_counter() - begin:.0f} s")
                # After every row, so that what was measured survives an interruption.
                _write(options.json, head, findings)
    head["total_seconds"] = time.perf_counter() - started
    _write(options.json, head, findings)
    print(_title(head, settings, chosen))
    return _show(findings)


def _show(findings: Mapping[str, Finding]) -> int:
    """Print everything that is known, and return the exit code."""
    checked = bounds(findings)
    print(legend(findings), table(findings), markdown(checked), sep="\n\n")
    return 0 if all_well(checked) and not any(found.failed for found in findings.values()) else 1


def _chosen(only: Sequence[str] | None, quick: bool) -> list[Method]:
    if only:
        return [method for method in METHODS if any(fnmatchcase(method.key, pattern) for pattern in only)]
    return [method for method in METHODS if not method.only_named and (method.quick or not quick)]


def _kept(file: Path, settings: Settings) -> dict[str, Finding]:
    """Return the findings of an earlier run with the same settings."""
    if not file.is_file():
        return {}
    data = json.loads(file.read_text(encoding="utf-8"))
    if data["settings"] != dataclasses.asdict(settings):
        _say(f"{file} was measured with other settings: nothing is kept of it")
        return {}
    return _findings_in(file)


def _findings_in(file: Path) -> dict[str, Finding]:
    data = json.loads(file.read_text(encoding="utf-8"))
    return {item["key"]: Finding.from_json(item) for item in data["findings"]}


def _write(file: Path, head: dict[str, Any], findings: dict[str, Finding]) -> None:
    ordered = [dataclasses.asdict(findings[method.key]) for method in METHODS if method.key in findings]
    write_json(file, head | {"findings": ordered}, bounds(findings))


def _title(head: dict[str, Any], settings: Settings, chosen: Sequence[Method]) -> str:
    machine = head["machine"]
    return (
        f"{head['date']}, {machine['cpu']}, {machine['cores']} cores, load {machine['load_1_minute']} at the start\n"
        f"{settings.model}, float perplexity {head['float_perplexity']:.2f} on {settings.rows} x {settings.row_tokens} "
        f"tokens; calibrated on {settings.samples} x {settings.seq_len} in {head['calibration_seconds']:.0f} s"
        + f"; {len(chosen)} rows measured in {head['total_seconds'] / 60:.0f} minutes"
        + ("; quick: too little text for fine differences" if head["quick"] else "")
        + "\n"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_quality", description="Measure the quality of every scheme and method; see the file's first lines."
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="measure rows by name or shell pattern, keep the others of the file; repeatable",
    )
    parser.add_argument("--show", action="store_true", help="print what the JSON file holds and end")
    parser.add_argument("--list", action="store_true", help="name all rows and end")
    parser.add_argument("--quick", action="store_true", help=f"the most telling rows on {QUICK_ROWS} rows of text")
    parser.add_argument("--resume", action="store_true", help="measure only what the JSON file has not yet")
    parser.add_argument("--rows", type=int, help="rows of Wikipedia text (default 16)")
    parser.add_argument("--row-tokens", type=int, default=512, help="tokens in each (default 512)")
    add_calibration(parser)
    add_places(parser, RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
