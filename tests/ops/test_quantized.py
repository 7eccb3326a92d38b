"""DynamicQuantize and QuantizedMatMul as nodes, against numpy in float64."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numpy.typing import DTypeLike

from tests.ops.running import node_model, opened, run

TYPES = (np.float32, np.float16)
SHAPES = ((1,), (7,), (3, 33), (2, 3, 128), (5, 0, 16), (0, 4), (300, 2, 512), (2, 0))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("bits", "clip"), [(8, 1.0), (4, 1.0), (4, 0.75), (8, 1.5)])
def test_rows_are_quantized(isas: tuple[str, ...], bits: int, clip: float, dtype: DTypeLike) -> None:
    random, levels = np.random.default_rng(0), 2 ** (bits - 1) - 1
    for shape in SHAPES:
        x = (random.standard_normal(shape) * np.exp(random.uniform(-4, 4, (*shape[:-1], 1)))).astype(dtype)
        if x.size > 64:
            x[0] = 0
        largest = np.abs(x.astype(np.float64)).max(axis=-1, initial=0, keepdims=True)
        scale = np.where(largest == 0, 1, np.float32(clip) * largest / levels)
        model = node_model("DynamicQuantize", {"x": x}, outputs=("q", "s"), attributes={"bits": bits, "clip": clip})
        for isa in isas:
            q, s = run(opened(model, isa, threads=2), x=x)
            assert (q.dtype.name, s.dtype.name, q.shape, s.shape) == ("int8", "float32", x.shape, scale.shape)
            np.testing.assert_allclose(s, scale, rtol=2e-7)
            exact = np.clip(x / scale, -levels - 1, levels)
            assert np.abs(q - exact).max(initial=0) <= 0.5 + 1e-4, isa
            assert -levels - 1 <= q.min(initial=0) <= q.max(initial=0) <= levels


def test_halves_go_to_even(isas: tuple[str, ...]) -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], np.float32)
    model = node_model("DynamicQuantize", {"x": x}, outputs=("q", "s"), attributes={"bits": 8})
    for isa in isas:
        q, s = run(opened(model, isa), x=x)
        assert (q.tolist(), s.tolist()) == ([[127, 0, 2, 2, 0, -2, -2, 126]], [[1]]), isa


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("fed", [False, True], ids=["constant", "fed"])
@pytest.mark.parametrize(
    ("shape", "N", "group"),
    [
        ((1, 64), 5, 16),
        ((3, 50), 33, 32),
        ((2, 3, 256), 130, 128),
        ((2, 256), 130, 32),
        ((40, 300), 257, 256),
        ((2101, 20), 140, 16),
        ((1, 1, 77), 300, 80),
        ((0, 4, 32), 8, 32),
        ((9, 1), 1, 16),
        ((700, 400), 64, 16),  # arranged by several threads, in memory that stays
        ((1500, 1000), 33, 32),  # in memory that does not
    ],
)
@pytest.mark.parametrize("alike", [False, True], ids=["groups", "channels"])
def test_products(
    isas: tuple[str, ...], shape: tuple[int, ...], N: int, group: int, fed: bool, alike: bool, dtype: DTypeLike
) -> None:
    random, K = np.random.default_rng(1), shape[-1]
    groups = -(-K // group)
    a = random.integers(-128, 128, shape).astype(np.int8)
    a_scale = random.uniform(0.01, 0.1, (*shape[:-1], 1)).astype(np.float32)
    codes = random.integers(0, 16, (N, groups, group)).astype(np.uint8)  # those of the padding mean nothing
    b = codes[..., ::2] | codes[..., 1::2] << 4
    b_scale = random.uniform(0.01, 0.1, (N, groups)).astype(dtype)
    if alike:
        b_scale[:] = b_scale[:, :1]
    weight = (codes.astype(np.float64) - 8) * b_scale[..., None].astype(np.float64)
    expected = a @ weight.reshape(N, groups * group)[:, :K].T * a_scale.astype(np.float64)
    sizes = np.abs(a.astype(np.float64)) @ np.abs(weight).reshape(N, groups * group)[:, :K].T
    largest = sizes * a_scale.astype(np.float64)

    inputs: dict[str, np.ndarray] = {"a": a, "a_scale": a_scale, "b": b, "b_scale": b_scale}
    if alike:
        inputs["b_scale"] = b_scale.reshape(-1)
    given = list(inputs) if fed else ["a", "a_scale"]
    model = node_model("QuantizedMatMul", inputs, fed=given, attributes={"K": K, "N": N, "block_size": group})
    for isa in isas:
        session = opened(model, isa, threads=2)
        (y,) = run(session, **{name: inputs[name] for name in given})
        assert (y.dtype, y.shape) == (b_scale.dtype, expected.shape)
        allowed = 1e-6 * largest + (0 if dtype == np.float32 else 2.0**-11 * np.abs(expected) + 2.0**-25)
        assert (np.abs(y - expected) <= allowed).all(), isa


def test_a_product_keeps_the_instruction_set_that_it_was_made_with(isas: tuple[str, ...]) -> None:
    random, K, N = np.random.default_rng(2), 512, 40
    a = random.integers(-128, 128, (9, K)).astype(np.int8)
    inputs: dict[str, np.ndarray] = {
        "a": a,
        "a_scale": random.uniform(0.01, 0.1, (9, 1)).astype(np.float32),
        "b": random.integers(0, 256, (N, K // 32, 16)).astype(np.uint8),
        "b_scale": random.uniform(0.01, 0.1, (N, K // 32)).astype(np.float32),
    }
    attributes = {"K": K, "N": N, "block_size": 32}
    model = node_model("QuantizedMatMul", inputs, fed=("a", "a_scale"), attributes=attributes)
    feeds = {name: inputs[name] for name in ("a", "a_scale")}
    portable = opened(model, "portable")
    (before,) = run(portable, **feeds)
    (best,) = run(opened(model, isas[-1]), **feeds)
    np.testing.assert_array_equal(run(portable, **feeds)[0], before)
    # Or nothing would be seen. Under sanitizers all code rounds alike.
    if "avx2" in isas and "CATONNX_TESTED_OPS" not in os.environ:
        assert (before != best).any()


def test_shapes_and_types_are_known_before_anything_runs() -> None:
    a: np.ndarray = np.zeros((2, 3, 32), np.int8)
    b: np.ndarray = np.zeros((5, 2, 8), np.uint8)
    for dtype, name in ((np.float32, "float"), (np.float16, "float16")):
        inputs: dict[str, np.ndarray] = {
            "a": a,
            "a_scale": np.ones((2, 3, 1), np.float32),
            "b": b,
            "b_scale": np.ones((5, 2), dtype),
        }
        attributes = {"K": 32, "N": 5, "block_size": 16}
        model = node_model("QuantizedMatMul", inputs, fed=("a", "a_scale"), attributes=attributes)
        (y,) = opened(model).get_outputs()
        assert (y.type, y.shape) == (f"tensor({name})", ["a0", "a1", 5])
        x = np.ones((2, 8), dtype)
        model = node_model("DynamicQuantize", {"x": x}, outputs=("q", "s"), attributes={"bits": 8})
        q, s = opened(model).get_outputs()
        assert (q.type, q.shape, s.type, s.shape) == ("tensor(int8)", ["x0", "x1"], "tensor(float)", ["x0", 1])
