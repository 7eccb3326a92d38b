"""Random attention: heads, query groups, fused operators, caches, in the spellings of exporters."""

from __future__ import annotations

from models.fused_attention import DEPTH, FusedAttention
from models.net import Net
from models.random_pieces import Flow, RandomGraph, equal_parts, linear, split_axes, watched


def attention(graph: RandomGraph, flow: Flow) -> Flow:
    """Heads, query groups, a fused or plain projection, with or without a cache of keys and values."""
    net, choose = graph.net, graph.choose
    groups, repeats, depth = choose.choice((1, 2, 3)), choose.choice((1, 2)), choose.choice((2, 3, 4))
    heads = groups * repeats
    query = _heads(graph, linear(graph, flow, heads * depth), heads, depth)
    if choose.random() < 0.3:
        fused = linear(graph, flow, 2 * groups * depth)
        names = equal_parts(net, fused.value, 2, -1, "state")
        flows = [Flow(name, groups * depth) for name in names]
    else:
        flows = [linear(graph, flow, groups * depth) for _ in range(2)]
    states = [watched(graph, Flow(_heads(graph, part, groups, depth), depth)).value for part in flows]
    if graph.seq == "seq" and choose.random() < 0.5:
        states = [_cached(graph, state, groups, depth) for state in states]
    keys, values = (_repeated(graph, state, repeats, heads, depth) for state in states)
    scores = net.op("MatMul", query, net.op("Transpose", keys, perm=[0, 1, 3, 2]))
    weights = net.op("Softmax", scores, axis=-1)
    product = _merged_product if choose.random() < 0.3 else _product
    mixed = product(net, weights, values, heads, depth)
    return Flow(_joined(graph, mixed, heads * depth), heads * depth)


def fused_attention(graph: RandomGraph, flow: Flow) -> Flow:
    """Attention as one operator."""
    net, choose = graph.net, graph.choose
    if net.opset < 15:
        return attention(graph, flow)  # Shape has no start and end yet, which its lengths are made with
    operators = ["GroupQueryAttention", "MultiHeadAttention", "Attention", *(["standard"] if net.opset == 23 else [])]
    operator = choose.choice(operators)
    shared, free = choose.choice((1, 2)), graph.seq == "seq"
    repeats = choose.choice((1, 2, 3)) if operator in ("GroupQueryAttention", "standard") else 1
    # The standard's is left out: ONNX Runtime runs it only with both present outputs, and `cut` keeps what is read.
    cache = operator in ("GroupQueryAttention", "MultiHeadAttention") and free and choose.random() < 0.5
    narrow = operator == "standard" or (operator == "MultiHeadAttention" and not cache)  # as ONNX Runtime has it
    operation = FusedAttention(
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
    value = operation.output(net, flow.value)
    graph.caches += operation.caches
    if operation.axes == 4:
        return Flow(_joined(graph, value, operation.width), operation.width)
    return Flow(value, operation.width)


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
