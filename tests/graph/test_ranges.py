"""The ranges of values are the largest finite magnitudes that numpy finds."""

from __future__ import annotations

import numpy as np

from catonnx.graph.ranges import with_ranges
from models.net import Net
from tests.graph.builder import run


def test_the_largest_finite_magnitude_of_each_value() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    net.op("Mul", x, net.constant(-3.0), result="scaled")
    net.op("Log", "scaled", result="logarithm")  # NaN of what is negative, -Inf of zero
    net.output(net.op("Relu", "scaled", result="y"))
    model = net.model()
    copy, outputs = with_ranges(model, ["scaled", "logarithm", "y"])
    assert [value.name for value in model.graph.outputs] == ["y"]
    array = np.array([[1, -2, 0, -0.5]], np.float32)
    found = run(copy, {"x": array})
    logarithms = [np.log(6), np.log(1.5)]
    assert set(found) == set(outputs.values())
    expected = {"scaled": 6.0, "logarithm": max(logarithms), "y": 6.0}
    for name, number in expected.items():
        np.testing.assert_allclose(found[outputs[name]], [number], rtol=1e-6)


def test_of_nothing_the_range_is_zero() -> None:
    net = Net()
    net.output(net.op("Relu", net.input("x", ["n", 4]), result="y"))
    copy, outputs = with_ranges(net.model(), ["y"])
    assert run(copy, {"x": np.zeros((0, 4), np.float32)})[outputs["y"]].tolist() == [0.0]
