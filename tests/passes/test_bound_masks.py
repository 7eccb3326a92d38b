"""Numbers that stand for infinity are brought into float16's range, and no others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper

from catonnx.graph.precision import LARGEST
from catonnx.passes.bound_masks import MASKED, BoundMasks
from models.net import Net
from tests.graph.builder import run

LOWEST = float(np.finfo(np.float32).min)


def constants(net: Net) -> list[float]:
    """Return the numbers of all constants after the pass, in attributes too, sorted."""
    model = net.model()
    BoundMasks()(model)
    arrays = [value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value is not None]
    arrays += [node.attributes["value"].as_tensor().numpy() for node in model.graph if "value" in node.attributes]
    return sorted({float(number) for array in arrays if array.dtype == np.float32 for number in array.reshape(-1)})


def filled(net: Net, _: str) -> str:
    shape = net.op("Shape", net.input("mask", ["n", 4], TensorProto.BOOL))
    number = helper.make_tensor("", TensorProto.FLOAT, [1], [LOWEST])
    return net.op("ConstantOfShape", shape, value=number)


def inverted(net: Net, _: str) -> str:
    mask = net.op("Cast", net.input("mask", ["n", 4], TensorProto.BOOL), to=TensorProto.FLOAT)
    return net.op("Mul", net.op("Sub", net.constant(1.0), mask), net.constant(LOWEST))


def turned_round(net: Net, x: str) -> str:
    mask = net.op("Cast", net.input("mask", ["n", 4], TensorProto.BOOL), to=TensorProto.FLOAT)
    return net.op("Sub", x, net.op("Mul", net.op("Sub", net.constant(1.0), mask), net.constant(1e9)))


def given(net: Net, x: str) -> str:
    """A mask that the caller computed in float."""
    hidden = net.op("Mul", net.op("Sub", net.constant(1.0), net.input("mask", ["n", 4])), net.constant(LOWEST))
    return net.op("Add", x, hidden)


def angles(net: Net, x: str) -> str:
    """Frequencies from a base beyond float16, chosen at run time; a bound on the length with it."""
    positions = net.op("Cast", net.input("positions", ["n", 4], TensorProto.INT64), to=TensorProto.FLOAT)
    base = net.op("Where", net.op("Greater", positions, net.constant(8.0)), net.constant(5e5), net.constant(2.0))
    length = net.op("Min", positions, net.constant(2e6))
    return net.op("Mul", x, net.op("Cos", net.op("Div", length, net.op("Mul", base, net.constant(1e5)))))


def powers(net: Net, x: str) -> str:
    """The same where float16 reads them."""
    positions = net.op("Cast", net.input("positions", ["n", 4], TensorProto.INT64), to=TensorProto.FLOAT)
    return net.op("Mul", x, net.op("Pow", net.constant(5e5), positions))


def chosen(net: Net, x: str) -> str:
    return net.op("Where", net.input("mask", ["n", 4], TensorProto.BOOL), x, net.constant_node(np.array(LOWEST)))


CASES: dict[str, tuple[Callable[[Net, str], str], list[float]]] = {
    "Where": (chosen, [MASKED]),
    "ConstantOfShape": (filled, [MASKED]),
    "1 - mask": (inverted, [MASKED, 1.0]),
    "x - 1e9 * (1 - mask)": (turned_round, [1.0, -MASKED]),
    "a mask in float": (given, [MASKED, 1.0]),
    "frequencies": (angles, [2.0, 8.0, 1e5, 5e5, 2e6]),
    "powers": (powers, [5e5]),
    "offsets of features": (
        lambda net, x: net.op("Sub", x, net.constant(np.array([1e5, 2e5, 0.0, 1.0]))),
        [0.0, 1.0, 1e5, 2e5],
    ),
    "a triangle": (lambda net, x: net.op("Add", x, net.constant(np.triu([[LOWEST] * 4] * 4, 1))), [MASKED, 0.0]),
    "infinity": (lambda net, x: net.op("Add", x, net.constant(-np.inf)), [-np.inf]),
    "Clip": (lambda net, x: net.op("Clip", x, net.constant(LOWEST), net.constant(-LOWEST)), [-LARGEST, LARGEST]),
    "Max": (lambda net, x: net.op("Max", x, net.constant(LOWEST)), [-LARGEST]),
    "a factor": (lambda net, x: net.op("Mul", x, net.constant(1e6)), [1e6]),
    "a weight": (lambda net, x: net.op("MatMul", x, net.constant(np.full((4, 4), -1e6))), [-1e6]),
    "what fits": (lambda net, x: net.op("Add", x, net.constant(-65000.0)), [-65000.0]),
}


@pytest.mark.parametrize(("build", "expected"), CASES.values(), ids=CASES)
def test_which_numbers_change(build: Callable[[Net, str], str], expected: list[float]) -> None:
    net = Net()
    net.output(net.op("Identity", build(net, net.input("x", ["n", 4])), result="y"))
    assert constants(net) == expected


def test_a_constant_keeps_its_number_for_other_readers() -> None:
    net = Net()
    x, number = net.input("x", ["n", 4]), net.constant(LOWEST)
    masked = net.op("Where", net.input("mask", ["n", 4], TensorProto.BOOL), x, number)
    net.output(net.op("Softmax", masked, result="y"))
    net.output(net.op("Pow", x, number, result="z"))
    assert constants(net) == [LOWEST, MASKED]


def test_a_number_in_an_attribute_is_a_change() -> None:
    net = Net()
    net.output(net.op("Softmax", net.op("Add", net.input("x", ["n", 4]), filled(net, "")), result="y"))
    model = net.model()
    assert BoundMasks()(model).modified
    assert not BoundMasks()(model).modified


def test_an_output_says_what_it_said() -> None:
    net = Net()
    mask = net.input("mask", ["n", 4], TensorProto.BOOL)
    net.output(net.op("Where", mask, net.input("x", ["n", 4]), net.constant(LOWEST), result="y"))
    assert constants(net) == [LOWEST]


def test_scores_are_the_same_behind_softmax() -> None:
    net = Net()
    net.output(net.op("Softmax", chosen(net, net.input("x", ["n", 4])), result="y"))
    random = np.random.default_rng(0)
    mask = np.tri(4, dtype=bool)
    feeds = {"x": random.normal(size=(4, 4)).astype(np.float32), "mask": mask}
    model = net.model()
    before = run(model, feeds)["y"]
    assert BoundMasks()(model).modified
    np.testing.assert_array_equal(run(model, feeds)["y"], before)
    assert not BoundMasks()(model).modified, "a second run found something"
