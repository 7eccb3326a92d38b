"""Time our operators against the memory floor and against stock nodes: `python -m tools.bench_ops`.

Every operator transforms or rounds rows of 4096 channels in float32, for each instruction set that this processor has;
beside it stand stock nodes that do the same (Mul, Reshape, MatMul, Reshape; where it rounds, the functions that a model
holds). The floor is a copy, by the byte: codes are a quarter as large as numbers. All take turns within each round; a
figure is the median over the rounds, its ratio the median of the ratios within a round. Products: `bench_products`.
The library has to be built (`python -m catonnx.ops build`).

Exit codes: 0 all bounds met; 1 one missed; 2 wrong arguments; 8 there is no library.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from catonnx.errors import RuntimeUnavailableError
from catonnx.graph.operators import declare
from catonnx.math.hadamard import hadamard_matrix
from tools.machine import surroundings
from tools.operator_timing import Runner, known_instruction_sets, opened, ratios, session_options, take_turns
from tools.tables import Row, all_well, markdown, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "ops.json"
CHANNELS = 4096
FLOOR, STOCK = "copy", "stock nodes"
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "neon")
"""Those that these operators have code of their own for."""

_BOUND = 1.5
_ROUNDED_SHARE = 5 / 8
"""Bytes of what reads float32 and writes codes in int8, over those of a copy of float32."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One operator, and what it is compared with.

    Attributes:
        what: Its name in the table.
        bounded: Whether it ought to be as fast as memory is: it is where it multiplies by no dense matrix.
        ours: A model of our node, from x.
        stock: A model of stock nodes that compute the same.
        share: Bytes that it moves, over those that the copy moves.
    """

    what: str
    bounded: bool
    ours: onnx.ModelProto
    stock: onnx.ModelProto
    share: float = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        known = [name for name in known_instruction_sets() if name in INSTRUCTION_SETS]
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
            times = take_turns(runners, options.rounds)
            rows += _compared(f"{subject.what}, {count} rows", times, subject.share, bounded)
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
        _rounding("DynamicQuantize", "DynamicQuantize"),
        _rounding("SharedTransformQuantize, Hadamard 128", "SharedTransformQuantize", matrix=hadamard_matrix(128)),
    ]


def _shared(what: str, bounded: bool, matrix: np.ndarray) -> Subject:
    constants = _constants(matrix=matrix, apart=[-1, CHANNELS // len(matrix), len(matrix)])
    product = helper.make_node("MatMul", ["a", "matrix"], ["z"])
    ours = _ours("SharedTransform", "matrix")
    return Subject(what, bounded, _model([ours], constants), _model((*_BEFORE, product, _BEHIND), constants))


def _blocks(matrices: np.ndarray) -> Subject:
    count, size, _ = matrices.shape
    products = (
        helper.make_node("Transpose", ["a"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "matrices"], ["m"]),
        helper.make_node("Transpose", ["m"], ["z"], perm=[1, 0, 2]),
    )
    constants = _constants(matrices=matrices, apart=[-1, count, size])
    ours = _ours("BlockTransform", "matrices")
    stock = _model((*_BEFORE, *products, _BEHIND), constants)
    return Subject(f"BlockTransform {size}", False, _model([ours], constants), stock)


def _kronecker(what: str, bounded: bool, first: np.ndarray, second: np.ndarray) -> Subject:
    products = (
        helper.make_node("MatMul", ["a", "second"], ["m"]),
        helper.make_node("MatMul", ["transposed", "m"], ["z"]),
    )
    constants = _constants(first=first, second=second, transposed=first.T, apart=[-1, len(first), len(second)])
    ours = _ours("KroneckerTransform", "first", "second")
    return Subject(what, bounded, _model([ours], constants), _model((*_BEFORE, *products, _BEHIND), constants))


def _rounding(what: str, op: str, **matrices: np.ndarray) -> Subject:
    constants = {"scale": np.ones(1, np.float32)} if matrices else {}
    constants |= {name: value.astype(np.float32) for name, value in matrices.items()}
    node = helper.make_node(op, ["x", *constants], ["codes", "scales"], domain="catonnx", bits=8, clip=1.0)
    ours = _model([node], constants, ["codes", "scales"])
    stock = ir.serde.deserialize_model(ours)
    declare(stock, op)
    return Subject(what, False, ours, ir.serde.serialize_model(stock), _ROUNDED_SHARE)


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


def _model(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, np.ndarray], outputs: Sequence[str] = ("y",)
) -> onnx.ModelProto:
    read = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in read]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", CHANNELS])
    graph = helper.make_graph(nodes, "op", [x], [onnx.ValueInfoProto(name=name) for name in outputs], tensors)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("catonnx", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _runners(subject: Subject, x: np.ndarray, known: Sequence[str], threads: int) -> dict[str, Runner]:
    """Return what is to be timed by name; all of it computes the same, but for the copy."""
    stock, expected = opened(subject.stock, {"x": x}, session_options(None, threads))
    runners: dict[str, Runner] = {FLOOR: _copier(x), STOCK: stock}
    for name in known:
        runners[name], results = opened(subject.ours, {"x": x}, session_options(name, threads))
        for own, other in zip(results, expected, strict=True):
            step = 1 if own.dtype == np.int8 else 1e-4 * np.abs(other).max()
            np.testing.assert_allclose(own.astype(np.float32), other.astype(np.float32), rtol=0, atol=step)
    return runners


def _copier(x: np.ndarray) -> Runner:
    y = np.empty_like(x)
    return lambda: np.copyto(y, x)


def _compared(group: str, times: Mapping[str, list[float]], share: float, bounded: str | None) -> list[Row]:
    rows = []
    for name, own in times.items():
        ratio, least, most = ratios(own, times[FLOOR], 1.0 if name == FLOOR else share)
        shown = f"{statistics.median(own) * 1e6:.1f} us"
        if name != FLOOR:
            shown += f", {ratio:.2f} x the floor ({least:.2f} to {most:.2f})"
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
