"""What does not fit is refused with the operator's name and the sizes, when the model is opened or when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from catonnx.runtime.sessions import runtime_errors
from tests.ops.running import node_model, opened, run

Sizes = Mapping[str, tuple[int, ...]]

_QUANTIZED = {"a": (2, 32), "a_scale": (2, 1), "b": (5, 2, 8), "b_scale": (5, 2)}
_TYPES = {"a": np.int8, "a_scale": np.float32, "b": np.uint8}
_SIZES = {"K": 32, "N": 5, "block_size": 16}

TRANSFORMS: list[tuple[str, Sizes, str]] = [
    ("SharedTransform", {"x": (), "scale": (1,), "matrix": (4, 4)}, "X is a scalar"),
    ("SharedTransform", {"x": (2, 10), "scale": (1,), "matrix": (4, 4)}, "X has 10 channels, .* no multiple of 4"),
    ("SharedTransform", {"x": (2, 8), "scale": (1,), "matrix": (4, 2)}, r"input matrix has the shape \[4, 2\]"),
    ("SharedTransform", {"x": (2, 8), "scale": (1,), "matrix": (16,)}, r"matrix .* \[16\] and must be \[size, size\]"),
    ("SharedTransform", {"x": (2, 8), "scale": (1,), "matrix": (0, 0)}, r"matrix has the shape \[0, 0\]"),
    (
        "SharedTransform",
        {"x": (2, 8), "scale": (3,), "matrix": (4, 4)},
        r"scale has (3 channels|the shape \[3\] and must be \[8\])",
    ),
    ("SharedTransform", {"x": (2, 8), "scale": (1, 8), "matrix": (4, 4)}, r"scale has the shape \[1, 8\]"),
    ("SharedTransform", {"x": (2, 8), "scale": (), "matrix": (4, 4)}, r"scale has the shape \[\]"),
    ("SharedTransform", {"x": (2, 8), "scale": (0,), "matrix": (4, 4)}, r"scale has the shape \[0\]"),
    ("BlockTransform", {"x": (2, 8), "scale": (1,), "m": (3, 4, 4)}, r"8 channels, .*\[3, 4, 4\] are for 12"),
    ("BlockTransform", {"x": (2, 8), "scale": (8,), "m": (4, 4)}, r"must be \[blocks, size, size\]"),
    ("BlockTransform", {"x": (2, 8), "scale": (8,), "m": (2, 4, 3)}, r"shape \[2, 4, 3\]"),
    ("KroneckerTransform", {"x": (2, 8), "scale": (1,), "a": (3, 3), "b": (2, 2)}, "8 channels, .* multiple of 3 x 2"),
    ("KroneckerTransform", {"x": (2, 8), "scale": (1,), "a": (2, 2), "b": (2, 4)}, r"input second .* \[2, 4\]"),
    ("KroneckerTransform", {"x": (2, 8), "scale": (1,), "a": (2,), "b": (4, 4)}, r"input first .* \[2\]"),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("fed", [False, True], ids=["constant", "fed"])
@pytest.mark.parametrize(("op", "sizes", "message"), TRANSFORMS)
def test_transforms(op: str, sizes: Sizes, message: str, fed: bool, dtype: type[np.generic]) -> None:
    inputs = {name: np.ones(shape, dtype) for name, shape in sizes.items()}
    model = node_model(op, inputs, fed=list(inputs) if fed else ["x"])
    with pytest.raises(runtime_errors(), match=f"{op}: .*{message}"):
        run(opened(model), **(inputs if fed else {"x": inputs["x"]}))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"a": (2, 31)}, r"A has the shape \[2, 31\] and must have K = 32 channels"),
        ({"a": ()}, r"A has the shape \[\]"),
        ({"a_scale": (2,)}, r"a_scale has the shape \[2\] and must be \[2, 1\]"),
        ({"a_scale": (3, 1)}, r"a_scale has the shape \[3, 1\]"),
        ({"b": (5, 2, 7)}, r"B has the shape \[5, 2, 7\] and must be \[5, 2, 8\]"),
        ({"b": (5, 16)}, r"B has the shape \[5, 16\]"),
        ({"b_scale": (5, 1)}, r"b_scale has the shape \[5, 1\] and must be \[10\] or \[5, 2\]"),
    ],
)
@pytest.mark.parametrize("fed", [False, True], ids=["constant", "fed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_shapes_of_products(sizes: Sizes, message: str, fed: bool, dtype: type[np.generic]) -> None:
    shapes = _QUANTIZED | dict(sizes)
    inputs = {name: np.ones(shape, _TYPES.get(name, dtype)) for name, shape in shapes.items()}
    given = list(inputs) if fed else ["a", "a_scale"]
    model = node_model("QuantizedMatMul", inputs, fed=given, attributes=_SIZES)
    with pytest.raises(runtime_errors(), match=f"QuantizedMatMul: .*{message}"):
        run(opened(model), **{name: inputs[name] for name in given})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"K": None}, "attribute K is missing, or not an integer"),
        ({"K": 32.0}, "attribute K is missing, or not an integer"),
        ({"K": 0}, "attribute K is 0"),
        ({"K": 1 << 21}, "attribute K is 2097152 and must be 1 to 1048576"),
        ({"N": -1}, "attribute N is -1"),
        ({"block_size": 0}, "attribute block_size is 0"),
        ({"block_size": 24}, "block_size is 24 and must be 16, 32, 64, 128, 256 or 32"),
        ({"block_size": 512}, "block_size is 512"),
    ],
)
def test_attributes_of_products(attributes: Mapping[str, Any], message: str) -> None:
    inputs = {name: np.ones(shape, _TYPES.get(name, np.float32)) for name, shape in _QUANTIZED.items()}
    chosen = {name: value for name, value in (_SIZES | dict(attributes)).items() if value is not None}
    with pytest.raises(runtime_errors(), match=f"QuantizedMatMul: .*{message}"):
        opened(node_model("QuantizedMatMul", inputs, fed=("a", "a_scale"), attributes=chosen))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "attribute bits is missing"),
        ({"bits": 5}, "attribute bits is 5 and must be 4 or 8"),
        ({"bits": 8, "clip": 0.0}, "attribute clip is 0 and must be positive"),
        ({"bits": 8, "clip": -0.5}, "attribute clip is -0.5"),
        ({"bits": 8, "clip": float("inf")}, "attribute clip is inf"),
        ({"bits": 8, "clip": 1}, "attribute clip is an integer, and must be a float"),
    ],
)
def test_attributes_of_quantization(attributes: Mapping[str, Any], message: str) -> None:
    model = node_model("DynamicQuantize", {"x": np.ones((2, 4), np.float32)}, outputs=("q", "s"), attributes=attributes)
    with pytest.raises(runtime_errors(), match=f"DynamicQuantize: .*{message}"):
        opened(model)


def test_a_scalar_is_not_quantized() -> None:
    x = np.ones((), np.float32)
    session = opened(node_model("DynamicQuantize", {"x": x}, outputs=("q", "s"), attributes={"bits": 8}))
    with pytest.raises(runtime_errors(), match="DynamicQuantize: X is a scalar"):
        run(session, x=x)
