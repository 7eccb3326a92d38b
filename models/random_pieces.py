"""What random graphs are made of: the graph as it grows, linears, and constants in the spellings of exporters."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx import TensorProto

from models.net import Arrays, Net

WIDTHS = (4, 6, 8, 12)
BATCH, PREFILL, DECODE = 2, 3, 1


@dataclasses.dataclass
class RandomGraph:
    """A net with everything that is needed to run it.

    Attributes:
        net: The graph.
        width: Channels of its input `x` [batch, seq, width].
        caches: (input, output, heads, head width) of each attention cache.
        seq: Name or length of the second axis.
        choose: Where every choice comes from.
        widths: Channels that steps may have.
    """

    net: Net
    width: int
    caches: list[tuple[str, str, int, int]]
    seq: str | int
    choose: random.Random
    widths: tuple[int, ...] = WIDTHS

    def feeds(self, length: int, pasts: Arrays | None = None) -> dict[str, np.ndarray]:
        """Return inputs for `length` new rows; without `pasts` the caches are empty."""
        feeds = {"x": np.random.default_rng(length).normal(size=(BATCH, length, self.width)).astype(np.float32)}
        for name, present, heads, depth in self.caches:
            empty = np.zeros((BATCH, heads, 0, depth), np.float32)
            feeds[name] = empty if pasts is None else pasts[present]
        return feeds


@dataclasses.dataclass(frozen=True)
class Flow:
    """The activation that the next step starts from: [batch, seq, width]."""

    value: str
    width: int


Step: TypeAlias = Callable[[RandomGraph, Flow], Flow]


def watched(graph: RandomGraph, flow: Flow) -> Flow:
    """Let somebody else read the value, now and then: an output, another node, or only its shape."""
    net, kind = graph.net, graph.choose.randrange(30)
    if kind == 0:
        net.output(flow.value)
    elif kind == 1:
        net.output(net.op("Tanh", flow.value))
    elif kind == 2:
        return Flow(net.op("Add", net.op("Sigmoid", flow.value), flow.value), flow.width)
    elif kind < 8:
        net.output(net.op("Cast", net.op("Shape", flow.value), to=TensorProto.FLOAT))
    return flow


def spelled(graph: RandomGraph, array: np.ndarray) -> str:
    """Return a constant in one of the spellings of exporters."""
    net = graph.net
    match graph.choose.randrange(9):
        case 0 if array.ndim == 2:
            return net.op("Transpose", net.constant(array.T.copy()), perm=[1, 0])
        case 1:
            return net.op("Identity", net.constant(array))
        case 2:
            return net.op("Cast", net.constant(array.astype(np.float16)), to=TensorProto.FLOAT)
        case 3:
            return net.constant_node(array)
        case _:
            return net.constant(array)


def vector(graph: RandomGraph, *shape: int) -> str:
    """Return a constant of positive numbers, spelled somehow."""
    return spelled(graph, graph.net.random.uniform(0.5, 2, size=shape))


def _weight(graph: RandomGraph, rows: int, columns: int) -> np.ndarray:
    return np.asarray(graph.net.random.normal(size=(rows, columns)) / np.sqrt(rows))


def linear(graph: RandomGraph, flow: Flow, width: int | None = None) -> Flow:
    """MatMul or Gemm, with or without a bias."""
    net, choose = graph.net, graph.choose
    width = width or choose.choice(graph.widths)
    if choose.random() < 0.15:
        return _gemm(graph, flow, width)
    result = net.op("MatMul", flow.value, spelled(graph, _weight(graph, flow.width, width)))
    if choose.random() < 0.4:
        shape = choose.choice(((width,), (1, width), (1, 1, width)))
        result = net.op("Add", *shuffled(choose, [result, vector(graph, *shape)]))
    return Flow(result, width)


def shuffled(choose: random.Random, values: list[str]) -> list[str]:
    """Return operands the other way round, now and then."""
    return values[::-1] if choose.random() < 0.3 else values


def _gemm(graph: RandomGraph, flow: Flow, width: int) -> Flow:
    net, choose = graph.net, graph.choose
    rows = net.op("Reshape", flow.value, net.constant([-1, flow.width]))
    turned, transposed = choose.random() < 0.2, choose.random() < 0.5
    if turned:
        rows = net.op("Transpose", rows, perm=[1, 0])
    weight = _weight(graph, flow.width, width)
    inputs = [rows, spelled(graph, weight.T.copy() if transposed else weight)]
    alpha, beta = choose.choice((1.0, 0.5)), choose.choice((1.0, 2.0))
    if width == flow.width and not turned and choose.random() < 0.15:
        inputs.append(rows)  # the value is read as the bias too
    elif choose.random() < 0.7:
        inputs.append(vector(graph, *choose.choice(((width,), (1, width), (1,), ()))))
    result = net.op("Gemm", *inputs, transA=int(turned), transB=int(transposed), alpha=alpha, beta=beta)
    return Flow(split_axes(graph, result, flow.value, [width]), width)


def split_axes(graph: RandomGraph, value: str, like: str, tail: Sequence[int]) -> str:
    """Reshape to [batch, seq, *tail], batch and seq being those of another value."""
    net, choose = graph.net, graph.choose
    if choose.random() < 0.5:
        shape = net.op("Shape", like)
        picked = [net.op("Gather", shape, net.constant([axis]), axis=0) for axis in (0, 1)]
        rest = [-1, *tail[1:]] if choose.random() < 0.5 else list(tail)
        return net.op("Reshape", value, net.op("Concat", *picked, net.constant(rest), axis=0))
    head = net.op("Slice", net.op("Shape", like), net.constant([0]), net.constant([2]))
    return net.op("Reshape", value, net.op("Concat", head, net.constant(list(tail)), axis=0))


def equal_parts(net: Net, value: str, count: int, axis: int, hint: str = "part") -> list[str]:
    """Split evenly, as every opset spells it."""
    told: dict[str, Any] = {"num_outputs": count} if net.opset >= 18 else {}
    return net.ops("Split", value, results=[net.name(hint) for _ in range(count)], axis=axis, **told)
