"""Windows against NumPy: what a node takes is where its output's numbers come from."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from catonnx.graph.shapes import Shapes
from catonnx.graph.windows import windows
from tests.graph.builder import Net, run

SHAPE = (3, 4, 6)
NUMBERS = np.arange(72, dtype=np.float32).reshape(SHAPE)


def taken(net: Net) -> list[np.ndarray]:
    """Return what each output of the last node holds according to its window."""
    model = net.model()
    parts = windows(Shapes(model.graph), list(model.graph)[-1])
    assert parts is not None
    result = []
    for _, window in parts:
        array = NUMBERS
        for axis, indices in window.items():
            array = np.take(array, indices, axis)
        result.append(array)
    return result


BOUND = st.integers(-9, 9) | st.sampled_from([-(2**63), 2**63 - 1])


@given(st.lists(st.tuples(BOUND, BOUND, st.sampled_from([1, 1, 2, 3])), min_size=1, max_size=3), st.data())
def test_a_slice_takes_what_onnx_runtime_takes(cuts: list[tuple[int, int, int]], data: st.DataObject) -> None:
    net = Net()
    net.input("x", SHAPE)
    axes = data.draw(st.permutations([0, -2, 2]))[: len(cuts)]
    starts, ends, steps = (net.constant(np.array(column)) for column in zip(*cuts, strict=True))
    net.output(net.op("Slice", "x", starts, ends, net.constant(np.array(axes)), steps))
    (expected,) = run(net.proto(), {"x": NUMBERS}).values()
    np.testing.assert_array_equal(taken(net)[0], expected)


def test_axes_and_steps_may_be_left_out() -> None:
    net = Net()
    net.output(net.op("Slice", net.input("x", SHAPE), net.constant([1, 2]), net.constant([2, 9])))
    np.testing.assert_array_equal(taken(net)[0], NUMBERS[1:2, 2:9])


def test_parts_of_a_split_and_one_index() -> None:
    net = Net()
    net.ops("Split", net.input("x", SHAPE), net.constant([1, 3, 2]), results=["a", "b", "c"], axis=-1)
    for part, expected in zip(taken(net), np.split(NUMBERS, [1, 4], axis=2), strict=True):
        np.testing.assert_array_equal(part, expected)
    for index in (0, 3, -1, [2], [[-2]]):
        net = Net()
        net.op("Gather", net.input("x", SHAPE), net.constant(np.array(index)), axis=1)
        np.testing.assert_array_equal(taken(net)[0], np.take(NUMBERS, np.reshape(index, -1), 1))


def found(net: Net) -> object:
    model = net.model()
    parts = windows(Shapes(model.graph), list(model.graph)[-1])
    return parts if parts is None else [window for _, window in parts]


def test_what_is_not_known_is_no_window() -> None:
    def net(operator: str, *inputs: str | list[int], shape: list[int | str], domain: str = "") -> Net:
        made = Net()
        for name in ("bound", "lengths"):
            made.input(name, [1 if name == "bound" else 2], ir.DataType.INT64)
        operands = [name if isinstance(name, str) else made.constant(name) for name in inputs]
        results = ["a", "b"] if operator == "Split" else ["a"]
        made.ops(operator, made.input("x", shape), *operands, results=results, domain=domain)
        return made

    assert found(net("Slice", [0], "bound", [1], shape=[3, 4])) == [{}]
    assert found(net("Slice", [0], [2], "bound", shape=[3, 4])) == [{}]
    assert found(net("Slice", "bound", [2], [0], shape=[3, 4])) == [{}]
    assert found(net("Slice", [0], [2], [0], "bound", shape=[3, 4])) == [{}]
    assert found(net("Slice", [0], [2], [0], shape=["rows", 4])) == [{}]
    assert found(net("Slice", [2], [0], [0], [-1], shape=[3, 4])) == [{}]
    assert found(net("Slice", [0, 1], [2, 3], [0, 1], shape=["rows", 4])) == [{1: range(1, 3)}]
    assert found(net("Gather", [0, 0], shape=[3, 4])) is None
    assert found(net("Gather", "bound", shape=[3, 4])) is None
    assert found(net("Split", "lengths", shape=[3, 4])) is None
    assert found(net("Slice", [0], [2], [1], shape=[3, 4], domain="example.com")) is None
    assert found(net("Relu", shape=[3, 4])) is None
