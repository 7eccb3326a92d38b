"""Small residual networks by hand, in the forms that exporters and optimizers write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.graph.builder import Net

WIDTH, WORDS = 12, 9
IDS = {"ids": np.array([[1, 3, 3, 8], [0, 2, 7, 5]])}

Norm = Callable[[Net, str], str]


def rms(net: Net, x: str) -> str:
    """RMSNorm as PyTorch's exporters write it."""
    squares = net.op("ReduceMean", net.op("Pow", x, net.constant(2.0)), net.constant([-1]))
    root = net.op("Sqrt", net.op("Add", squares, net.constant(1e-5)))
    normed = net.op("Mul", x, net.op("Div", net.constant(1.0), root))
    return net.op("Mul", net.vector(WIDTH), normed)


def squared_rms(net: Net, x: str) -> str:
    """The same with other operators for the same thing."""
    root = net.op("Sqrt", net.op("ReduceMean", net.op("Mul", x, x), net.constant([2])))
    return net.op("Mul", net.op("Div", x, root), net.vector(1, 1, WIDTH))


def layer(net: Net, x: str) -> str:
    """LayerNorm as it was written before there was an operator."""
    centred = net.op("Sub", x, net.op("ReduceMean", x, net.constant([-1])))
    squares = net.op("ReduceMean", net.op("Pow", centred, net.constant(2.0)), net.constant([-1]))
    root = net.op("Sqrt", net.op("Add", squares, net.constant(1e-5)))
    normed = net.op("Mul", net.op("Div", centred, root), net.vector(WIDTH))
    return net.op("Add", normed, net.vector(WIDTH))


def layer_node(net: Net, x: str) -> str:
    """LayerNorm as one operator."""
    return net.op("LayerNormalization", x, net.vector(WIDTH), net.vector(WIDTH))


def rms_node(net: Net, x: str) -> str:
    """RMSNorm as ONNX Runtime's operator."""
    return net.op("SimplifiedLayerNormalization", x, net.vector(WIDTH), axis=-1, epsilon=1e-5)


NORMS: dict[str, Norm] = {function.__name__: function for function in (rms, squared_rms, layer, layer_node, rms_node)}


def network(norm: Norm, *, opset: int = 21) -> Net:
    """Embedding times a number plus learned positions, two blocks with biases, a norm, a head; `x` is the stream."""
    net = Net(seed=3, opset=opset)
    table, places = net.normal(WORDS, WIDTH, hint="table"), net.normal(4, WIDTH, hint="places")
    x = net.op("Mul", net.op("Gather", table, net.input("ids", ["batch", 4], 7)), net.constant(3.0))
    x = net.op("Add", x, places)
    for _ in range(2):
        h = net.op("Relu", net.op("Gemm", net.op("Reshape", norm(net, x), net.constant([-1, WIDTH])), *_weights(net)))
        h = net.op("MatMul", h, net.normal(20, WIDTH))
        h = net.op("Add", net.op("Reshape", h, net.constant([-1, 4, WIDTH])), net.vector(WIDTH, hint="bias"))
        x = net.op("Add", x, h)
    last = net.op("Gather", norm(net, x), net.constant(np.array(3)), axis=1)
    net.output(net.op("MatMul", net.op("Cast", last, to=1), net.normal(WIDTH, WORDS), result="y"))
    return net


def _weights(net: Net) -> tuple[str, str]:
    return net.normal(WIDTH, 20), net.vector(20)


def fused(operator: str) -> Net:
    """The same, its sums within the norms: `SkipLayerNormalization` or `SkipSimplifiedLayerNormalization`."""
    net = Net(seed=4)
    stream = net.op("Gather", net.normal(WORDS, WIDTH, hint="table"), net.input("ids", ["batch", 4], 7))
    written = net.op("Gather", net.normal(4, WIDTH, hint="places"), net.input("places", ["batch", 4], 7))
    offsets = [net.vector(WIDTH)] if operator == "SkipLayerNormalization" else []
    for index in range(3):
        parts = [written, stream, net.vector(WIDTH), *offsets]
        parts += [net.vector(WIDTH, hint="bias")] if index else []
        results = [net.name("normed"), "", "", net.name("sum")]
        normed, *_, stream = net.ops(operator, *parts, results=results, domain="com.microsoft", epsilon=1e-5)
        written = net.op(
            "MatMul", net.op("Tanh", net.op("MatMul", normed, net.normal(WIDTH, 20))), net.normal(20, WIDTH)
        )
    net.output(net.op("MatMul", normed, net.normal(WIDTH, WORDS), result="y"))
    return net
