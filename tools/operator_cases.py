"""Models of our operators alone, for `gpu_operators` and `bench_products`, and what they should compute, in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import scipy.linalg
from onnx import helper, numpy_helper

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One node, and what it should compute in float64."""

    op: str
    inputs: Arrays  # the first two of a product, and the first of others, are fed
    attributes: Mapping[str, Any]

    @property
    def fed(self) -> tuple[str, ...]:
        """Names of the inputs that are no constants."""
        return tuple(self.inputs)[: 2 if self.op == "QuantizedMatMul" else 1]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return ("codes", "scales") if self.op.endswith("Quantize") else ("y",)


def draw_cases(library: Path, *, few: bool = False) -> Iterator[Case]:
    """Draw cases of the operators that a library has: small, odd and wide ones."""
    random = np.random.default_rng(0)
    dense = [(3, 12, 4), (65, 64, 2), (20, 64, 16)] if few else [(3, 12, 4), (130, 128, 32), (1, 128, 32)]
    hadamard = [(3, 64, 1), (1, 4096, 1), (5, 96, 3), (2, 14336, 28), (7, 20, 5), (1, 32768, 2)]
    for dtype in (np.float32, np.float16):
        for count, channels, outer in hadamard[:3] if few else hadamard:
            x = random.standard_normal((count, channels)).astype(dtype)
            yield _rounded("DynamicQuantize", {"x": x})
            inner = channels // outer & -(channels // outer)
            second = scipy.linalg.hadamard(min(inner, 64)) / 8
            first = np.kron(random.standard_normal((outer, outer)), scipy.linalg.hadamard(max(inner // 64, 1)))
            for end in ("", "Quantize"):
                if knows(library, f"KroneckerTransform{end}"):
                    yield transform(f"KroneckerTransform{end}", x, first, second)
        for count, size, blocks in dense:
            x = random.standard_normal((count, size * blocks)).astype(dtype)
            for end in ("", "Quantize"):
                if knows(library, f"BlockTransform{end}"):
                    yield transform(f"BlockTransform{end}", x, random.standard_normal((blocks, size, size)))
                    yield transform(f"SharedTransform{end}", x, random.standard_normal((size, size)))
        for K, N in ((96, 33), (41, 9)) if few else ((4096, 4096), (4097, 33), (96, 1030), (41, 9)):
            for group in (16, 32, 128, -(-K // 16) * 16):
                for count in (1, 3, 20) if few else (1, 3, 8, 20, 200):
                    yield product(random, count, K, N, group, dtype)


def knows(library: Path, op: str) -> bool:
    """Return whether a library has an operator of that name."""
    return f"{op}\0".encode() in library.read_bytes()


def transform(op: str, x: np.ndarray, *matrices: np.ndarray) -> Case:
    """Return a case of a transform, rounded to 8 bits if its name ends in Quantize; all are of the type of x."""
    scale = np.linspace(0.5, 2, x.shape[-1]).astype(x.dtype)
    inputs = {"x": x, "scale": scale} | {f"m{i}": matrix.astype(x.dtype) for i, matrix in enumerate(matrices)}
    return _rounded(op, inputs) if op.endswith("Quantize") else Case(op, inputs, {})


def _rounded(op: str, inputs: Arrays) -> Case:
    return Case(op, inputs, {"bits": 8})


def product(random: np.random.Generator, count: int, K: int, N: int, group: int, dtype: Any) -> Case:
    """Draw a case of QuantizedMatMul."""
    groups = -(-K // group)
    inputs: dict[str, np.ndarray] = {
        "a": random.integers(-127, 128, (count, K)).astype(np.int8),
        "a_scale": random.uniform(0.01, 0.1, (count, 1)).astype(np.float32),
        "b": random.integers(0, 256, (N, groups, group // 2)).astype(np.uint8),
        "b_scale": random.uniform(0.01, 0.1, (N, groups)).astype(dtype),
    }
    return Case("QuantizedMatMul", inputs, {"K": K, "N": N, "block_size": group})


def error_of(case: Case, results: Sequence[np.ndarray]) -> float:
    """Return the largest error over what roundings allow; of codes, over the half that rounding itself takes."""
    values = list(case.inputs.values())
    if case.op == "QuantizedMatMul":
        a, a_scale, b, b_scale = (value.astype(np.float64) for value in values)
        nibbles = np.stack([b % 16, b // 16], axis=-1).reshape(len(b), b_scale.shape[1], -1) - 8
        weight = (nibbles * b_scale[..., None]).reshape(len(b), -1)[:, : a.shape[1]]
        wanted, size = (a @ weight.T) * a_scale, (np.abs(a) @ np.abs(weight).T) * a_scale
        return _share(results[0], wanted, 2e-6 * size)
    wanted, size = _transformed(case, np.asarray), _transformed(case, np.abs)
    if not case.op.endswith("Quantize"):
        return _share(results[0], wanted, 2e-6 * size)
    codes, scales = results
    most = np.abs(wanted).max(axis=-1, keepdims=True)
    exact = np.where(most == 0, 1, most / 127)
    slack = 0.501 + 2e-6 * size.max(axis=-1, keepdims=True) / exact
    return float(max((np.abs(codes - wanted / exact) / slack).max(), np.abs(scales / exact - 1).max() / 1e-4))


def _share(y: np.ndarray, wanted: np.ndarray, allowed: np.ndarray) -> float:
    rounding = 2.0**-11 * np.abs(wanted) + 2.0**-25 if y.dtype == np.float16 else 0.0
    share = float((np.abs(y.astype(np.float64) - wanted) / (allowed + rounding)).max())
    return share if np.isfinite(share) else float("inf")


def _transformed(case: Case, sign: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    x, *others = (sign(value.astype(np.float64)) for value in case.inputs.values())
    if not others:
        return x
    scale, *matrices = others
    y: np.ndarray = x * scale
    if case.op.startswith("Kronecker"):
        first, second = matrices
        runs = y.reshape(len(x), -1, len(first), len(second))
        mixed: np.ndarray = (first.T @ runs @ second).reshape(x.shape)
        return mixed
    (matrix,) = matrices
    runs = y.reshape(len(x), -1, 1, matrix.shape[-1])
    multiplied: np.ndarray = (runs @ matrix).reshape(x.shape)
    return multiplied


def node(case: Case) -> onnx.NodeProto:
    """Return the node."""
    return helper.make_node(case.op, list(case.inputs), list(case.outputs), domain="catonnx", **case.attributes)


def model_of(nodes: Sequence[onnx.NodeProto], case: Case, outputs: Sequence[str]) -> onnx.ModelProto:
    """Return a model of nodes, which read from the inputs of a case."""
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(case.inputs[name].dtype), ["rows", case.inputs[name].shape[-1]]
        )
        for name in case.fed
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in case.inputs.items() if name not in case.fed]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(nodes, "operators", values, results, tensors)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("catonnx", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def quantized_products(K: int, N: int, group: int, copies: int, dtype: Any = np.float16) -> onnx.ModelProto:
    """Return a model that multiplies the same rows by several weights; what comes out is of the type `dtype`."""
    random = np.random.default_rng(0)
    drawn = [product(random, 1, K, N, group, dtype) for _ in range(copies)]
    inputs, nodes = {name: drawn[0].inputs[name] for name in ("a", "a_scale")}, []
    for index, case in enumerate(drawn):
        inputs |= {f"b{index}": case.inputs["b"], f"b_scale{index}": case.inputs["b_scale"]}
        names = ["a", "a_scale", f"b{index}", f"b_scale{index}"]
        nodes.append(helper.make_node(case.op, names, [f"y{index}"], domain="catonnx", **case.attributes))
    whole = Case("QuantizedMatMul", inputs, {})
    return model_of(nodes, whole, [f"y{index}" for index in range(copies)])


def nbits_products(K: int, N: int, group: int, copies: int, level: int) -> onnx.ModelProto:
    """Return a model that multiplies the same rows in float32 by the same weights with MatMulNBits."""
    random = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {"x": np.ones((1, K), np.float32)}
    nodes = []
    for index in range(copies):
        case = product(random, 1, K, N, group, np.float32)
        inputs |= {f"b{index}": case.inputs["b"], f"b_scale{index}": case.inputs["b_scale"]}
        attributes = {**case.attributes, "bits": 4, "accuracy_level": level}
        names = ["x", f"b{index}", f"b_scale{index}"]
        nodes.append(helper.make_node("MatMulNBits", names, [f"y{index}"], domain="com.microsoft", **attributes))
    model = model_of(nodes, Case("MatMulNBits", inputs, {}), [f"y{index}" for index in range(copies)])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def float_products(K: int, N: int, copies: int, dtype: Any = np.float16) -> onnx.ModelProto:
    """Return a model that multiplies the same rows by several weights in float."""
    random = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {"x": np.ones((1, K), dtype)}
    inputs |= {f"w{i}": (random.standard_normal((K, N), np.float32) / K**0.5).astype(dtype) for i in range(copies)}
    nodes = [helper.make_node("MatMul", ["x", f"w{index}"], [f"y{index}"]) for index in range(copies)]
    return model_of(nodes, Case("MatMul", inputs, {}), [f"y{index}" for index in range(copies)])


def dtype_of(case: Case) -> str:
    """Return the type of the numbers that a case is about."""
    return str(list(case.inputs.values())[-1].dtype)
