"""One attention layer whose attention is a single operator, in all forms that are followed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from onnx import TensorProto

from models.net import Arrays, Net

BATCH, CHANNELS, DEPTH = 2, 6, 16


def masked(net: Net) -> str:
    """Add a mask that hides some keys, -1000 where hidden, broadcast over batch and heads, for 3 rows."""
    return net.constant(np.triu(np.full((1, 1, 3, 3), -1000.0, np.float32), 1))


def _trimmed(inputs: list[str]) -> list[str]:
    return _trimmed(inputs[:-1]) if not inputs[-1] else inputs


@dataclasses.dataclass(frozen=True)
class FusedAttention:
    """Options of one layer; the fields name what deviates from the plainest one.

    Attributes:
        operator: `GroupQueryAttention`, `MultiHeadAttention`, `Attention` (ONNX Runtime's), `standard` (opset 23).
        heads: Query heads.
        shared: Heads of keys and values.
        packed: Whether Q, K and V come side by side out of one linear.
        cache: Whether keys and values are joined to graph inputs.
        axes: Rank of Q, K and V: 3, or 4 with the heads on an axis of their own.
        bias: Whether the operator adds a bias to Q, K and V, or has it in its projection.
        rotary: Whether the operator rotates Q and K.
        mask: Whether some scores are masked.
        value_depth: Channels of a head of values, where they may differ from those of keys.
        attributes: More attributes.
        channels: Channels of what it attends.
        tag: Behind the names of inputs and outputs.
    """

    operator: str = "GroupQueryAttention"
    heads: int = 2
    shared: int = 2
    packed: bool = False
    cache: bool = False
    axes: int = 3
    bias: bool = False
    rotary: bool = False
    mask: bool = False
    value_depth: int = DEPTH
    attributes: tuple[tuple[str, Any], ...] = ()
    channels: int = CHANNELS
    tag: str = ""

    @property
    def width(self) -> int:
        """Channels of the output."""
        return self.heads * self.value_depth

    def net(self) -> Net:
        """Build the layer on x [batch, seq, channels], with one linear behind it."""
        net = Net(seed=3, opset=23)
        x = net.input("x", ["batch", "seq", self.channels])
        out = self.output(net, x)
        if self.axes == 4:
            out = net.op("Transpose", out, perm=[0, 2, 1, 3])
            out = net.op("Reshape", out, net.constant([0, 0, self.width]))
        net.output(net.op("MatMul", out, net.normal(self.width, 5), result="y"))
        return net

    def output(self, net: Net, x: str) -> str:
        """Add the attention of a value [batch, seq, channels]."""
        return {
            "GroupQueryAttention": self._grouped,
            "MultiHeadAttention": self._multi_head,
            "Attention": self._projecting,
            "standard": self._standard,
        }[self.operator](net, x)

    def feeds(self, length: int = 3, pasts: Arrays | None = None) -> dict[str, np.ndarray]:
        """Return inputs for some new rows; without `pasts` the caches are empty."""
        feeds = {"x": np.random.default_rng(length).normal(size=(BATCH, length, self.channels)).astype(np.float32)}
        for past, present, heads, depth in self.caches:
            feeds[past] = np.zeros((BATCH, heads, 0, depth), np.float32) if pasts is None else pasts[present]
        return feeds

    @property
    def caches(self) -> list[tuple[str, str, int, int]]:
        """(input, output, heads, channels of a head) of keys and of values; none without a cache."""
        depths = {"key": DEPTH, "value": self.value_depth} if self.cache else {}
        return [
            (f"past_{name}{self.tag}", f"present_{name}{self.tag}", self.shared, depth)
            for name, depth in depths.items()
        ]

    def _parts(self, net: Net, x: str) -> list[str]:
        """Q, K and V of rank 3 or 4."""
        parts = []
        for heads, depth in ((self.heads, DEPTH), (self.shared, DEPTH), (self.shared, self.value_depth)):
            rows = net.op("MatMul", x, net.normal(self.channels, heads * depth))
            if self.axes == 4:
                rows = net.op("Reshape", rows, net.constant([0, 0, heads, depth]))
                rows = net.op("Transpose", rows, perm=[0, 2, 1, 3])
            parts.append(rows)
        return parts

    def _pasts(self, net: Net) -> list[str]:
        pasts = [net.input(past, ["batch", heads, "past", depth]) for past, _, heads, depth in self.caches]
        return pasts or ["", ""]

    def _results(self, net: Net, output: str) -> list[str]:
        return [output, *(net.output(present) for _, present, _, _ in self.caches)]

    def _grouped(self, net: Net, x: str) -> str:
        parts = self._parts(net, x)
        if self.packed:
            total = (self.heads + 2 * self.shared) * DEPTH
            bias = net.vector(total)
            parts = [net.op("Add", net.op("MatMul", x, net.normal(self.channels, total)), bias), "", ""]
        pasts = self._pasts(net)
        total_length = net.op("Shape", x, start=1, end=2)
        if self.cache:
            total_length = net.op("Add", total_length, net.op("Shape", pasts[0], start=2, end=3))
        total_length = net.op("Cast", total_length, to=TensorProto.INT32)
        last = net.op("Sub", total_length, net.constant(np.array([1], np.int32)))
        lengths = net.op("Expand", last, net.op("Shape", x, start=0, end=1))
        scalar = net.op("Squeeze", total_length)
        angles = net.random.uniform(size=(12, DEPTH // 2))
        tables = [net.constant(np.cos(angles)), net.constant(np.sin(angles))] if self.rotary else ["", ""]
        inputs = _trimmed([*parts, *pasts, lengths, scalar, *tables, "", masked(net) if self.mask else ""])
        attributes: dict[str, Any] = {
            "num_heads": self.heads,
            "kv_num_heads": self.shared,
            "do_rotary": int(self.rotary),
        }
        results = self._results(net, net.name("attended"))
        return net.ops(
            "GroupQueryAttention",
            *inputs,
            results=results,
            domain="com.microsoft",
            **attributes,
            **dict(self.attributes),
        )[0]

    def _multi_head(self, net: Net, x: str) -> str:
        parts = self._parts(net, x)
        widths = [self.heads * DEPTH, self.heads * DEPTH, self.width]
        bias = net.vector(sum(widths)) if self.bias else ""
        inputs = _trimmed([*parts, bias, "", masked(net) if self.mask else "", *self._pasts(net)])
        return net.ops(
            "MultiHeadAttention",
            *inputs,
            results=self._results(net, net.name("attended")),
            domain="com.microsoft",
            num_heads=self.heads,
            **dict(self.attributes),
        )[0]

    def _projecting(self, net: Net, x: str) -> str:
        widths = [self.heads * DEPTH, self.heads * DEPTH, self.width]
        bias = net.vector(sum(widths)) if self.bias else ""
        inputs = _trimmed([x, net.normal(self.channels, sum(widths)), bias, "", "", masked(net) if self.mask else ""])
        sizes: dict[str, Any] = {} if self.value_depth == DEPTH else {"qkv_hidden_sizes": widths}
        value = net.op(
            "Attention", *inputs, domain="com.microsoft", num_heads=self.heads, **sizes, **dict(self.attributes)
        )
        # Its shape is not inferred where widths differ.
        return net.op("Reshape", value, net.constant([0, 0, self.width])) if sizes else value

    def _standard(self, net: Net, x: str) -> str:
        heads: dict[str, Any] = {"q_num_heads": self.heads, "kv_num_heads": self.shared} if self.axes == 3 else {}
        inputs = _trimmed([*self._parts(net, x), masked(net) if self.mask else "", *self._pasts(net)])
        results = self._results(net, net.name("attended"))
        return net.ops("Attention", *inputs, results=results, **heads, **dict(self.attributes))[0]
