"""What only a GPU can tell of our operators, for `tools/gpu_check`: numerics, races, distance from the floor.

    python -m tools.gpu_operators LIBRARY        # a few small shapes; what compute-sanitizer runs

The library is built with nvcc on the spot. Numbers are compared with numpy's in float64; times with a float16 product
of ONNX Runtime's (cuBLAS), and with what moves as many bytes.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import scipy.linalg
from onnx import helper

from catonnx.ops import register
from catonnx.ops.build import build
from catonnx.ops.place import VARIABLE
from catonnx.runtime.sessions import PROVIDER_NAMES, import_onnxruntime
from tools.operator_cases import (
    Case,
    draw_cases,
    dtype_of,
    error_of,
    float_products,
    knows,
    model_of,
    node,
    quantized_products,
    transform,
)
from tools.tables import Row

GROUP = "operators"
PRODUCT_BOUND, PROLOGUE_BOUND = 1.5, 1.3

_ROOT = Path(__file__).resolve().parent.parent
_SANITIZER_SECONDS = 60
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        products: (K, N) of the weights that are multiplied by.
        rows: Rows that are multiplied; the last number of them has a bound.
        copies: Weights of each size, one behind the other in a session: more than the caches hold.
        prologue: (rows, channels) that are transformed and rounded.
        rounds: Timed rounds.
    """

    products: tuple[tuple[int, int], ...] = ((4096, 4096), (4096, 14336))
    rows: tuple[int, ...] = (1, 8, 32, 2048)
    copies: int = 8
    prologue: tuple[int, int] = (65536, 4096)
    rounds: int = 11


TINY = Sizes(((64, 48),), (1, 4), 2, (8, 512), 2)


def built(provider: str, folder: Path) -> Path:
    """Build the library; for CUDA with its kernels.

    Raises:
        CatonnxError: there is no compiler, or it fails.
    """
    return build(folder / "operators.so", cuda=provider == "cuda")


def numerics(library: Path, provider: str, cases: Sequence[Case]) -> list[Row]:
    """Compare every case with float64: one row an operator, with the largest error over what is allowed."""
    worst: dict[str, float] = {}
    for case in cases:
        session = _opened(library, provider, model_of([node(case)], case, case.outputs))
        results = session.run(None, {name: case.inputs[name] for name in case.fed})
        key = f"{case.op}, {dtype_of(case)}"
        worst[key] = max(worst.get(key, 0.0), error_of(case, results))
    return [
        Row(GROUP, f"numerics: {name}", f"{error:.2f} of what rounding allows", "<= 1", error <= 1, {"error": error})
        for name, error in worst.items()
    ]


def races(library: Path) -> list[Row]:
    """Let compute-sanitizer watch the small cases; a row says so where it is not installed."""
    found = _sanitizer()
    if found is None:
        return [Row(GROUP, "races", "not looked for: there is no compute-sanitizer")]
    rows = []
    for tool in ("memcheck", "racecheck"):
        command = [found, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", __spec__.name, str(library)]
        try:
            done = subprocess.run(
                command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=_SANITIZER_SECONDS
            )
        except subprocess.TimeoutExpired:
            rows.append(Row(GROUP, f"compute-sanitizer {tool}", f"no end within {_SANITIZER_SECONDS} s"))
            continue
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        rows.append(Row(GROUP, f"compute-sanitizer {tool}", "".join(last), "no errors", done.returncode == 0))
    return rows


def products(library: Path, provider: str, sizes: Sizes) -> list[Row]:
    """Time QuantizedMatMul (groups of 32, and a scale per channel) against the float16 product of ONNX Runtime."""
    rows = []
    for K, N in sizes.products:
        sessions = {"fp16": _opened(library, provider, float_products(K, N, sizes.copies))} | {
            name: _opened(library, provider, quantized_products(K, N, group, sizes.copies))
            for name, group in (("groups of 32", 32), ("a scale per channel", K))
        }
        for count in sizes.rows:
            runners = {name: _runner(session, provider, _fed(name, count, K)) for name, session in sessions.items()}
            times = _take_turns(runners, sizes.rounds)
            for name, own in times.items():
                if name == "fp16":
                    continue
                ratio = statistics.median(base / one for base, one in zip(times["fp16"], own, strict=True))
                micro = statistics.median(own) / sizes.copies * 1e6
                bounded = count == sizes.rows[-1] and provider == "cuda"
                rows.append(
                    Row(
                        GROUP,
                        f"QuantizedMatMul {K} x {N}, {name}, M = {count}",
                        f"{micro:.1f} us, {ratio:.2f} x fp16",
                        f">= {PRODUCT_BOUND} x" if bounded else "",
                        ratio >= PRODUCT_BOUND if bounded else None,
                        {"seconds": own, "fp16_seconds": times["fp16"], "over_fp16": ratio},
                    )
                )
    return rows


def prologues(library: Path, provider: str, sizes: Sizes) -> list[Row]:
    """Time a transform with its rounding against what moves as many bytes: a float16 negation, by the byte."""
    count, channels = sizes.prologue
    random = np.random.default_rng(0)
    x = random.standard_normal((count, channels), np.float32).astype(np.float16)
    wide = [scipy.linalg.hadamard(part) / part**0.5 for part in (channels // 64, 64)]
    cases = {
        "Hadamard 128": transform("SharedTransformQuantize", x, scipy.linalg.hadamard(128) / 128**0.5),
        f"Hadamard {channels}": transform("KroneckerTransformQuantize", x, *wide),
    } | {
        f"blocks of {size}": _unscaled(
            transform("BlockTransformQuantize", x, random.standard_normal((channels // size, size, size)))
        )
        for size in (32, 64, 128)
    }
    cases = {name: case for name, case in cases.items() if knows(library, case.op)}
    empty = x[:1]
    negation = helper.make_model(
        helper.make_graph(
            [helper.make_node("Neg", ["x"], ["y"])],
            "copy",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["n", channels])],
            [onnx.ValueInfoProto(name="y")],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    sessions = {"copy": _opened(library, provider, negation)} | {
        name: _opened(library, provider, model_of([node(case)], case, case.outputs)) for name, case in cases.items()
    }
    runners = {name: _runner(session, provider, {"x": x}) for name, session in sessions.items()}
    idle = {f"{name}, idle": _runner(session, provider, {"x": empty}) for name, session in sessions.items()}
    times = _take_turns(runners | idle, sizes.rounds)
    taken = {  # less what a run of one row takes, which is all launches and bookkeeping
        name: [max(one - other, 1e-9) for one, other in zip(times[name], times[f"{name}, idle"], strict=True)]
        for name in runners
    }
    floor_share = (2 * x.size + x.size + 4 * count) / (4 * x.size)  # bytes of a prologue over those of the copy
    rows = []
    for name in cases:
        ratio = statistics.median(
            one / (copy * floor_share) for one, copy in zip(taken[name], taken["copy"], strict=True)
        )
        bounded = provider == "cuda"
        rows.append(
            Row(
                GROUP,
                f"transform and rounding, {count} x {channels}, {name}",
                f"{statistics.median(taken[name]) * 1e6:.1f} us, {ratio:.2f} x the bytes' floor",
                f"<= {PROLOGUE_BOUND} x" if bounded else "",
                ratio <= PROLOGUE_BOUND if bounded else None,
                {"seconds": times[name], "copy_seconds": times["copy"], "over_floor": ratio},
            )
        )
    return rows


def _unscaled(case: Case) -> Case:
    """Return a case without a scale for each channel, as `cat` writes its blocks: half the work on tensor cores."""
    return dataclasses.replace(case, inputs={**case.inputs, "scale": np.ones(1, case.inputs["x"].dtype)})


def _fed(name: str, count: int, K: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    if name == "fp16":
        return {"x": random.standard_normal((count, K)).astype(np.float16)}
    codes = random.integers(-127, 128, (count, K)).astype(np.int8)
    return {"a": codes, "a_scale": np.full((count, 1), 0.01, np.float32)}


def _opened(library: Path, provider: str, model: onnx.ModelProto) -> Any:
    runtime = import_onnxruntime()
    if provider == "cuda":
        runtime.preload_dlls()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(library)
    try:
        register(options)
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
    names = list(dict.fromkeys([PROVIDER_NAMES[provider], PROVIDER_NAMES["cpu"]]))
    return runtime.InferenceSession(model.SerializeToString(), options, providers=names, enable_fallback=0)


def _runner(session: Any, provider: str, feeds: Arrays) -> Callable[[], float]:
    """Return what runs a session once, all of it on the device, and says how many seconds that took."""
    runtime = import_onnxruntime()
    binding = session.io_binding()
    held = [runtime.OrtValue.ortvalue_from_numpy(value, provider, 0) for value in feeds.values()]
    for name, value in zip(feeds, held, strict=True):
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, provider)

    def run() -> float:
        assert held  # the session reads from them
        begin = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return time.perf_counter() - begin

    return run


def _take_turns(runners: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return seconds by name, one entry a round, the first two rounds left out."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(rounds + 2):
        for name, run in runners.items():
            seconds = run()
            if turn > 1:
                times[name].append(seconds)
    return times


def _sanitizer() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = os.pathsep.join([os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)])
    return shutil.which("compute-sanitizer", path=folders)


if __name__ == "__main__":
    given = Path(sys.argv[1])
    wrong = [row for row in numerics(given, "cuda", list(draw_cases(given, few=True))) if not row.met]
    print("\n".join(f"{row.what}: {row.measured}" for row in wrong) or "all right")
    sys.exit(len(wrong))
