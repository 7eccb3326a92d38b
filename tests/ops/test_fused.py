"""A transform and DynamicQuantize in one node: what the two compute one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import DTypeLike

from catonnx.graph.operators import FUSED
from tests.ops.running import node_model, opened, plain, run, sylvester, tolerance, transformed, with_function

TYPES = (np.float32, np.float16)
MATRICES: dict[str, tuple[str, list[tuple[int, ...]]]] = {
    "hadamard": ("SharedTransform", [(16, 16)]),
    "shared": ("SharedTransform", [(24, 24)]),
    "blocks": ("BlockTransform", [(6, 16, 16)]),
    "kronecker": ("KroneckerTransform", [(3, 3), (16, 16)]),
}
CHANNELS = 96
SHAPES = ((96,), (1, 96), (3, 0, 96), (2, 7, 96), (61, 96))


def inputs(kind: str, shape: tuple[int, ...], dtype: DTypeLike, scales: int = CHANNELS) -> dict[str, np.ndarray]:
    """Return rows of very different sizes, one of zeros among them, and what transforms them."""
    random = np.random.default_rng(len(shape))
    x = random.standard_normal(shape) * np.exp(random.uniform(-4, 4, (*shape[:-1], 1)))
    if len(x) > 2:
        x[1] = 0
    matrices = [random.standard_normal(size) / size[-1] ** 0.5 for size in MATRICES[kind][1]]
    if kind in ("hadamard", "kronecker"):
        matrices[-1] = sylvester(16) / 4
    values = {"x": x, "scale": random.uniform(0.5, 2, scales)}
    values |= {f"m{index}": matrix for index, matrix in enumerate(matrices)}
    return {name: value.astype(dtype) for name, value in values.items()}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize(("bits", "clip"), [(8, 1.0), (4, 0.75)])
def test_rows_are_transformed_and_quantized(
    isas: tuple[str, ...], bits: int, clip: float, kind: str, dtype: DTypeLike
) -> None:
    op, levels = MATRICES[kind][0], 2 ** (bits - 1) - 1
    attributes = {"bits": bits, "clip": clip}
    for shape in SHAPES:
        given = inputs(kind, shape, dtype)
        x, *others = given.values()
        exact = transformed(op, x, *others)
        # Between the two are float32, whatever the type of X is.
        wide = [value.astype(np.float32) for value in (x, *others)]
        off = tolerance(op, *wide).max(axis=-1, initial=0, keepdims=True)
        largest = np.abs(exact).max(axis=-1, initial=0, keepdims=True)
        scale = np.where(largest == 0, 1, clip * largest / levels)
        model = node_model(FUSED[op], given, outputs=("q", "s"), attributes=attributes)
        sessions = [opened(model, isa, threads=2) for isa in isas]
        results = [run(session, x=x) for session in sessions]
        for q, s in [*results, plain(with_function(model, FUSED[op]), x=x)] if dtype == np.float32 else results:
            assert (q.dtype.name, s.dtype.name, q.shape, s.shape) == ("int8", "float32", x.shape, scale.shape)
            assert (np.abs(s - scale) <= 3e-7 * scale + off / levels).all()
            codes = np.clip(exact / scale, -levels - 1, levels)
            assert (np.abs(q - codes) <= 0.5 + 1e-4 + 4 * off / scale).all()


@pytest.mark.parametrize("kind", MATRICES)
def test_codes_are_those_of_the_two_nodes(isas: tuple[str, ...], kind: str) -> None:
    op, given = MATRICES[kind][0], inputs(kind, (61, CHANNELS), np.float32)
    attributes = {"bits": 8}
    fused = node_model(FUSED[op], given, outputs=("q", "s"), attributes=attributes)
    first = node_model(op, given)
    for isa in isas:
        (between,) = run(opened(first, isa), x=given["x"])
        second = node_model("DynamicQuantize", {"x": between}, outputs=("q", "s"), attributes=attributes)
        for value, expected in zip(
            run(opened(fused, isa), x=given["x"]), run(opened(second, isa), x=between), strict=True
        ):
            np.testing.assert_array_equal(value, expected, err_msg=isa)


@pytest.mark.parametrize("kind", MATRICES)
def test_one_scale_for_all_and_matrices_that_are_fed(isas: tuple[str, ...], kind: str) -> None:
    op, given = MATRICES[kind][0], inputs(kind, (5, CHANNELS), np.float32, scales=1)
    exact = transformed(op, *given.values())
    model = node_model(FUSED[op], given, outputs=("q", "s"), fed=list(given), attributes={"bits": 8})
    for isa in isas:
        q, s = run(opened(model, isa), **given)
        assert np.abs(q * s - exact).max() <= 0.51 * s.max()


@pytest.mark.parametrize("kind", MATRICES)
def test_a_row_that_is_not_finite_has_no_scale(isas: tuple[str, ...], kind: str) -> None:
    op, given = MATRICES[kind][0], inputs(kind, (4, CHANNELS), np.float32)
    given["x"][1, 3], given["x"][2, 50] = np.nan, np.inf
    model = node_model(FUSED[op], given, outputs=("q", "s"), attributes={"bits": 8, "clip": 1.0})
    for isa in isas:
        _, s = run(opened(model, isa), x=given["x"])
        np.testing.assert_array_equal(np.isnan(s), [[False], [True], [True], [False]])
    _, s = plain(with_function(model, FUSED[op]), x=given["x"])
    np.testing.assert_array_equal(np.isnan(s), [[False], [True], [True], [False]])


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("shape", [(0, 96), (2, 0, 96)])
def test_functions_take_no_rows_at_all(kind: str, shape: tuple[int, ...]) -> None:
    op, given = MATRICES[kind][0], inputs(kind, shape, np.float32)
    model = with_function(
        node_model(FUSED[op], given, outputs=("q", "s"), attributes={"bits": 4, "clip": 1.0}), FUSED[op]
    )
    q, s = plain(model, x=given["x"])
    assert (q.shape, s.shape) == (shape, (*shape[:-1], 1))


def test_shapes_and_types_are_known_before_anything_runs() -> None:
    for dtype in TYPES:
        model = node_model(
            "KroneckerTransformQuantize",
            inputs("kronecker", (2, 3, 96), dtype),
            outputs=("q", "s"),
            attributes={"bits": 8},
        )
        q, s = opened(model).get_outputs()
        assert (q.type, q.shape) == ("tensor(int8)", ["x0", "x1", "x2"])
        assert (s.type, s.shape) == ("tensor(float)", ["x0", "x1", 1])


@pytest.mark.parametrize("attributes", [{}, {"bits": 5}, {"bits": 8, "clip": -1.0}])
def test_bad_attributes_are_refused(attributes: dict[str, float]) -> None:
    model = node_model(
        "SharedTransformQuantize", inputs("shared", (2, 96), np.float32), outputs=("q", "s"), attributes=attributes
    )
    with pytest.raises(Exception, match=r"SharedTransformQuantize: the attribute (bits|clip) is"):
        opened(model)
