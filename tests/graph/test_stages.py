"""A stage as a model of its own: which weights it holds, and which of them are computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from catonnx.graph.edits import Names, set_folded
from catonnx.graph.segments import cut
from catonnx.graph.stages import Stage
from tests.graph.builder import Net
from tests.graph.following import assert_faithful, follow, rows, sites_of


@pytest.fixture
def net() -> Net:
    net = Net()
    net.input("x", ["rows", 4])
    return net


def test_a_shared_weight_is_replaced_for_the_named_linear_only(net: Net) -> None:
    weight = net.normal(4, 4)
    hidden = net.op("MatMul", net.op("Relu", "x", result="a"), weight)
    hidden = net.op("MatMul", net.op("Sin", hidden, result="b"), weight)
    net.output(net.op("MatMul", net.op("Cos", hidden, result="c"), net.normal(4, 4)))
    model = net.model()
    sites = sites_of(model)
    stages = assert_faithful(model, sites, rows())
    array = net.initializers[weight]
    seen = follow(stages, rows(), {sites[1].linears[0].name: 2 * array})
    hidden_rows = np.sin(np.maximum(rows()["x"], 0) @ array)
    np.testing.assert_allclose(seen["b"], hidden_rows, rtol=1e-5, atol=1e-6)  # measured 2e-7
    np.testing.assert_allclose(seen["c"], np.cos(hidden_rows @ (2 * array)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.graph.initializers[weight].const_value.numpy(), array)  # type: ignore[union-attr]


def test_a_transposed_gemm_takes_its_weight_as_k_by_n(net: Net) -> None:
    hidden = net.op("Gemm", net.op("Relu", "x"), net.normal(5, 4), net.vector(5), transB=1)
    net.output(net.op("MatMul", net.op("Sin", hidden, result="b"), net.normal(5, 4)))
    model = net.model()
    sites = sites_of(model)
    array = np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32)
    seen = follow(cut(model, sites), rows(), {sites[0].linears[0].name: array})
    bias = list(net.initializers.values())[1]
    np.testing.assert_allclose(seen["b"], np.sin(np.maximum(rows()["x"], 0) @ array + bias), rtol=1e-5)  # 2e-7


def test_a_pending_fold_is_computed_for_the_stage_that_is_written_and_not_if_replaced(net: Net) -> None:
    flow = "x"
    for _ in range(3):
        flow = net.op("MatMul", net.op("Relu", flow), net.normal(4, 4))
    net.output(flow)
    model, computed = net.model(), list[int]()
    sites, names = sites_of(model), Names(model.graph)

    def folded(index: int) -> Callable[[], np.ndarray]:
        def compute() -> np.ndarray:
            computed.append(index)
            return np.eye(4) * (index + 1)

        return compute

    for index, site in enumerate(sites):
        set_folded(model.graph, names, site.linears[0].node, 1, folded(index), (4, 4), ir.DataType.FLOAT, "w")
    stages = cut(model, sites)
    examples = {name: rows()["x"] for stage in stages for name in _names(stage)}
    ir.to_proto(stages[0].model(examples))
    assert computed == []
    ir.to_proto(stages[2].model(examples))
    assert set(computed) == {1}
    computed.clear()
    ir.to_proto(stages[1].model(examples, {sites[0].linears[0].name: np.eye(4)}))
    assert computed == []


def _names(stage: Stage) -> list[str]:
    return [*(str(value.name) for value in stage.inputs), *(tap.rows for tap in stage.fed)]


def test_weights_that_fit_no_linear_are_refused(net: Net) -> None:
    net.output(net.op("MatMul", net.op("MatMul", "x", net.normal(4, 6)), net.normal(6, 4)))
    model = net.model()
    first, second = (site.linears[0].name for site in sites_of(model))
    stage = cut(model, sites_of(model))[1]
    examples = {name: rows()["x"] for name in _names(stage)}
    with pytest.raises(ValueError, match=f"{second}', which is no selected linear of stage 1; those are: {first}"):
        stage.model(examples, {second: np.zeros((6, 4))})
    with pytest.raises(ValueError, match=rf"for {first} has shape \[6, 4\]; it must be \[4, 6\]"):
        stage.model(examples, {first: np.zeros((6, 4))})
