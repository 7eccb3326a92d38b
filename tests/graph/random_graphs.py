"""Random graphs from all rows of the absorb table, in random combination, with other readers at random places.

Every choice is drawn from one `random.Random`, so that hypothesis can hand in its own and shrink what fails.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from tests.graph.builder import Arrays, Net
from tests.graph.fused_attention import DEPTH, FusedAttention

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
    """

    net: Net
    width: int
    caches: list[tuple[str, str, int, int]]
    seq: str | int
    choose: random.Random

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


def random_graph(choose: random.Random) -> RandomGraph:
    """Draw a graph of one to four linears with up to three steps before each."""
    net = Net(choose.randrange(1 << 30), opset=choose.choice((21, 23)))
    width, seq = choose.choice(WIDTHS), choose.choice(("seq", "seq", PREFILL))
    graph = RandomGraph(net, width, [], seq, choose)
    flow = Flow(net.input("x", ["batch", seq, width]), width)
    for _ in range(choose.randint(1, 4)):
        start = flow
        if choose.random() < 0.6:
            flow = _watched(graph, linear(graph, flow))
        for _ in range(choose.choice((0, 1, 1, 2, 3))):
            flow = _watched(graph, choose.choice(STEPS)(graph, flow))
        flow = _site(graph, flow)
        if flow.width == start.width and choose.random() < 0.3:
            flow = Flow(net.op("Add", start.value, flow.value), flow.width)
    net.output(flow.value)
    return graph


def _watched(graph: RandomGraph, flow: Flow) -> Flow:
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


def _site(graph: RandomGraph, flow: Flow) -> Flow:
    """One to three linears that read the value; sometimes two of them share a weight."""
    net, choose = graph.net, graph.choose
    width = choose.choice(WIDTHS)
    readers = [linear(graph, _other_rows(graph, flow), width) for _ in range(choose.choice((1, 1, 2, 3)))]
    if choose.random() < 0.1:
        shared = net.normal(flow.width, width)
        readers += [Flow(net.op("MatMul", flow.value, shared), width) for _ in range(2)]
    result = readers[0]
    for other in readers[1:]:
        result = Flow(net.op("Add", result.value, other.value), width)
    return result


def _other_rows(graph: RandomGraph, flow: Flow) -> Flow:
    """The value itself or, now and then, its rows in another order, as the experts of a mixture read them."""
    net, turned = graph.net, [[1], [0]]
    match graph.choose.randrange(12):
        case 0:
            value = net.op("Gather", flow.value, net.constant([1, 0]), axis=0)
        case 1:
            value = net.op("GatherND", flow.value, net.constant(np.array(turned)))
        case 2:
            rows = net.op("Reshape", flow.value, net.constant([-1, flow.width]))
            return Flow(split_axes(graph, rows, flow.value, [flow.width]), flow.width)
        case 3:
            value = net.op("Squeeze", net.op("Unsqueeze", flow.value, net.constant([0])), net.constant([0]))
        case _:
            return flow
    return _watched(graph, Flow(value, flow.width))


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


def _vector(graph: RandomGraph, *shape: int) -> str:
    return spelled(graph, graph.net.random.uniform(0.5, 2, size=shape))


def _weight(graph: RandomGraph, rows: int, columns: int) -> np.ndarray:
    return np.asarray(graph.net.random.normal(size=(rows, columns)) / np.sqrt(rows))


def linear(graph: RandomGraph, flow: Flow, width: int | None = None) -> Flow:
    """MatMul or Gemm, with or without a bias."""
    net, choose = graph.net, graph.choose
    width = width or choose.choice(WIDTHS)
    if choose.random() < 0.15:
        return _gemm(graph, flow, width)
    result = net.op("MatMul", flow.value, spelled(graph, _weight(graph, flow.width, width)))
    if choose.random() < 0.4:
        shape = choose.choice(((width,), (1, width), (1, 1, width)))
        result = net.op("Add", *_shuffled(choose, [result, _vector(graph, *shape)]))
    return Flow(result, width)


def _shuffled(choose: random.Random, values: list[str]) -> list[str]:
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
        inputs.append(_vector(graph, *choose.choice(((width,), (1, width), (1,), ()))))
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


def _multiply(graph: RandomGraph, flow: Flow) -> Flow:
    net, choose = graph.net, graph.choose
    shapes: list[tuple[int, ...]] = [(), (1,), (flow.width,), (1, flow.width), (1, 1, flow.width), (1, 1, 1)]
    if isinstance(graph.seq, int):
        shapes += [(graph.seq, 1), (1, graph.seq, 1), (graph.seq, flow.width)]
    constant = _vector(graph, *choose.choice(shapes))
    if choose.random() < 0.3:
        return Flow(net.op("Div", flow.value, constant), flow.width)
    return Flow(net.op("Mul", *_shuffled(choose, [flow.value, constant])), flow.width)


def _add(graph: RandomGraph, flow: Flow) -> Flow:
    net, choose = graph.net, graph.choose
    shapes: list[tuple[int, ...]] = [(), (1,), (flow.width,), (1, flow.width), (1, 1, flow.width)]
    if isinstance(graph.seq, int):
        shapes += [(graph.seq, 1), (graph.seq, flow.width)]
    constant = _vector(graph, *choose.choice(shapes))
    operator = choose.choice(("Add", "Sub"))
    return Flow(net.op(operator, *_shuffled(choose, [flow.value, constant])), flow.width)


def _lifted(graph: RandomGraph, flow: Flow) -> Flow:
    """A constant of higher rank adds an axis, which a Reshape takes away again."""
    net, choose = graph.net, graph.choose
    rows = net.op("Reshape", flow.value, net.constant([-1, flow.width]))
    if choose.random() < 0.5:
        rows = net.op("MatMul", rows, net.normal(flow.width, flow.width))
    shape = choose.choice(((1, 1, 1), (1, 1, flow.width)))
    operator = choose.choice(("Mul", "Add", "Div"))
    return Flow(split_axes(graph, net.op(operator, rows, _vector(graph, *shape)), flow.value, [flow.width]), flow.width)


def _norm(graph: RandomGraph, flow: Flow) -> Flow:
    net, choose = graph.net, graph.choose
    scale, bias = _vector(graph, flow.width), _vector(graph, flow.width)
    kind = choose.randrange(7)
    if kind == 0:
        inputs = [flow.value, scale, bias][: choose.choice((2, 3))]
        return Flow(net.op("LayerNormalization", *inputs, axis=-1), flow.width)
    if kind == 1:
        return Flow(net.op("SimplifiedLayerNormalization", flow.value, scale, axis=-1), flow.width)
    if kind == 2 and net.opset == 23:
        return Flow(net.op("RMSNormalization", flow.value, scale, axis=-1), flow.width)
    if kind == 3:
        skip = net.op("Tanh", flow.value)
        operator, count = choose.choice((("SkipSimplifiedLayerNormalization", 3), ("SkipLayerNormalization", 4)))
        inputs = [flow.value, skip, scale, bias][:count]
        return Flow(net.op(operator, *inputs, domain="com.microsoft"), flow.width)
    value = flow.value
    if kind > 4:
        value = net.op("Sub", value, net.op("ReduceMean", value, net.constant([-1]), keepdims=1))
    mean = net.op("ReduceMean", net.op("Pow", value, net.constant(2.0)), net.constant([-1]), keepdims=1)
    root = net.op("Sqrt", net.op("Add", mean, net.constant(1e-2)))
    value = net.op("Div", value, root)
    value = net.op("Mul", *_shuffled(choose, [value, scale]))
    return Flow(net.op("Add", value, bias) if choose.random() < 0.5 else value, flow.width)


def _pointwise(graph: RandomGraph, flow: Flow) -> Flow:
    net = graph.net
    operator = graph.choose.choice(
        (
            "Relu",
            "Relu",
            "LeakyRelu",
            "LeakyRelu",
            "Sigmoid",
            "Tanh",
            "Softplus",
            "Identity",
            "Dropout",
            "Dropout",
            "silu",
            "gelu",
            "clip",
            "cast",
            "square",
        )
    )
    if operator == "square":
        positive = net.op("Relu", flow.value)
        second = net.constant(2.0) if graph.choose.random() < 0.5 else positive
        return Flow(net.op("Mul" if second is positive else "Pow", positive, second), flow.width)
    if operator == "gelu":
        return Flow(_gelu(graph, flow.value), flow.width)
    if operator == "clip":
        return Flow(net.op("Clip", flow.value, net.constant(-1.5), net.constant(2.0)), flow.width)
    if operator == "silu":
        return Flow(net.op("Mul", flow.value, net.op("Sigmoid", flow.value)), flow.width)
    if operator == "cast":
        wide = net.op("Cast", flow.value, to=TensorProto.DOUBLE)
        return Flow(net.op("Cast", wide, to=TensorProto.FLOAT), flow.width)
    return Flow(net.op(operator, flow.value), flow.width)


def _gelu(graph: RandomGraph, value: str) -> str:
    """Gelu as one node or in pieces, as exporters write it."""
    net = graph.net
    if graph.choose.random() < 0.4:
        return net.op("Gelu", value)
    if graph.choose.random() < 0.5:
        inner = net.op("Add", net.op("Erf", net.op("Div", value, net.constant(1.4142))), net.constant(1.0))
    else:
        cube = net.op("Mul", net.op("Pow", value, net.constant(3.0)), net.constant(0.0447))
        inner = net.op("Mul", net.op("Add", value, cube), net.constant(0.7979))
        inner = net.op("Add", net.op("Tanh", inner), net.constant(1.0))
    return net.op("Mul", net.op("Mul", value, inner), net.constant(0.5))


def _gate(graph: RandomGraph, flow: Flow) -> Flow:
    net, choose = graph.net, graph.choose
    width = choose.choice(WIDTHS)
    up, gate = linear(graph, flow, width), linear(graph, flow, choose.choice((width, width, width, 1)))
    gate = Flow(net.op(choose.choice(("Sigmoid", "Relu", "Softplus", "Identity")), gate.value), gate.width)
    if choose.random() < 0.3:
        gate = Flow(net.op("Mul", gate.value, net.op("Sigmoid", gate.value)), gate.width)
    up, gate = _watched(graph, up), _watched(graph, gate)
    if choose.random() < 0.15:
        return Flow(net.op("Div", up.value, net.op("Exp", net.op("Tanh", gate.value))), width)
    return Flow(net.op("Mul", *_shuffled(choose, [up.value, gate.value])), width)


def _sum(graph: RandomGraph, flow: Flow) -> Flow:
    net, choose = graph.net, graph.choose
    width = choose.choice(WIDTHS)
    left = _pointwise(graph, linear(graph, flow, width)) if choose.random() < 0.5 else linear(graph, flow, width)
    right = linear(graph, flow, choose.choice((width, width, width, 1)))
    return Flow(net.op(choose.choice(("Add", "Sub")), left.value, right.value), width)


def _split(graph: RandomGraph, flow: Flow) -> Flow:
    """A fused projection cut in parts, of which one, or a combination, goes on."""
    net, choose = graph.net, graph.choose
    width = choose.choice(WIDTHS)
    whole = linear(graph, flow, 2 * width + (2 if choose.random() < 0.3 else 0))
    if choose.random() < 0.3:
        whole = _norm(graph, whole)
    sizes = [width, width, whole.width - 2 * width] if whole.width > 2 * width else [width, width]
    parts = net.ops("Split", whole.value, net.constant(sizes), results=[net.name("part") for _ in sizes], axis=-1)
    if len(sizes) == 3:
        net.output(parts[2])
    match choose.randrange(4):
        case 0:
            net.output(parts[1])
            return Flow(parts[0], width)
        case 1:
            return Flow(net.op("Concat", parts[1], parts[0], axis=-1), 2 * width)
        case 2:
            return Flow(net.op("Mul", parts[0], net.op("Sigmoid", parts[1])), width)
        case _:
            return Flow(net.op("Add", parts[0], parts[1]), width)


def _parts(graph: RandomGraph, flow: Flow) -> Flow:
    """Three windows of a fused projection, of which one, or two together, go on; now and then two overlap."""
    net, choose = graph.net, graph.choose
    width = choose.choice(WIDTHS)
    whole = linear(graph, flow, 3 * width)
    if choose.random() < 0.2:
        whole = _norm(graph, whole)
    kind = choose.choice(("Slice", "Slice", "Gather", "Split"))
    if kind == "Slice":
        starts = [index * width for index in range(3)]
        starts[choose.randrange(1, 3)] -= choose.random() < 0.15
        cuts = [[net.constant([bound]) for bound in (start, start + width, choose.choice((2, -1)))] for start in starts]
        values = [net.op("Slice", whole.value, *bounds) for bounds in cuts]
    else:
        turned = choose.random() < 0.3
        stack = split_axes(graph, whole.value, flow.value, [width, 3] if turned else [3, width])
        axis = 3 if turned else 2
        if kind == "Gather":
            indices = [0, choose.choice((1, -2)), 2]
            if choose.random() < 0.3:  # a list of one index keeps the axis
                kept = [net.op("Gather", stack, net.constant([index]), axis=axis) for index in indices]
                values = [net.op("Squeeze", value, net.constant([axis])) for value in kept]
            else:
                values = [net.op("Gather", stack, net.constant(np.array(index)), axis=axis) for index in indices]
        else:
            names = net.ops("Split", stack, results=[net.name("part") for _ in range(3)], axis=axis, num_outputs=3)
            values = [net.op("Squeeze", name, net.constant([axis])) for name in names]
    first, second, third = choose.sample(values, 3)
    net.output(net.op("Tanh", third))
    match choose.randrange(3):
        case 0:
            net.output(second)
            return Flow(first, width)
        case 1:
            return Flow(net.op("Mul", first, net.op("Sigmoid", second)), width)
        case _:
            return Flow(net.op("Add", first, second), width)


def _shuffle(graph: RandomGraph, flow: Flow) -> Flow:
    """Channels in two axes, turned, and back in one."""
    net, choose = graph.net, graph.choose
    first = choose.choice([k for k in (1, 2, 3) if flow.width % k == 0])
    value = split_axes(graph, flow.value, flow.value, [first, flow.width // first])
    if choose.random() < 0.3:
        value = net.op("Mul", value, _vector(graph, *choose.choice(((first, 1), (1, flow.width // first)))))
    if choose.random() < 0.7:
        value = net.op("Transpose", value, perm=[0, 1, 3, 2])
    if choose.random() < 0.2:
        value = net.op("Squeeze", net.op("Unsqueeze", value, net.constant([2])), net.constant([2]))
    return Flow(split_axes(graph, value, value, [flow.width]), flow.width)


def _repeat(graph: RandomGraph, flow: Flow) -> Flow:
    """Channels repeated, each on the spot or all behind each other; sometimes cut apart again."""
    net, choose = graph.net, graph.choose
    times = choose.choice((2, 3))
    if choose.random() < 0.5:
        value, wide = net.op("Unsqueeze", flow.value, net.constant([2])), [times, flow.width]
    else:
        value, wide = net.op("Unsqueeze", flow.value, net.constant([-1])), [flow.width, times]
    value = net.op("Expand", value, net.constant([1, 1, *wide]))
    if choose.random() < 0.3 and wide[0] == 2:
        value, other = net.ops("Split", value, results=[net.name("part"), net.name("part")], axis=2, num_outputs=2)
        net.output(other)
        wide[0] = 1
    width = wide[0] * wide[1]
    return Flow(split_axes(graph, value, value, [width]), width)


def _rows(graph: RandomGraph, flow: Flow) -> Flow:
    """Rows joined to rows and cut off again."""
    net = graph.net
    left, right = linear(graph, flow, flow.width), linear(graph, flow, flow.width)
    joined = net.op("Concat", left.value, right.value, axis=0)
    if graph.choose.random() < 0.5:
        joined = net.op("MatMul", joined, net.normal(flow.width, flow.width))
    return Flow(net.op("Slice", joined, net.constant([0]), net.constant([BATCH]), net.constant([0])), flow.width)


def _attention(graph: RandomGraph, flow: Flow) -> Flow:
    """Heads, query groups, a fused or plain projection, with or without a cache of keys and values."""
    net, choose = graph.net, graph.choose
    groups, repeats, depth = choose.choice((1, 2, 3)), choose.choice((1, 2)), choose.choice((2, 3, 4))
    heads = groups * repeats
    query = _heads(graph, linear(graph, flow, heads * depth), heads, depth)
    if choose.random() < 0.3:
        fused = linear(graph, flow, 2 * groups * depth)
        names = net.ops("Split", fused.value, results=[net.name("k"), net.name("v")], axis=-1, num_outputs=2)
        flows = [Flow(name, groups * depth) for name in names]
    else:
        flows = [linear(graph, flow, groups * depth) for _ in range(2)]
    states = [_watched(graph, Flow(_heads(graph, part, groups, depth), depth)).value for part in flows]
    if graph.seq == "seq" and choose.random() < 0.5:
        states = [_cached(graph, state, groups, depth) for state in states]
    keys, values = (_repeated(graph, state, repeats, heads, depth) for state in states)
    scores = net.op("MatMul", query, net.op("Transpose", keys, perm=[0, 1, 3, 2]))
    weights = net.op("Softmax", scores, axis=-1)
    product = _merged_product if choose.random() < 0.3 else _product
    mixed = product(net, weights, values, heads, depth)
    return Flow(_joined(graph, mixed, heads * depth), heads * depth)


def _fused_attention(graph: RandomGraph, flow: Flow) -> Flow:
    """Attention as one operator."""
    net, choose = graph.net, graph.choose
    operators = ["GroupQueryAttention", "MultiHeadAttention", "Attention", *(["standard"] if net.opset == 23 else [])]
    operator = choose.choice(operators)
    shared, free = choose.choice((1, 2)), graph.seq == "seq"
    repeats = choose.choice((1, 2, 3)) if operator in ("GroupQueryAttention", "standard") else 1
    # The standard's is left out: ONNX Runtime runs it only with both present outputs, and `cut` keeps what is read.
    cache = operator in ("GroupQueryAttention", "MultiHeadAttention") and free and choose.random() < 0.5
    narrow = operator == "standard" or (operator == "MultiHeadAttention" and not cache)  # as ONNX Runtime has it
    attention = FusedAttention(
        operator,
        heads=shared * repeats,
        shared=shared,
        packed=choose.random() < 0.5,
        cache=cache,
        axes=4 if operator == "standard" and choose.random() < 0.5 else 3,
        bias=operator == "Attention" or choose.random() < 0.5,
        rotary=choose.random() < 0.3,
        mask=not free and choose.random() < 0.5,
        value_depth=8 if narrow and choose.random() < 0.3 else DEPTH,
        channels=flow.width,
        tag=net.name(""),
    )
    value = attention.output(net, flow.value)
    graph.caches += attention.caches
    if attention.axes == 4:
        return Flow(_joined(graph, value, attention.width), attention.width)
    return Flow(value, attention.width)


def _heads(graph: RandomGraph, flow: Flow, heads: int, depth: int) -> str:
    """[batch, seq, heads * depth] -> [batch, heads, seq, depth], sometimes with the depth before the heads."""
    net, choose = graph.net, graph.choose
    if choose.random() < 0.1:
        value = split_axes(graph, flow.value, flow.value, [depth, heads])
        return net.op("Transpose", value, perm=[0, 3, 1, 2])
    value = split_axes(graph, flow.value, flow.value, [heads, depth])
    return net.op("Transpose", value, perm=[0, 2, 1, 3])


def _product(net: Net, weights: str, values: str, *_: int) -> str:
    return net.op("MatMul", weights, values)


def _merged_product(net: Net, weights: str, values: str, heads: int, depth: int) -> str:
    """The same with batch and heads on one axis, as Bloom's exports have it."""
    batch, rows, columns = (net.op("Shape", weights, start=axis, end=axis + 1) for axis in (0, 2, 3))
    both = net.op("Mul", batch, net.constant([heads]))
    values = net.op("Expand", values, net.constant([1, heads, 1, 1]))
    left = net.op("Reshape", weights, net.op("Concat", both, rows, columns, axis=0))
    right = net.op("Reshape", values, net.op("Concat", both, net.constant([-1, depth]), axis=0))
    apart = net.op("Concat", batch, net.constant([heads]), rows, net.constant([depth]), axis=0)
    return net.op("Reshape", net.op("MatMul", left, right), apart)


def _joined(graph: RandomGraph, value: str, width: int) -> str:
    net, choose = graph.net, graph.choose
    order = [0, 2, 1, 3] if choose.random() < 0.9 else [0, 2, 3, 1]
    turned = net.op("Transpose", value, perm=order)
    return split_axes(graph, turned, turned, [width])


def _cached(graph: RandomGraph, state: str, groups: int, depth: int) -> str:
    net = graph.net
    past = net.input(net.name("past"), ["batch", groups, "past", depth])
    present = net.op("Concat", past, state, axis=2)
    net.output(present)
    graph.caches.append((past, present, groups, depth))
    return present


def _repeated(graph: RandomGraph, state: str, repeats: int, heads: int, depth: int) -> str:
    net, choose = graph.net, graph.choose
    groups = heads // repeats
    if repeats == 1 or (groups == 1 and choose.random() < 0.5):
        return state  # one group of keys and values is broadcast by the product itself
    axis = choose.choice((1, 2, 2))
    wide = net.op("Unsqueeze", state, net.constant([axis]))
    shape = [1, repeats, 1, 1, 1] if axis == 1 else [1, 1, repeats, 1, 1]
    wide = net.op("Expand", wide, net.constant(shape))
    if choose.random() < 0.5:
        return net.op("Reshape", wide, net.constant([0, heads, -1, depth]))
    length = net.op("Gather", net.op("Shape", state), net.constant([2]), axis=0)
    target = net.op("Concat", net.constant([-1, heads]), length, net.constant([depth]), axis=0)
    return net.op("Reshape", wide, target)


STEPS: tuple[Callable[[RandomGraph, Flow], Flow], ...] = (
    linear,
    _multiply,
    _multiply,
    _add,
    _lifted,
    _norm,
    _norm,
    _pointwise,
    _pointwise,
    _pointwise,
    _gate,
    _sum,
    _split,
    _parts,
    _parts,
    _shuffle,
    _repeat,
    _rows,
    _attention,
    _attention,
    _attention,
    _fused_attention,
    _fused_attention,
)
