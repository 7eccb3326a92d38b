"""Random graphs from all rows of the absorb table, in random combination, with other readers at random places.

Every choice is drawn from one `random.Random`, so that hypothesis can hand in its own and shrink what fails.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from models.net import Net
from models.random_attention import attention, fused_attention
from models.random_pieces import (
    BATCH,
    PREFILL,
    WIDTHS,
    Flow,
    RandomGraph,
    Step,
    equal_parts,
    linear,
    shuffled,
    split_axes,
    vector,
    watched,
)


def random_graph(
    choose: random.Random,
    *,
    opsets: Sequence[int] = (21, 23),
    widths: tuple[int, ...] = WIDTHS,
    more_steps: Sequence[Step] = (),
) -> RandomGraph:
    """Draw a graph of one to four linears with up to three steps before each.

    Args:
        choose: Where every choice comes from.
        opsets: One of them is taken.
        widths: Channels that steps may have.
        more_steps: Drawn from beside `STEPS`.
    """
    net = Net(choose.randrange(1 << 30), opset=choose.choice(opsets))
    width, seq = choose.choice(widths), choose.choice(("seq", "seq", PREFILL))
    graph = RandomGraph(net, width, [], seq, choose, widths)
    flow = Flow(net.input("x", ["batch", seq, width]), width)
    steps = (*STEPS, *more_steps)
    for _ in range(choose.randint(1, 4)):
        start = flow
        if choose.random() < 0.6:
            flow = watched(graph, linear(graph, flow))
        for _ in range(choose.choice((0, 1, 1, 2, 3))):
            flow = watched(graph, choose.choice(steps)(graph, flow))
        flow = _site(graph, flow)
        if flow.width == start.width and choose.random() < 0.3:
            flow = Flow(net.op("Add", start.value, flow.value), flow.width)
    net.output(flow.value)
    return graph


def _site(graph: RandomGraph, flow: Flow) -> Flow:
    """One to three linears that read the value; sometimes two of them share a weight."""
    net, choose = graph.net, graph.choose
    width = choose.choice(graph.widths)
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
    return watched(graph, Flow(value, flow.width))


def _multiply(graph: RandomGraph, flow: Flow) -> Flow:
    net, choose = graph.net, graph.choose
    shapes: list[tuple[int, ...]] = [(), (1,), (flow.width,), (1, flow.width), (1, 1, flow.width), (1, 1, 1)]
    if isinstance(graph.seq, int):
        shapes += [(graph.seq, 1), (1, graph.seq, 1), (graph.seq, flow.width)]
    constant = vector(graph, *choose.choice(shapes))
    if choose.random() < 0.3:
        return Flow(net.op("Div", flow.value, constant), flow.width)
    return Flow(net.op("Mul", *shuffled(choose, [flow.value, constant])), flow.width)


def _add(graph: RandomGraph, flow: Flow) -> Flow:
    net, choose = graph.net, graph.choose
    shapes: list[tuple[int, ...]] = [(), (1,), (flow.width,), (1, flow.width), (1, 1, flow.width)]
    if isinstance(graph.seq, int):
        shapes += [(graph.seq, 1), (graph.seq, flow.width)]
    constant = vector(graph, *choose.choice(shapes))
    operator = choose.choice(("Add", "Sub"))
    return Flow(net.op(operator, *shuffled(choose, [flow.value, constant])), flow.width)


def _lifted(graph: RandomGraph, flow: Flow) -> Flow:
    """A constant of higher rank adds an axis, which a Reshape takes away again."""
    net, choose = graph.net, graph.choose
    rows = net.op("Reshape", flow.value, net.constant([-1, flow.width]))
    if choose.random() < 0.5:
        rows = net.op("MatMul", rows, net.normal(flow.width, flow.width))
    shape = choose.choice(((1, 1, 1), (1, 1, flow.width)))
    operator = choose.choice(("Mul", "Add", "Div"))
    return Flow(split_axes(graph, net.op(operator, rows, vector(graph, *shape)), flow.value, [flow.width]), flow.width)


def _norm(graph: RandomGraph, flow: Flow) -> Flow:
    net, choose = graph.net, graph.choose
    scale, bias = vector(graph, flow.width), vector(graph, flow.width)
    kind = choose.randrange(7)
    if kind == 0 and net.opset >= 17:
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
        value = net.op("Sub", value, _mean(net, value))
    mean = _mean(net, net.op("Pow", value, net.constant(2.0)))
    root = net.op("Sqrt", net.op("Add", mean, net.constant(1e-2)))
    value = net.op("Div", value, root)
    value = net.op("Mul", *shuffled(choose, [value, scale]))
    return Flow(net.op("Add", value, bias) if choose.random() < 0.5 else value, flow.width)


def _mean(net: Net, value: str) -> str:
    """Over channels, as every opset spells it."""
    if net.opset < 18:
        return net.op("ReduceMean", value, axes=[-1], keepdims=1)
    return net.op("ReduceMean", value, net.constant([-1]), keepdims=1)


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
    if graph.choose.random() < 0.4 and net.opset >= 20:
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
    width = choose.choice(graph.widths)
    up, gate = linear(graph, flow, width), linear(graph, flow, choose.choice((width, width, width, 1)))
    gate = Flow(net.op(choose.choice(("Sigmoid", "Relu", "Softplus", "Identity")), gate.value), gate.width)
    if choose.random() < 0.3:
        gate = Flow(net.op("Mul", gate.value, net.op("Sigmoid", gate.value)), gate.width)
    up, gate = watched(graph, up), watched(graph, gate)
    if choose.random() < 0.15:
        return Flow(net.op("Div", up.value, net.op("Exp", net.op("Tanh", gate.value))), width)
    return Flow(net.op("Mul", *shuffled(choose, [up.value, gate.value])), width)


def _sum(graph: RandomGraph, flow: Flow) -> Flow:
    net, choose = graph.net, graph.choose
    width = choose.choice(graph.widths)
    left = _pointwise(graph, linear(graph, flow, width)) if choose.random() < 0.5 else linear(graph, flow, width)
    right = linear(graph, flow, choose.choice((width, width, width, 1)))
    return Flow(net.op(choose.choice(("Add", "Sub")), left.value, right.value), width)


def _split(graph: RandomGraph, flow: Flow) -> Flow:
    """A fused projection cut in parts, of which one, or a combination, goes on."""
    net, choose = graph.net, graph.choose
    width = choose.choice(graph.widths)
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
    width = choose.choice(graph.widths)
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
            names = equal_parts(net, stack, 3, axis)
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
        value = net.op("Mul", value, vector(graph, *choose.choice(((first, 1), (1, flow.width // first)))))
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
        value, other = equal_parts(net, value, 2, 2)
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


STEPS: tuple[Step, ...] = (
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
    attention,
    attention,
    attention,
    fused_attention,
    fused_attention,
)
