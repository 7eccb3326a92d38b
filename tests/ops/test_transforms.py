"""The transforms compute what numpy does in float64, for every instruction set, type, shape and kind of matrix."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike
from onnx import helper

from catonnx.math.hadamard import hadamard_matrix, kronecker_pair
from tests.ops.running import node_model, opened, run, sylvester, tolerance, transformed

TYPES = (np.float32, np.float16)
_EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
sizes = st.one_of(st.integers(1, 40), st.sampled_from((64, 128, 256)))


def check(
    isas: tuple[str, ...],
    op: str,
    x: np.ndarray,
    scale: np.ndarray,
    *matrices: np.ndarray,
    fed: bool = False,
    threads: int = 1,
) -> None:
    """Compare the node with numpy for every instruction set; its matrices are constants, or `fed` at each run."""
    names = [f"m{index}" for index in range(len(matrices))]
    inputs = {"x": x, "scale": scale} | dict(zip(names, matrices, strict=True))
    model = node_model(op, inputs, fed=list(inputs) if fed else ["x"])
    expected, allowed = transformed(op, x, scale, *matrices), tolerance(op, x, scale, *matrices)
    for isa in isas:
        (y,) = run(opened(model, isa, threads), **(inputs if fed else {"x": x}))
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        wrong = np.abs(y - expected) > allowed
        assert not wrong.any(), f"{isa}: {wrong.sum()} of {y.size} wrong, the first at {np.argwhere(wrong)[0]}"


class Drawn:
    """Numbers of the type and kinds that one example asks for."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.dtype: DTypeLike = data.draw(st.sampled_from(TYPES))
        self.fed = data.draw(st.booleans())
        self.random = np.random.default_rng(data.draw(st.integers(0, 99)))

    def x(self, channels: int) -> np.ndarray:
        """Return rows."""
        return self.random.standard_normal((*self.data.draw(shapes), channels)).astype(self.dtype)

    def scale(self, channels: int) -> np.ndarray:
        """Return one factor, or one for each channel."""
        return self.random.uniform(-2, 2, self.data.draw(st.sampled_from((1, channels)))).astype(self.dtype)

    def matrix(self, size: int) -> np.ndarray:
        """Return a square matrix: dense, Sylvester's by some factor, nearly that, or a product with Sylvester's."""
        kind = self.data.draw(st.sampled_from(("dense", "hadamard", "nearly", "product")))
        matrix = self.random.standard_normal((size, size)) / size**0.5
        if kind in ("hadamard", "nearly") and size & (size - 1) == 0:
            matrix = sylvester(size) * self.data.draw(st.sampled_from((1.0, -1.0, 0.3))) / size**0.5
            if kind == "nearly":
                matrix[tuple(self.random.integers(0, size, 2))] *= -1
        part = self.data.draw(st.sampled_from([part for part in (2, 4, 8, 16) if size % part == 0] or [1]))
        if kind == "product":
            matrix = np.kron(self.random.standard_normal((size // part,) * 2), sylvester(part)) / size**0.5
        typed: np.ndarray = matrix.astype(self.dtype)
        return typed


@given(data=st.data(), size=sizes, runs=st.integers(1, 5))
@_EXAMPLES
def test_shared(isas: tuple[str, ...], data: st.DataObject, size: int, runs: int) -> None:
    drawn, channels = Drawn(data), size * runs
    inputs = drawn.x(channels), drawn.scale(channels), drawn.matrix(size)
    check(isas, "SharedTransform", *inputs, fed=drawn.fed)


@given(data=st.data(), size=sizes, blocks=st.integers(1, 5))
@_EXAMPLES
def test_blocks(isas: tuple[str, ...], data: st.DataObject, size: int, blocks: int) -> None:
    drawn, channels = Drawn(data), size * blocks
    inputs = drawn.x(channels), drawn.scale(channels), np.stack([drawn.matrix(size) for _ in range(blocks)])
    check(isas, "BlockTransform", *inputs, fed=drawn.fed)


@pytest.mark.parametrize("fed", [False, True])
def test_no_channels(isas: tuple[str, ...], fed: bool) -> None:
    x, scale = np.zeros((2, 0), np.float32), np.zeros(0, np.float32)
    check(isas, "SharedTransform", x, scale, np.eye(16, dtype=np.float32), fed=fed)
    pair = [hadamard_matrix(order).astype(np.float32) for order in (12, 16)]
    check(isas, "KroneckerTransform", x, scale, *pair, fed=fed)


powers = st.tuples(st.integers(0, 5), st.integers(0, 7)).map(lambda pair: (1 << pair[0], 1 << pair[1]))


@given(data=st.data(), pair=st.one_of(powers, st.tuples(*[st.integers(1, 33)] * 2)), runs=st.integers(1, 3))
@_EXAMPLES
def test_kronecker(isas: tuple[str, ...], data: st.DataObject, pair: tuple[int, int], runs: int) -> None:
    drawn, channels = Drawn(data), pair[0] * pair[1] * runs
    inputs = drawn.x(channels), drawn.scale(channels), *(drawn.matrix(size) for size in pair)
    check(isas, "KroneckerTransform", *inputs, fed=drawn.fed)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", [24, 96, 144, 576, 768, 1152, 1536, 2304, 8960])
def test_real_widths(isas: tuple[str, ...], order: int, dtype: DTypeLike) -> None:
    random = np.random.default_rng(order)
    x = random.standard_normal((2, order)).astype(dtype)
    scale = random.uniform(0.5, 2, order).astype(dtype)
    check(
        isas, "KroneckerTransform", x, scale, *(hadamard_matrix(part).astype(dtype) for part in kronecker_pair(order))
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1 << power for power in range(15)])
def test_every_width_of_walsh_hadamard(isas: tuple[str, ...], size: int, dtype: DTypeLike) -> None:
    random = np.random.default_rng(size)
    # 3 runs: no whole number of vectors for the narrow ones.
    runs = 3 if size <= 4096 else 1
    x = random.standard_normal((2, runs * size)).astype(dtype)
    scale = random.uniform(0.5, 2, runs * size).astype(dtype)
    if size <= 512:
        matrix = (sylvester(size) / size**0.5).astype(dtype)
        check(isas, "SharedTransform", x, scale, matrix)
    outer = 1 << (size.bit_length() - 1) // 2
    pair = [(sylvester(part) / part**0.5).astype(dtype) for part in (outer, size // outer)]
    check(isas, "KroneckerTransform", x, scale, *pair)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("op", "shape", "of"),
    [
        ("SharedTransform", (64, 64), "sylvester"),
        ("SharedTransform", (96, 96), "dense"),
        ("BlockTransform", (12, 64, 64), "dense"),
        ("KroneckerTransform", (12, 64), "hadamard"),
        ("KroneckerTransform", (24, 32), "dense"),
    ],
)
def test_many_rows_in_several_threads(
    isas: tuple[str, ...], op: str, shape: tuple[int, ...], of: str, dtype: DTypeLike
) -> None:
    random = np.random.default_rng(5)
    x = random.standard_normal((301, 3, 768)).astype(dtype)
    scale = random.uniform(0.5, 2, 768).astype(dtype)
    if of == "sylvester":
        made = [sylvester(shape[0]) / 8]
    elif of == "hadamard":
        made = [hadamard_matrix(size) for size in shape]  # 12: not Sylvester's
    elif op == "KroneckerTransform":
        made = [random.standard_normal((size, size)) / size**0.5 for size in shape]
    else:
        made = [random.standard_normal(shape) / 8]
    check(isas, op, x, scale, *(matrix.astype(dtype) for matrix in made), threads=3)


def test_float16_is_converted_exactly(isas: tuple[str, ...]) -> None:
    """All 65536 of them, times a few scales: rounded once to float32 and once to float16, as numpy does."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    for factor in (1.0, 1 / 3, 2.0**-14, 1000.0):
        scale, one = np.array([factor], np.float16), np.ones((1, 1), np.float16)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = (x.astype(np.float32) * np.float32(scale[0])).astype(np.float16)
        for isa in isas:
            (y,) = run(opened(node_model("SharedTransform", {"x": x, "scale": scale, "one": one}), isa), x=x)
            np.testing.assert_array_equal(y, expected, err_msg=f"{isa}, {factor}")


def test_what_is_not_a_number_stays_in_its_run(isas: tuple[str, ...]) -> None:
    x = np.ones((3, 4, 128), np.float32)
    x[1, 2, 70] = np.nan
    for matrix in (sylvester(64), np.eye(64)):
        inputs = {"x": x, "scale": np.ones(1, np.float32), "matrix": matrix.astype(np.float32)}
        for isa in isas:
            (y,) = run(opened(node_model("SharedTransform", inputs), isa), x=x)
            assert np.isnan(y[1, 2, 64:]).any()
            y[1, 2, 64:] = 0
            assert not np.isnan(y).any()


def test_matrices_may_change_between_runs() -> None:
    random = np.random.default_rng(1)
    inputs = {name: random.standard_normal(shape).astype(np.float32) for name, shape in (("x", (3, 32)), ("scale", 32))}
    inputs["matrix"] = sylvester(8).astype(np.float32)
    session = opened(node_model("SharedTransform", inputs, fed=list(inputs)))
    for matrix in (sylvester(8), random.standard_normal((8, 8)), -sylvester(16), random.standard_normal((4, 4))):
        fed = inputs | {"matrix": matrix.astype(np.float32)}
        (y,) = run(session, **fed)
        np.testing.assert_allclose(y, transformed("SharedTransform", *fed.values()), rtol=0, atol=1e-5)


def test_channels_may_change_between_runs() -> None:
    random = np.random.default_rng(1)
    scale, matrix = np.full(1, 3, np.float32), random.standard_normal((8, 8)).astype(np.float32)
    session = opened(
        node_model("SharedTransform", {"x": np.ones((1, 8), np.float32), "scale": scale, "matrix": matrix})
    )
    for channels in (8, 32, 16, 0, 8):
        x = random.standard_normal((2, channels)).astype(np.float32)
        (y,) = run(session, x=x)
        np.testing.assert_allclose(y, transformed("SharedTransform", x, scale, matrix), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [64, 96, 2048])
def test_results_take_the_place_of_what_they_are_made_of(isas: tuple[str, ...], size: int) -> None:
    """Transforms in a row: those in the middle run in place, where nobody else reads what they read."""
    random = np.random.default_rng(2)
    x = random.standard_normal((7, 2 * size)).astype(np.float32)
    pair = [hadamard_matrix(part).astype(np.float32) for part in (size // 8, 8)]
    inputs = {"x": x, "scale": np.ones(1, np.float32), "first": pair[0], "second": pair[1]}
    model = node_model("KroneckerTransform", inputs)
    before = model.graph.node[0]
    values = ["x", "a", "b", "c", "d", "y"]
    nodes = []
    for source, target in pairwise(values):
        node = onnx.NodeProto()
        node.CopyFrom(before)
        node.input[0], node.output[0] = source, target
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, helper.make_node("Identity", ["x"], ["kept"])])
    model.graph.output.append(onnx.ValueInfoProto(name="kept"))
    power = np.linalg.matrix_power(np.kron(pair[0].astype(np.float64), pair[1]), 5)
    expected = (x.astype(np.float64).reshape(7, 2, size) @ power).reshape(x.shape)
    for isa in isas:
        y, kept = run(opened(model, isa), x=x)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5, err_msg=isa)
        np.testing.assert_array_equal(kept, x)


def test_one_session_in_several_threads() -> None:
    random = np.random.default_rng(3)
    scale, matrix = np.full(1, 2, np.float32), random.standard_normal((16, 16)).astype(np.float32)
    inputs = {"x": np.ones((1, 16), np.float32), "scale": scale, "matrix": matrix}
    session = opened(node_model("SharedTransform", inputs), threads=2)
    feeds = [random.standard_normal((50, 16 * (1 + index % 3))).astype(np.float32) for index in range(60)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: run(session, x=x)[0], feeds))
    for x, y in zip(feeds, results, strict=True):
        np.testing.assert_allclose(y, transformed("SharedTransform", x, scale, matrix), rtol=0, atol=1e-4)


def test_the_instruction_sets_are_those_of_the_processor(isas: tuple[str, ...]) -> None:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    assert isas[0] == "portable"
    assert ("avx2" in isas) == ({"avx2", "fma", "f16c"} <= set(flags))
    assert ("avx512" in isas) == ({"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= set(flags))
    assert ("avx512vnni" in isas) == ("avx512" in isas and "avx512_vnni" in flags)
    assert not flags or ("neondot" in isas) == ("asimddp" in flags)
    assert "amx" not in isas or {"amx_tile", "amx_int8"} <= set(flags)  # the compiler or the system may not know it


def test_the_instruction_set_asked_for_is_used(isas: tuple[str, ...], ops_library: Path) -> None:
    named = ctypes.CDLL(str(ops_library)).catonnx_instruction_set
    named.restype = ctypes.c_char_p
    random = np.random.default_rng(4)
    shapes = {"x": (8, 256), "scale": (1,), "matrix": (64, 64)}
    inputs = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    results = {}
    for isa in isas:
        session = opened(node_model("SharedTransform", inputs), isa)
        assert named().decode() == isa
        (results[isa],) = run(session, x=inputs["x"])
    opened(node_model("SharedTransform", inputs))
    assert named().decode() == isas[-1]
    # Only the portable code of x86 rounds between a multiplication and an addition; under sanitizers all code does.
    if "avx2" in isas and "CATONNX_TESTED_OPS" not in os.environ:
        assert (results["portable"] != results["avx2"]).any()


def test_shapes_are_known_before_anything_runs() -> None:
    inputs = {"x": np.ones((2, 3, 8), np.float32), "scale": np.ones(1, np.float32), "matrix": np.eye(4, dtype="f4")}
    session = opened(node_model("SharedTransform", inputs))
    assert [value.shape for value in session.get_outputs()] == [["x0", "x1", "x2"]]
