"""A copy of a model with other outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from catonnx.graph.outputs import with_outputs
from tests.graph.builder import Net, run


@pytest.fixture
def net() -> Net:
    net = Net()
    x = net.input("x", ["rows", 4])
    hidden = net.op("Relu", x, result="hidden")
    net.output(net.op("MatMul", net.op("Tanh", hidden, result="late"), net.normal(4, 4, hint="big"), result="y"))
    return net


def test_the_copy_computes_the_named_values_and_nothing_else(net: Net) -> None:
    model = net.model()
    copy = with_outputs(model, dict.fromkeys(["hidden", "x"], ir.DataType.FLOAT))
    x = np.array([[-1, 2, -3, 4]], np.float32)
    outputs = run(copy, {"x": x})
    assert list(outputs) == ["hidden", "x"]
    np.testing.assert_array_equal(outputs["hidden"], np.maximum(x, 0))
    assert [node.op_type for node in copy.graph] == ["Relu"]


def test_the_model_itself_stays_as_it_is(net: Net) -> None:
    model = net.model()
    with_outputs(model, dict.fromkeys(["late"], ir.DataType.FLOAT))
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert [node.op_type for node in model.graph] == ["Relu", "Tanh", "MatMul"]


def test_tensors_are_shared_not_copied(net: Net) -> None:
    model = net.model()
    copy = with_outputs(model, dict.fromkeys(["y"], ir.DataType.FLOAT))
    for name, value in copy.graph.initializers.items():
        assert value.const_value is model.graph.initializers[name].const_value


def test_an_unknown_value_is_an_error(net: Net) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        with_outputs(net.model(), dict.fromkeys(["nowhere"], ir.DataType.FLOAT))
