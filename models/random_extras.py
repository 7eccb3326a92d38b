"""More steps of random graphs: what exporters write beside the rows of the absorb table, and what nobody should.

Each takes a value [batch, seq, width] and returns another, like those of `random_graphs`.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from models.random_pieces import BATCH, Flow, RandomGraph, Step, linear, spelled, split_axes

ODD_WIDTHS = (1, 3, 4, 6, 7, 8, 12, 13, 16, 24, 32)


def tied(graph: RandomGraph, flow: Flow) -> Flow:
    """One weight read three ways: a row of it is looked up, it multiplies, and its transpose multiplies."""
    net, choose = graph.net, graph.choose
    size = choose.choice(graph.widths)
    table = net.normal(size, flow.width)
    row = net.op("Gather", table, net.constant([choose.randrange(size)]), axis=0)
    value = net.op("Add", flow.value, row)
    logits = Flow(net.op("MatMul", value, net.op("Transpose", table, perm=[1, 0])), size)
    if choose.random() < 0.5:
        return Flow(net.op("MatMul", net.op("Softmax", logits.value, axis=-1), table), flow.width)
    return logits


def constant_left(graph: RandomGraph, flow: Flow) -> Flow:
    """The weight is the left factor of the product, or of a Gemm."""
    net, choose = graph.net, graph.choose
    width = choose.choice(graph.widths)
    if choose.random() < 0.5:
        turned = net.op("Transpose", flow.value, perm=[0, 2, 1])
        product = net.op("MatMul", spelled(graph, net.random.normal(size=(width, flow.width))), turned)
        return Flow(net.op("Transpose", product, perm=[0, 2, 1]), width)
    rows = net.op("Reshape", flow.value, net.constant([-1, flow.width]))
    product = net.op("Gemm", net.normal(width, flow.width), rows, transB=1)
    return Flow(split_axes(graph, net.op("Transpose", product, perm=[1, 0]), flow.value, [width]), width)


def batched(graph: RandomGraph, flow: Flow) -> Flow:
    """A weight with a batch axis of its own: of one, or of as many as there are."""
    net, choose = graph.net, graph.choose
    width = choose.choice(graph.widths)
    return Flow(net.op("MatMul", flow.value, net.normal(choose.choice((1, BATCH)), flow.width, width)), width)


def chain(graph: RandomGraph, flow: Flow) -> Flow:
    """Up to five nodes that change nothing."""
    net, choose, value = graph.net, graph.choose, flow.value
    for _ in range(choose.randint(1, 5)):
        match choose.randrange(5):
            case 0:
                value = net.op("Identity", value)
            case 1:
                value = net.op("Cast", value, to=TensorProto.FLOAT)
            case 2:
                axes = net.constant([choose.choice((0, 1, 2, -1))])
                value = net.op("Squeeze", net.op("Unsqueeze", value, axes), axes)
            case 3:
                value = net.op("Concat", value, axis=-1)
            case _:
                value = split_axes(graph, value, value, [flow.width])
    return Flow(value, flow.width)


def joined(graph: RandomGraph, flow: Flow) -> Flow:
    """Channels of two linears, or of the value itself, side by side."""
    net, choose = graph.net, graph.choose
    left = linear(graph, flow)
    right = flow if choose.random() < 0.4 else linear(graph, flow)
    return Flow(net.op("Concat", left.value, right.value, axis=choose.choice((2, -1))), left.width + right.width)


def elementwise(graph: RandomGraph, flow: Flow) -> Flow:
    """Functions of one number that are in no row of the table."""
    net, choose = graph.net, graph.choose
    operators = [
        "Abs",
        "Neg",
        "Elu",
        "HardSigmoid",
        "Selu",
        "Softsign",
        "Erf",
        "Sin",
        "Tanh",
        "prelu",
        "bounds",
        "where",
    ]
    operators += ["HardSwish"] * (net.opset >= 14) + ["Mish"] * (net.opset >= 18) + ["roots", "exp", "softmax"]
    operator = choose.choice(operators)
    match operator:
        case "prelu":
            value = net.op("PRelu", flow.value, net.vector(*choose.choice(((flow.width,), (1,), (1, 1, flow.width)))))
        case "bounds":
            value = net.op("Min", net.op("Max", flow.value, net.constant(-1.0)), net.vector(flow.width))
        case "where":
            mask = net.constant(net.random.random(flow.width) < 0.5)
            value = net.op("Where", mask, flow.value, net.op("Neg", flow.value))
        case "roots":
            value = net.op("Sqrt", net.op("Add", net.op("Abs", flow.value), net.constant(0.1)))
        case "exp":
            value = net.op("Exp", net.op("Tanh", flow.value))
        case "softmax":
            value = net.op("Softmax", flow.value, axis=choose.choice((-1, 2, 1)))
        case _:
            value = net.op(operator, flow.value)
    return Flow(value, flow.width)


def dead(graph: RandomGraph, flow: Flow) -> Flow:
    """Channels that are zero, constant, or smaller than any normal number; or large ones."""
    net, choose = graph.net, graph.choose
    factors = net.random.choice([1.0, 1.0, 0.0, 1e-40, 50.0], size=flow.width)
    factors[choose.randrange(flow.width)] = 1.0
    value = net.op("Mul", flow.value, spelled(graph, factors))
    if choose.random() < 0.4:
        value = net.op("Add", value, net.constant(net.random.choice([0.0, 0.0, 3.0], size=flow.width)))
    return Flow(value, flow.width)


def pooled(graph: RandomGraph, flow: Flow) -> Flow:
    """The largest of all rows, back on every row."""
    net = graph.net
    if net.opset < 18:
        best = net.op("ReduceMax", flow.value, axes=[1], keepdims=1)
    else:
        best = net.op("ReduceMax", flow.value, net.constant([1]), keepdims=1)
    best = linear(graph, Flow(best, flow.width), flow.width).value
    return Flow(net.op("Add", flow.value, best), flow.width)


def never(graph: RandomGraph, flow: Flow) -> Flow:
    """A linear that no row reaches, as an expert that no token is routed to."""
    net = graph.net
    none = net.op("Slice", flow.value, net.constant([0]), net.constant([0]), net.constant([1]))
    net.output(linear(graph, Flow(none, flow.width)).value)
    return flow


def einsum(graph: RandomGraph, flow: Flow) -> Flow:
    """A linear that is written as Einsum."""
    net = graph.net
    width = graph.choose.choice(graph.widths)
    return Flow(net.op("Einsum", flow.value, net.normal(flow.width, width), equation="bsk,kn->bsn"), width)


def conditional(graph: RandomGraph, flow: Flow) -> Flow:
    """An If whose bodies read the value from outside; the condition is a constant, or comes from a shape."""
    net, choose = graph.net, graph.choose
    width = choose.choice(graph.widths)
    condition = net.constant(np.array(choose.random() < 0.5))
    if choose.random() < 0.7:
        length = net.op("Gather", net.op("Shape", flow.value), net.constant(np.array(1)), axis=0)
        condition = net.op("Less", length, net.constant(np.array(choose.choice((1, 2, 4, 99)))))
    bodies = {name: net.body() for name in ("then_branch", "else_branch")}
    for body in bodies.values():
        product = body.op("MatMul", flow.value, body.normal(flow.width, width))
        body.output(body.op(choose.choice(("Relu", "Tanh", "Identity")), product))
    graphs = {name: body.graph(net.name("body")) for name, body in bodies.items()}
    return Flow(net.op("If", condition, **graphs), width)


def looped(graph: RandomGraph, flow: Flow) -> Flow:
    """A Loop that takes the value through one linear a few times."""
    net, choose = graph.net, graph.choose
    body = net.body()
    body.input(body.name("turn"), [], TensorProto.INT64)
    go_on = body.input(body.name("go_on"), [], TensorProto.BOOL)
    state = body.input(body.name("state"), None)
    body.output(body.op("Identity", go_on))
    body.output(body.op("Tanh", body.op("MatMul", state, body.normal(flow.width, flow.width))))
    inner = body.graph(net.name("body"))
    inner.output[0].CopyFrom(helper.make_tensor_value_info(inner.output[0].name, TensorProto.BOOL, []))
    turns = net.constant(np.array(choose.randint(1, 3)))
    return Flow(net.op("Loop", turns, net.constant(np.array(True)), flow.value, body=inner), flow.width)


MORE_STEPS: tuple[Step, ...] = (
    tied,
    constant_left,
    batched,
    chain,
    chain,
    joined,
    joined,
    elementwise,
    elementwise,
    elementwise,
    dead,
    pooled,
    never,
    einsum,
    conditional,
    looped,
)
