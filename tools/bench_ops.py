"""Time our operators against the memory floor and against stock nodes: `python -m tools.bench_ops`.

Every operator transforms rows of 4096 channels in float32, for each instruction set that this processor has; beside it
stand the stock nodes that do the same (Mul, Reshape, MatMul, Reshape). The floor is a copy of the same bytes. All take
turns within each round; a figure is the median over the rounds, its ratio the median of the ratios within a round.
The library has to be built (`python -m catonnx.ops build`).

Exit codes: 0 all bounds met; 1 one missed; 2 wrong arguments; 8 there is no library.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from catonnx.errors import RuntimeUnavailableError
from catonnx.math.hadamard import hadamard_matrix
from catonnx.ops import register
from tools.machine import surroundings
from tools.tables import Row, all_well, markdown, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "ops.json"
CHANNELS = 4096
FLOOR, STOCK = "copy", "stock nodes"
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "neon")

_BOUND = 1.5
_ENOUGH_SECONDS = 1e-3
"""Of one timing: what takes less is repeated."""

Runner = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Subject:
    """One operator, and what it is compared with.

    Attributes:
        what: Its name in the table.
        bounded: Whether it ought to be as fast as memory is: it is where it multiplies by no dense matrix.
        ours: Our node, from x to y.
        stock: The stock nodes from x to y.
        constants: What both read.
    """

    what: str
    bounded: bool
    ours: onnx.NodeProto
    stock: Sequence[onnx.NodeProto]
    constants: Mapping[str, np.ndarray]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        known = [name for name in INSTRUCTION_SETS if _has(name)]
    except RuntimeUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    random = np.random.default_rng(0)
    rows: list[Row] = []
    for count in options.rows:
        x = random.standard_normal((count, CHANNELS)).astype(np.float32)
        for subject in _subjects(random):
            runners = _runners(subject, x, known, options.threads)
            bounded = known[-1] if subject.bounded and count > 1 else None
            rows += _compared(f"{subject.what}, {count} rows", _take_turns(runners, options.rounds), bounded)
    head = surroundings() | {"channels": CHANNELS, "threads": options.threads}
    write_json(options.json, head, rows)
    print(markdown(rows))
    return 0 if all_well(rows) else 1


def _subjects(random: np.random.Generator) -> list[Subject]:
    def dense(*shape: int) -> np.ndarray:
        values: np.ndarray = random.standard_normal(shape) / shape[-1] ** 0.5
        return values

    kronecker = "KroneckerTransform 64 x 64"
    return [
        *(_shared(f"SharedTransform, Hadamard {size}", True, hadamard_matrix(size)) for size in (32, 64, 128)),
        _shared("SharedTransform, dense 64", False, dense(64, 64)),
        *(_blocks(dense(CHANNELS // size, size, size)) for size in (64, 128)),
        _kronecker(f"{kronecker}, Hadamard", True, hadamard_matrix(64), hadamard_matrix(64)),
        _kronecker(f"{kronecker}, dense", False, dense(64, 64), dense(64, 64)),
    ]


def _shared(what: str, bounded: bool, matrix: np.ndarray) -> Subject:
    constants = _constants(matrix=matrix, apart=[-1, CHANNELS // len(matrix), len(matrix)])
    product = helper.make_node("MatMul", ["a", "matrix"], ["z"])
    return Subject(what, bounded, _ours("SharedTransform", "matrix"), (*_BEFORE, product, _BEHIND), constants)


def _blocks(matrices: np.ndarray) -> Subject:
    count, size, _ = matrices.shape
    products = (
        helper.make_node("Transpose", ["a"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "matrices"], ["m"]),
        helper.make_node("Transpose", ["m"], ["z"], perm=[1, 0, 2]),
    )
    constants = _constants(matrices=matrices, apart=[-1, count, size])
    ours = _ours("BlockTransform", "matrices")
    return Subject(f"BlockTransform {size}", False, ours, (*_BEFORE, *products, _BEHIND), constants)


def _kronecker(what: str, bounded: bool, first: np.ndarray, second: np.ndarray) -> Subject:
    products = (
        helper.make_node("MatMul", ["a", "second"], ["m"]),
        helper.make_node("MatMul", ["transposed", "m"], ["z"]),
    )
    constants = _constants(first=first, second=second, transposed=first.T, apart=[-1, len(first), len(second)])
    ours = _ours("KroneckerTransform", "first", "second")
    return Subject(what, bounded, ours, (*_BEFORE, *products, _BEHIND), constants)


_BEFORE = (
    helper.make_node("Mul", ["x", "scale"], ["scaled"]),
    helper.make_node("Reshape", ["scaled", "apart"], ["a"]),
)
_BEHIND = helper.make_node("Reshape", ["z", "joined"], ["y"])


def _ours(op: str, *matrices: str) -> onnx.NodeProto:
    return helper.make_node(op, ["x", "scale", *matrices], ["y"], domain="catonnx")


def _constants(*, apart: list[int], **matrices: np.ndarray) -> dict[str, np.ndarray]:
    floats = {"scale": np.linspace(0.5, 2, CHANNELS), **matrices}
    shapes = {"apart": apart, "joined": [-1, CHANNELS]}
    return {name: value.astype(np.float32) for name, value in floats.items()} | {
        name: np.array(value, np.int64) for name, value in shapes.items()
    }


def _runners(subject: Subject, x: np.ndarray, known: Sequence[str], threads: int) -> dict[str, Runner]:
    """Return what is to be timed by name; all of it computes the same, but for the copy."""
    stock, expected = _opened(subject.stock, subject.constants, x, _options(None, threads))
    runners: dict[str, Runner] = {FLOOR: _copier(x), STOCK: stock}
    for name in known:
        runners[name], y = _opened([subject.ours], subject.constants, x, _options(name, threads))
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    return runners


def _copier(x: np.ndarray) -> Runner:
    y = np.empty_like(x)
    return lambda: np.copyto(y, x)


def _opened(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    x: np.ndarray,
    options: onnxruntime.SessionOptions,
) -> tuple[Runner, np.ndarray]:
    """Return what runs `nodes` on x, which has to outlive it, and the result of a first run."""
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", CHANNELS]) for name in "xy")
    read = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in read]
    first, last = ends
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("catonnx", 1)]
    graph = helper.make_graph(nodes, "op", [first], [last], tensors)
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # The result has a place of its own, as that of the copy: nothing is allocated while the clock runs.
    y = onnxruntime.OrtValue.ortvalue_from_shape_and_type(x.shape, np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("y", y)
    session.run_with_iobinding(binding)
    return lambda: session.run_with_iobinding(binding), y.numpy()


def _has(instruction_set: str) -> bool:
    """Whether this processor has it.

    Raises:
        RuntimeUnavailableError: there is no library.
    """
    try:
        _options(instruction_set, 1)
    except RuntimeUnavailableError as error:
        if "this processor has" in str(error):
            return False
        raise
    return True


def _options(instruction_set: str | None, threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if instruction_set is None:
        return options
    before = os.environ.get("CATONNX_ISA")
    os.environ["CATONNX_ISA"] = instruction_set
    try:
        register(options)
    finally:
        if before is None:
            del os.environ["CATONNX_ISA"]
        else:
            os.environ["CATONNX_ISA"] = before
    return options


def _take_turns(runners: Mapping[str, Runner], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of one run in each round, by name."""
    repeats = {name: max(1, round(_ENOUGH_SECONDS / _seconds(runner, 3))) for name, runner in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            times[name].append(_seconds(runner, repeats[name]))
    return times


def _seconds(runner: Runner, repeats: int) -> float:
    begun = time.perf_counter()
    for _ in range(repeats):
        runner()
    return (time.perf_counter() - begun) / repeats


def _compared(group: str, times: Mapping[str, list[float]], bounded: str | None) -> list[Row]:
    rows = []
    for name, own in times.items():
        ratios = [time / floor for time, floor in zip(own, times[FLOOR], strict=True)]
        ratio, median = statistics.median(ratios), statistics.median(own)
        shown = f"{median * 1e6:.1f} us"
        if name != FLOOR:
            shown += f", {ratio:.2f} x the copy ({min(ratios):.2f} to {max(ratios):.2f})"
        values = {"seconds": own, "ratio": ratio}
        bound, met = (f"<= {_BOUND} x", ratio <= _BOUND) if name == bounded else ("", None)
        rows.append(Row(group, name, shown, bound, met, values))
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_ops", description="Time operators; see the file's first lines.")
    parser.add_argument("--rounds", type=int, default=31, help="timed rounds (default 31)")
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 1], help="rows of an input (default 512 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of ONNX Runtime (default 1, as the copy has)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the JSON goes (default tools/results/)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
