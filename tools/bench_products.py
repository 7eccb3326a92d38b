"""Time products with 4-bit weights against what the machine does at most: `python -m tools.bench_products`.

With one row, as in decoding, the floor is reading the codes and scales of the weights from memory; each timing runs
over more of them than caches hold, one weight behind the other. With 512 rows, as in prefill, it is the multiply-adds
of int8 that the processor's best instruction can do. Both floors are measured, by code compiled for this processor
(`peaks.cpp`). Beside QuantizedMatMul, in groups of 32 and with a scale per channel, for each instruction set, stand
MatMulNBits in groups of 32, exact and rounding activations to int8 (level 4), and MatMul in float32; each against the
floor of the bytes that it reads itself, and all against int8 operations. QuantizedMatMul is given rounded rows:
`bench_ops` times DynamicQuantize. All take turns within each round; a figure is the median over the rounds, its ratio
the median of the ratios within a round. The library has to be built (`python -m catonnx.ops build`).

Exit codes: 0 all is measured (nothing is demanded); 2 wrong arguments; 8 there is no library, or no compiler.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from catonnx.errors import RuntimeUnavailableError
from tools.machine import surroundings
from tools.operator_cases import float_products, nbits_products, quantized_products
from tools.operator_timing import Runner, known_instruction_sets, opened, ratios, session_options, take_turns
from tools.peaks import Peaks
from tools.tables import Row, markdown, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "products.json"
SHAPES: Mapping[str, tuple[int, int]] = {
    "SmolLM2 q, o": (576, 576),
    "SmolLM2 gate, up": (576, 1536),
    "SmolLM2 down": (1536, 576),
    "Llama 1B gate, up": (2048, 8192),
}
READING, MULTIPLYING = "floor: read", "floor: multiply"
FLOAT, EXACT, ROUNDED = "MatMul, fp32", "MatMulNBits, exact", "MatMulNBits, level 4"
GROUP = 32

INSTRUCTION_SETS = ("portable", "avx2", "avx512vnni", "amx", "neon", "neondot")
"""Those that QuantizedMatMul has code of its own for. The portable one is measured with one row only: with more it
takes as long as all others together."""

_COLD_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Contender:
    """What multiplies rows by a weight [K, N].

    Attributes:
        name: In the table.
        weight_bytes: Of one weight with its scales.
        model: Number of weights -> the model that multiplies by so many.
        instruction_set: Of our library; None without it.
    """

    name: str
    weight_bytes: int
    model: Callable[[int], onnx.ModelProto]
    instruction_set: str | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        known = [name for name in known_instruction_sets() if name in INSTRUCTION_SETS]
        peaks = Peaks(options.threads, options.cold_bytes)
    except RuntimeUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rows: list[Row] = []
    for what in options.shape or SHAPES:
        K, N = SHAPES[what]
        for count in options.rows:
            print(f"timing: {what}, {count} rows", file=sys.stderr, flush=True)
            rows += _measured(what, K, N, count, known, peaks, options)
    head = surroundings() | {"threads": options.threads, "instruction": peaks.instruction}
    write_json(options.json, head, rows)
    print(markdown(rows))
    return 0


def _measured(
    what: str, K: int, N: int, count: int, known: Sequence[str], peaks: Peaks, options: argparse.Namespace
) -> list[Row]:
    contenders = _contenders(K, N, [name for name in known if count == 1 or name != "portable"])
    runners: dict[str, Runner] = {READING: peaks.read, MULTIPLYING: peaks.add_up}
    copies: dict[str, int] = {}
    for one in contenders:
        copies[one.name] = -(-options.cold_bytes // one.weight_bytes) if count == 1 else 1
        model, chosen = one.model(copies[one.name]), session_options(one.instruction_set, options.threads)
        runners[one.name], _ = opened(model, _fed(model, count, K), chosen)
    times = take_turns(runners, options.rounds)
    group = f"{what}: {K} x {N}, {count} rows"
    rows = [
        _floor(group, READING, times[READING], peaks.buffer_bytes / 1e9, "GB/s"),
        _floor(group, MULTIPLYING, times[MULTIPLYING], peaks.multiply_adds / 1e9, "G multiply-adds/s"),
    ]
    for one in contenders:
        own = [seconds / copies[one.name] for seconds in times[one.name]]
        reading = one.weight_bytes / peaks.buffer_bytes
        multiplying = count * K * N / peaks.multiply_adds
        floor = [
            max(reading * first, multiplying * second)
            for first, second in zip(times[READING], times[MULTIPLYING], strict=True)
        ]
        ratio, least, most = ratios(own, floor)
        shown = f"{statistics.median(own) * 1e6:.1f} us, {ratio:.2f} x the floor ({least:.2f} to {most:.2f})"
        values = {"seconds": own, "ratio": ratio, "copies": copies[one.name]}
        if one.instruction_set is not None:
            theirs = [seconds / copies[ROUNDED] for seconds in times[ROUNDED]]
            values["over_rounded"] = ratios(theirs, own)[0]
            shown += f", {values['over_rounded']:.2f} x the speed of level 4"
        rows.append(Row(group, one.name, shown, values=values))
    return rows


def _floor(group: str, name: str, seconds: Sequence[float], amount: float, unit: str) -> Row:
    speed = amount / statistics.median(seconds)
    return Row(group, name, f"{speed:.1f} {unit}", values={"seconds": list(seconds), "per_second": speed})


def _contenders(K: int, N: int, known: Sequence[str]) -> list[Contender]:
    def bytes_in(group: int) -> int:
        groups = -(-K // group)
        return N * groups * (group // 2 + 4)

    whole = -(-K // 16) * 16
    return [
        Contender(FLOAT, 4 * K * N, partial(float_products, K, N, dtype=np.float32)),
        *(
            Contender(name, bytes_in(GROUP), partial(nbits_products, K, N, GROUP, level=level))
            for name, level in ((EXACT, 0), (ROUNDED, 4))
        ),
        *(
            Contender(
                f"{name}, {scales}",
                bytes_in(group),
                partial(quantized_products, K, N, group, dtype=np.float32),
                name,
            )
            for name in known
            for scales, group in ((f"groups of {GROUP}", GROUP), ("a scale per channel", whole))
        ),
    ]


def _fed(model: onnx.ModelProto, count: int, K: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    drawn: dict[str, np.ndarray] = {
        "x": random.standard_normal((count, K)).astype(np.float32),
        "a": random.integers(-127, 128, (count, K)).astype(np.int8),
        "a_scale": np.full((count, 1), 0.01, np.float32),
    }
    return {value.name: drawn[value.name] for value in model.graph.input}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_products", description="Time products; see the file's first lines.")
    parser.add_argument("--rounds", type=int, default=21, help="timed rounds (default 21)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 512], help="rows of an input (default 1 512)")
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="repeatable (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="threads of ONNX Runtime, and of the floors (default 1)")
    parser.add_argument(
        "--cold-bytes", type=int, default=_COLD_BYTES, help="weights of one timing with one row (default 64 MB)"
    )
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the JSON goes (default tools/results/)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
