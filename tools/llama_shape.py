"""Llama-shaped language models with random weights, written on the spot: no torch, no download.

The graph is what exporters write: a key-value cache, norms in plain operators, grouped-query attention with the heads
repeated by Expand, a gated MLP, `com.microsoft.RotaryEmbedding`. It holds no shape arithmetic, so that a provider with
all kernels has nothing to leave to the CPU. Weights are scaled so that activations keep the size of 1, and the norms'
scales hold a few outlier channels, as real ones do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from catonnx.cores import usable_cores

OPSET, IR_VERSION = 21, 10

_OUTLIER = 8.0
"""What one channel of 64 in a norm's scale is larger by."""

_HIDDEN = -1e4
"""Added to the scores of positions that may not be seen: float16 holds it, and its exponential is 0."""

_CHUNK = 1 << 22
"""Random numbers drawn at a time, in float32 (16 MB), before they become float16."""


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a model.

    Attributes:
        layers: Decoder layers; 7 linears each.
        width: Of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads; divides `heads`.
        intermediate: Width inside the MLP.
        vocabulary: Token ids.
        positions: Longest text.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    positions: int = 2048

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def linears(self) -> int:
        """Linears in decoder layers."""
        return 7 * self.layers

    @property
    def linear_weights(self) -> int:
        """Weights in the linears of decoder layers."""
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_heads * self.head_width
        return self.layers * (attention + 3 * self.width * self.intermediate)


def write_llama(shape: LlamaShape, folder: Path, seed: int = 0, dtype: ir.DataType = ir.DataType.FLOAT16) -> Path:
    """Write `model.onnx` and `model.onnx_data` to an existing folder and return the path of the former.

    Inputs: input_ids [batch, sequence], attention_mask [batch, total], position_ids [batch, sequence] (int64) and
    past_key_values.N.key/value [batch, kv_heads, past, head_width] (`dtype`). Outputs: logits and present.N.key/value.

    Args:
        shape: Its sizes.
        folder: Where to.
        seed: Of its weights, which are the same numbers in every type.
        dtype: FLOAT16 or FLOAT.
    """
    path = folder / "model.onnx"
    data = f"{path.name}_data"
    ir.save(
        _Writer(shape, seed, dtype).model(),
        path,
        external_data=data,
        size_threshold_bytes=1024,
        max_workers=usable_cores(),
        max_in_flight_bytes=1 << 30,
    )
    return path


def write_random_feeds(
    shape: LlamaShape, file: Path, samples: int, seq_len: int, seed: int = 0, dtype: ir.DataType = ir.DataType.FLOAT16
) -> None:
    """Write an .npz of inputs `<sample>/<name>` with random tokens and an empty cache, for a model of that type."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        f"{sample}/{name}": array
        for sample in range(samples)
        for name, array in _feeds(shape, random_tokens(shape, seq_len, generator), dtype).items()
    }
    np.savez(file, **arrays)  # without allow_pickle: numpy 1.26 would store it as an array


def random_tokens(shape: LlamaShape, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return int64 [1, count] token ids."""
    return generator.integers(0, shape.vocabulary, (1, count), dtype=np.int64)


def _feeds(shape: LlamaShape, tokens: np.ndarray, dtype: ir.DataType) -> dict[str, np.ndarray]:
    positions = np.arange(tokens.shape[1], dtype=np.int64)[np.newaxis]
    empty = np.zeros((1, shape.kv_heads, 0, shape.head_width), dtype.numpy())
    return {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": positions,
        **{f"past_key_values.{layer}.{kind}": empty for layer in range(shape.layers) for kind in ("key", "value")},
    }


class _Writer:
    """Builds one model; every method appends nodes and returns the value that comes out."""

    def __init__(self, shape: LlamaShape, seed: int, dtype: ir.DataType) -> None:
        self.shape, self.tape, self._type = shape, ir.tape.Tape(), dtype
        self._seeds = np.random.SeedSequence(seed)
        self._constants: dict[str, ir.Value] = {}
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []

    def model(self) -> ir.Model:
        """Return the whole model; its weights are drawn when they are written."""
        shape = self.shape
        ids, mask, positions = (
            self._input(name, ["batch", length], ir.DataType.INT64)
            for name, length in (("input_ids", "sequence"), ("attention_mask", "total"), ("position_ids", "sequence"))
        )
        hidden_scores = self._hidden_scores(mask, positions)
        hidden = self._op("Gather", self._weight("embed.weight", shape.vocabulary, shape.width, 1.0), ids, at="embed")
        for layer in range(shape.layers):
            at = f"layers.{layer}"
            normed = self._norm(hidden, f"{at}/input_norm")
            hidden = self._op("Add", hidden, self._attention(normed, positions, hidden_scores, layer), at=f"{at}/attn")
            normed = self._norm(hidden, f"{at}/post_norm")
            hidden = self._op("Add", hidden, self._mlp(normed, at), at=f"{at}/mlp")
        logits = self._linear(self._norm(hidden, "norm"), "lm_head", shape.width, shape.vocabulary)
        self._output(logits, "logits", ["batch", "sequence", shape.vocabulary])
        self._outputs.insert(0, self._outputs.pop())
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": OPSET, "com.microsoft": 1},
            name="llama",
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="catonnx tools")

    def _attention(self, x: ir.Value, positions: ir.Value, hidden_scores: ir.Value, layer: int) -> ir.Value:
        shape, at = self.shape, f"layers.{layer}/attn"
        wide, narrow = shape.width, shape.kv_heads * shape.head_width
        query = self._heads(self._linear(x, f"{at}/q_proj", wide, wide), shape.heads, at)
        key = self._heads(self._linear(x, f"{at}/k_proj", wide, narrow), shape.kv_heads, at)
        value = self._heads(self._linear(x, f"{at}/v_proj", wide, narrow), shape.kv_heads, at)
        query = self._rotate(query, positions, shape.heads, at)
        key = self._rotate(key, positions, shape.kv_heads, at)
        key = self._repeat(self._cached(key, f"{layer}.key"), at)
        value = self._repeat(self._cached(value, f"{layer}.value"), at)
        scores = self._op("MatMul", query, self._op("Transpose", key, at=at, perm=[0, 1, 3, 2]), at=at)
        scores = self._op("Mul", scores, self._number("head_scale", shape.head_width**-0.5), at=at)
        scores = self._op("Add", scores, hidden_scores, at=at)
        mixed = self._op("MatMul", self._op("Softmax", scores, at=at, axis=-1), value, at=at)
        mixed = self._op("Transpose", mixed, at=at, perm=[0, 2, 1, 3])
        joined = self._op("Reshape", mixed, self._whole("joined", [0, 0, wide]), at=at)
        return self._linear(joined, f"{at}/o_proj", wide, wide, gain=self._residual_gain())

    def _mlp(self, x: ir.Value, layer: str) -> ir.Value:
        shape, at = self.shape, f"{layer}/mlp"
        gate = self._linear(x, f"{at}/gate_proj", shape.width, shape.intermediate)
        gate = self._op("Mul", gate, self._op("Sigmoid", gate, at=at), at=at)
        product = self._op("Mul", gate, self._linear(x, f"{at}/up_proj", shape.width, shape.intermediate), at=at)
        return self._linear(product, f"{at}/down_proj", shape.intermediate, shape.width, gain=self._residual_gain())

    def _norm(self, x: ir.Value, at: str) -> ir.Value:
        """RMSNorm in float32 inside, as transformers computes it."""
        generator = _generator(self._seeds.spawn(1)[0])
        scale = np.exp(0.2 * generator.standard_normal(self.shape.width))
        scale[generator.permutation(self.shape.width)[: self.shape.width // 64]] *= _OUTLIER
        scale /= np.sqrt(np.mean(scale**2))
        wide = self._op("Cast", x, at=at, to=ir.DataType.FLOAT)
        square = self._op("Pow", wide, self._constant("two", np.array(2.0, np.float32)), at=at)
        mean = self._op("ReduceMean", square, self._whole("last_axis", [-1]), at=at, keepdims=1)
        mean = self._op("Add", mean, self._constant("epsilon", np.array(1e-5, np.float32)), at=at)
        normed = self._op("Div", wide, self._op("Sqrt", mean, at=at), at=at)
        normed = self._op("Cast", normed, at=at, to=self._type)
        return self._op("Mul", normed, self._constant(f"{at}.weight", self._rounded(scale)), at=at)

    def _linear(self, x: ir.Value, name: str, inputs: int, outputs: int, gain: float = 1.0) -> ir.Value:
        return self._op("MatMul", x, self._weight(f"{name}.weight", inputs, outputs, gain * inputs**-0.5), at=name)

    def _heads(self, x: ir.Value, heads: int, at: str) -> ir.Value:
        split = self._op("Reshape", x, self._whole(f"heads_{heads}", [0, 0, heads, self.shape.head_width]), at=at)
        return self._op("Transpose", split, at=at, perm=[0, 2, 1, 3])

    def _rotate(self, x: ir.Value, positions: ir.Value, heads: int, at: str) -> ir.Value:
        half = self.shape.head_width // 2
        angles = np.arange(self.shape.positions)[:, None] * 10000.0 ** (-np.arange(half) / half)
        cosines = self._constant("rotary.cos", self._rounded(np.cos(angles)))
        sines = self._constant("rotary.sin", self._rounded(np.sin(angles)))
        rotated = self._op("RotaryEmbedding", x, positions, cosines, sines, at=at, domain="com.microsoft")
        # No shape inference of ONNX knows operators of other domains; exporters declare what comes out.
        rotated.shape = ir.Shape(["batch", heads, "sequence", self.shape.head_width])
        rotated.dtype = self._type
        return rotated

    def _cached(self, rows: ir.Value, name: str) -> ir.Value:
        shape = self.shape
        past = self._input(f"past_key_values.{name}", ["batch", shape.kv_heads, "past", shape.head_width])
        present = self._op("Concat", past, rows, at=f"cache.{name}", axis=2)
        self._output(present, f"present.{name}", ["batch", shape.kv_heads, "total", shape.head_width])
        return present

    def _repeat(self, rows: ir.Value, at: str) -> ir.Value:
        """Give every query head its own copy of the key or value head that it shares."""
        shape = self.shape
        if shape.heads == shape.kv_heads:
            return rows
        lifted = self._op("Unsqueeze", rows, self._whole("repeat_axis", [2]), at=at)
        copies = self._op("Expand", lifted, self._whole("repeat", [1, 1, shape.heads // shape.kv_heads, 1, 1]), at=at)
        return self._op("Reshape", copies, self._whole("all_heads", [0, shape.heads, -1, shape.head_width]), at=at)

    def _hidden_scores(self, mask: ir.Value, positions: ir.Value) -> ir.Value:
        """Return [batch, 1, sequence, total]: 0 where a position is seen, `_HIDDEN` where it comes later."""
        at = "mask"
        keys = self._op("CumSum", mask, self._constant("mask_axis", np.array(1, np.int64)), at=at)
        keys = self._op("Unsqueeze", keys, self._whole("key_axes", [1, 2]), at=at)
        queries = self._op("Unsqueeze", positions, self._whole("query_axes", [1, 3]), at=at)
        # CumSum counts from 1: the key at position p has the number p + 1.
        later = self._op("Greater", keys, self._op("Add", queries, self._whole("one", [1]), at=at), at=at)
        return self._op("Where", later, self._number("hidden", _HIDDEN), self._number("seen", 0.0), at=at)

    def _residual_gain(self) -> float:
        return float((2 * self.shape.layers) ** -0.5)

    def _op(self, kind: str, *inputs: ir.Value, at: str, domain: str = "", **attributes: object) -> ir.Value:
        name = f"/{at}/{kind}_{len(self.tape.nodes)}"
        return self.tape.op(kind, inputs, attributes, domain=domain, name=name)  # type: ignore[arg-type]

    def _input(self, name: str, dims: Sequence[int | str], dtype: ir.DataType | None = None) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype or self._type))
        self._inputs.append(value)
        return value

    def _output(self, value: ir.Value, name: str, dims: Sequence[int | str]) -> None:
        value.name, value.shape, value.dtype = name, ir.Shape(dims), self._type
        self._outputs.append(value)

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Return the initializer of this name; constants that occur in every layer are written once."""
        if name not in self._constants:
            self._constants[name] = self.tape.initializer(ir.tensor(array), name)
        return self._constants[name]

    def _whole(self, name: str, numbers: list[int]) -> ir.Value:
        return self._constant(name, np.array(numbers, np.int64))

    def _number(self, name: str, number: float) -> ir.Value:
        return self._constant(name, self._rounded(np.array(number)))

    def _rounded(self, array: np.ndarray) -> np.ndarray:
        """Return numbers that float16 holds, in the model's type."""
        return array.astype(np.float16).astype(self._type.numpy())

    def _weight(self, name: str, rows: int, columns: int, deviation: float) -> ir.Value:
        seed = self._seeds.spawn(1)[0]

        def draw() -> ir.TensorProtocol:
            numbers = _normal(_generator(seed), rows, columns, deviation)
            return ir.tensor(numbers.astype(self._type.numpy(), copy=False), name=name)

        return self.tape.initializer(ir.LazyTensor(draw, self._type, ir.Shape((rows, columns)), name=name), name)


def _generator(seed: np.random.SeedSequence) -> np.random.Generator:
    # SFC64 draws normal numbers a fifth faster than the default, and nothing here hangs on its quality.
    return np.random.Generator(np.random.SFC64(seed))


def _normal(generator: np.random.Generator, rows: int, columns: int, deviation: float) -> np.ndarray:
    """Return float16 (rows, columns) drawn in chunks: all at once in float32 would take three times the memory."""
    numbers = np.empty(rows * columns, np.float16)
    for start in range(0, numbers.size, _CHUNK):
        part = numbers[start : start + _CHUNK]
        part[:] = generator.standard_normal(part.size, dtype=np.float32) * np.float32(deviation)
    return numbers.reshape(rows, columns)
