"""What belongs to a residual stream, and what keeps it from turning, with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from onnx import helper

from catonnx.graph.residual import find_streams
from tests.graph.builder import Net
from tests.graph.streams import NORMS, WIDTH, WORDS, fused, network, rms

Break = Callable[[Net, str], str]


def broken(change: Break) -> Net:
    """A stream that something happens to between two blocks; `change` returns the stream from there on."""
    net = Net(seed=3)
    x = net.op("Gather", net.normal(WORDS, WIDTH), net.input("ids", ["batch", 4], 7))
    x = net.op("Add", x, net.op("MatMul", rms(net, x), net.normal(WIDTH, WIDTH)))
    x = change(net, x)
    x = net.op("Add", x, net.op("MatMul", rms(net, x), net.normal(WIDTH, WIDTH)))
    net.output(net.op("MatMul", rms(net, x), net.normal(WIDTH, 5), result="y"))
    return net


def _output(net: Net, x: str) -> str:
    return net.output(x)


def _normed_output(net: Net, x: str) -> str:
    net.output(rms(net, x))
    return x


def _post_norm(net: Net, x: str) -> str:
    return rms(net, x)


def _norm_of_a_block(net: Net, x: str) -> str:
    return net.op("Add", x, rms(net, net.op("MatMul", x, net.normal(WIDTH, WIDTH))))


def _norm_operator_of_a_block(net: Net, x: str) -> str:
    return net.op("Add", x, NORMS["layer_node"](net, net.op("MatMul", x, net.normal(WIDTH, WIDTH))))


def _gate(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("MatMul", rms(net, x), net.normal(WIDTH, WIDTH)))


def _function(net: Net, x: str) -> str:
    return net.op("Tanh", x)


def _another_input(net: Net, x: str) -> str:
    return net.op("Add", x, net.input("more", ["batch", 4, WIDTH]))


def _part_of_the_channels(net: Net, x: str) -> str:
    net.output(net.op("Slice", x, net.constant([0]), net.constant([6]), net.constant([2])))
    return x


def _cubes(net: Net, x: str) -> str:
    net.output(net.op("ReduceMean", net.op("Pow", x, net.constant(3.0)), net.constant([2])))
    return x


def _squares_one_by_one(net: Net, x: str) -> str:
    net.output(net.op("Relu", net.op("Mul", x, x)))
    return x


def _largest(net: Net, x: str) -> str:
    net.output(net.op("ReduceMax", x, net.constant([2])))
    return x


def _activation_as_weight(net: Net, x: str) -> str:
    net.output(net.op("MatMul", net.normal(3, 4), x))
    return x


def _weight_that_is_computed(net: Net, x: str) -> str:
    net.output(net.op("MatMul", x, net.op("Tanh", net.normal(WIDTH, 3))))
    return x


def _norm_that_a_function_reads(net: Net, x: str) -> str:
    net.output(net.op("Sigmoid", rms(net, x)))
    return x


def _body(net: Net, x: str) -> str:
    inner = helper.make_node("Identity", [x], ["seen"])
    body = helper.make_graph([inner], "body", [], [helper.make_tensor_value_info("seen", 1, None)])
    condition = net.constant(np.array(True))
    net.output(net.op("If", condition, then_branch=body, else_branch=body))
    return x


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_output, "add_.* is an output of the graph"),
        (_normed_output, "mul_.* is an output of the graph"),
        (_post_norm, "what the norm before mul_.* scales is also read by (Pow|Mul|Add)"),
        (_norm_of_a_block, "the constant vector of Mul .* scales channels that go into the stream"),
        (_norm_operator_of_a_block, "LayerNormalization .* scales channels that go into the stream"),
        (_gate, "Mul .* treats channels one by one"),
        (_function, "Tanh .* does not turn with the stream"),
        (_another_input, "more comes straight from a graph input"),
        (_part_of_the_channels, "Slice .* does not turn"),
        (_cubes, "Pow .* does not turn"),
        (_squares_one_by_one, "the squares of Mul .* are also read by Relu"),
        (_largest, "ReduceMax .* does not turn"),
        (_activation_as_weight, "MatMul .* does not turn"),
        (_weight_that_is_computed, "MatMul .* does not turn"),
        (_norm_that_a_function_reads, "what the norm before mul_.* scales is also read by Sigmoid"),
        (_body, "is also read inside a body, by Identity"),
    ],
)
def test_what_does_not_turn_says_why(change: Break, reason: str) -> None:
    streams = find_streams(broken(change).model().graph)
    assert any(re.search(reason, stream.reason) for stream in streams), [stream.reason for stream in streams]


def _nothing(_: Net, x: str) -> str:
    return x


def _factor(net: Net, x: str) -> str:
    return net.op("Div", net.op("Mul", net.constant(3.0), x), net.constant(2.0))


def _mask(net: Net, x: str) -> str:
    return net.op("Mul", x, net.input("mask", ["batch", 4, 1]))


def _shape_only(net: Net, x: str) -> str:
    net.output(net.op("Cast", net.op("Shape", x), to=1))
    return x


def _mean_of_tokens(net: Net, x: str) -> str:
    return net.op("ReduceMean", x, net.constant([1]), keepdims=1)


def _length(net: Net, x: str) -> str:
    net.output(net.op("ReduceL2", x, net.constant([2])))
    return x


@pytest.mark.parametrize("change", [_nothing, _factor, _mask, _shape_only, _mean_of_tokens, _length])
def test_what_turns_with_it(change: Break) -> None:
    (stream,) = find_streams(broken(change).model().graph)
    assert (stream.width, stream.reason, stream.keeps_mean) == (WIDTH, "", False)


def _mean(net: Net, x: str) -> str:
    net.output(net.op("ReduceMean", x, net.constant([2])))
    return x


def _number_for_all(net: Net, x: str) -> str:
    return net.op("Add", x, net.constant(2.0))


@pytest.mark.parametrize("change", [_mean, _number_for_all])
def test_what_needs_the_mean_to_stay(change: Break) -> None:
    (stream,) = find_streams(broken(change).model().graph)
    assert (stream.reason, stream.keeps_mean) == ("", True)


@pytest.mark.parametrize("norm", NORMS)
def test_everything_that_turns_is_listed_once(norm: str) -> None:
    (stream,) = find_streams(network(NORMS[norm]).model().graph)
    assert stream.reason == ""
    places = [(turn.node.op_type, turn.index, turn.axis, turn.scale is not None) for turn in stream.turns]
    # Table and positions; two blocks that read, write and add a bias; the head.
    assert sorted(places) == sorted(
        [("Gather", 0, 1, False), ("Add", 1, 1, False)]
        + 2 * [("Gemm", 1, 0, True), ("MatMul", 1, 1, False), ("Add", 1, 0, False)]
        + [("MatMul", 1, 0, True)]
    )
    offset = norm.startswith("layer")
    assert (len(stream.scales), len(stream.offsets), len(stream.shifts)) == (3, 3 * offset, 3 * offset)


def test_a_value_that_is_only_normalized_is_no_stream() -> None:
    net = Net()
    net.output(net.op("MatMul", rms(net, net.input("x", ["batch", 4, WIDTH])), net.normal(WIDTH, 5)))
    assert find_streams(net.model().graph) == ()


def test_a_norm_over_several_axes_is_in_the_way() -> None:
    net = network(lambda net, x: net.op("LayerNormalization", x, net.vector(4, WIDTH), axis=-2))
    (stream, *_) = find_streams(net.model().graph)
    assert "normalizes over more than the last axis" in stream.reason


def test_sums_inside_of_norms_join_a_stream() -> None:
    for operator in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"):
        (stream,) = find_streams(fused(operator).model().graph)
        assert stream.reason == ""
        assert stream.keeps_mean == (operator == "SkipLayerNormalization")
