"""Time and memory of `optimize` on Llama-shaped float16 models of any size, random weights written on the spot.

    python -m tools.bench_scale                       # 1B, and the same in 2, 4 and 8 layers: time against depth
    python -m tools.bench_scale --size 3B             # 6 GB of weights, external data beyond 2 GB; 20 GB of disk
    python -m tools.bench_scale --size tiny           # shows that it runs

Peak memory is that of a process of its own, start of Python included. The bound is 1.2 GB + 4 x the largest single
weight as the file stores it. Disk is what lies in the folder of the output at most: the copy of the source's data,
files in passing, and the result.

Exit codes: 0 all bounds met; 1 one missed, or a measurement failed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tools import child
from tools.llama_shape import LlamaShape, write_llama, write_random_feeds
from tools.machine import surroundings
from tools.tables import Row, all_well, attempt, markdown, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tools" / "results" / "scale.json"

FREE = 1.2e9
"""Bytes that the process may take whatever the model: Python, ONNX Runtime, one part of the model, activations."""

TIMES_LARGEST = 4

ONE_B = LlamaShape(16, 2048, 32, 8, 8192, 32000)
SIZES = {
    "tiny": LlamaShape(2, 64, 4, 2, 96, 256, 64),
    **{f"1B in {layers} layers": dataclasses.replace(ONE_B, layers=layers) for layers in (2, 4, 8)},
    "1B": ONE_B,
    "3B": LlamaShape(28, 3072, 24, 8, 8192, 32000),
}
"""The shapes of Llama 3.2, with the vocabulary of Llama 2: a larger one would widen the bound, not the need."""

ALWAYS = tuple(name for name in SIZES if name.startswith("1B"))


def measure(name: str, shape: LlamaShape, options: argparse.Namespace) -> list[Row]:
    """Write one model, optimize it, and say what that took."""
    with tempfile.TemporaryDirectory(prefix="catonnx-scale-", dir=options.work) as place:
        source, out, feeds = Path(place, "source"), Path(place, "out", "result"), Path(place, "feeds.npz")
        source.mkdir()
        out.parent.mkdir()
        write_llama(shape, source)
        write_random_feeds(shape, feeds, options.samples, min(options.seq_len, shape.positions))
        recipe = {"calibration": str(feeds), "rounding": options.rounding, "samples": options.samples}
        with _largest(out.parent) as disk:
            done = child.run("optimize", {"model": str(source), "out": str(out), "recipe": recipe})
    weights = shape.linear_weights
    bound = FREE + TIMES_LARGEST * 2 * max(shape.width * shape.intermediate, shape.width * shape.vocabulary)
    error = done.result["verification"]["transform_relative_l2"]
    steps = {step: round(seconds, 1) for step, seconds in done.result["steps"].items()}
    per_billion = done.seconds / weights * 1e9
    numbers = {"linear_weights": weights, "layers": shape.layers, "steps": steps}
    return [
        Row(
            name,
            "peak memory",
            f"{done.peak_bytes / 1e9:.2f} GB",
            f"<= {bound / 1e9:.2f} GB",
            done.peak_bytes <= bound,
            numbers | {"peak_bytes": done.peak_bytes, "bound_bytes": bound},
        ),
        Row(
            name,
            "time, and for a billion weights",
            f"{done.seconds:.0f} s, {per_billion:.0f} s",
            values={"seconds": done.seconds, "seconds_per_billion": per_billion},
        ),
        Row(name, "most of the disk", f"{disk[0] / 1e9:.2f} GB", values={"disk_bytes": disk[0]}),
        Row(
            name,
            "transformed against source, relative L2",
            f"{error:.1e}",
            "<= 2e-02",
            error <= 2e-2,
            {"relative_l2": error, "fused": done.result["verification"]["fused"], "linears": shape.linears},
        ),
    ]


@contextlib.contextmanager
def _largest(folder: Path) -> Iterator[list[int]]:
    """Give the most bytes that lie in a folder while the block runs."""
    most, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            size = 0
            for file in folder.rglob("*"):
                with contextlib.suppress(OSError):  # gone again
                    size += file.stat().st_size if file.is_file() else 0
            most[0] = max(most[0], size)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    rows: list[Row] = []
    head = surroundings() | {"samples": options.samples, "seq_len": options.seq_len, "rounding": options.rounding}
    for name in options.size or ALWAYS:
        print(name, file=sys.stderr, flush=True)
        rows += attempt(name, "optimize", lambda name=name: measure(name, SIZES[name], options))  # type: ignore[misc]
        write_json(options.out, head, rows)
    print(markdown(rows))
    return 0 if all_well(rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_scale", description="Time and memory of optimize on large models.")
    parser.add_argument("--size", action="append", choices=list(SIZES), help="repeatable (default: 1B and its parts)")
    parser.add_argument("--samples", type=int, default=8, help="calibration runs (default 8)")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens in each (default 512)")
    parser.add_argument("--rounding", default="mse", choices=("nearest", "mse", "gptq"), help="default mse")
    parser.add_argument("--work", type=Path, help="folder for models in passing (default: the system's temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes (default tools/results/)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
