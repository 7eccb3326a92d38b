"""Fused products of ONNX Runtime become linears again; the function stays."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from catonnx.graph.sites import Selection, find_sites
from catonnx.passes.unfuse import Unfuse
from tests.graph.builder import Net, relative_error, run

X = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}


def net_of(operator: str, shape: tuple[int, int], bias: bool = False, **attributes: Any) -> Net:
    """Take x [3, 4], a fused product, and a linear behind."""
    net = Net(seed=2)
    operands = [net.input("x", [3, 4]), net.normal(*shape), *([net.vector(5)] if bias else [])]
    hidden = net.op(operator, *operands, domain="com.microsoft", **attributes)
    net.output(net.op("MatMul", hidden, net.normal(5, 2)))
    return net


@pytest.mark.parametrize(
    ("net", "operators"),
    [
        (net_of("FusedMatMul", (4, 5)), {"MatMul": 2}),
        (net_of("FusedMatMul", (4, 5), alpha=0.25), {"MatMul": 2}),
        (net_of("FusedMatMul", (5, 4), alpha=3.0, transB=1), {"MatMul": 2}),
        (net_of("FusedGemm", (4, 5), bias=True, activation="Relu"), {"Gemm": 1, "Relu": 1, "MatMul": 1}),
        (
            net_of("FusedGemm", (5, 4), True, activation="Sigmoid", transB=1, alpha=0.5, beta=2.0),
            {"Gemm": 1, "Sigmoid": 1, "MatMul": 1},
        ),
        (net_of("FusedGemm", (4, 5), activation="Tanh"), {"Gemm": 1, "Tanh": 1, "MatMul": 1}),
        (
            net_of("FusedGemm", (4, 5), activation="LeakyRelu", activation_alpha=0.3),
            {"Gemm": 1, "LeakyRelu": 1, "MatMul": 1},
        ),
        (
            net_of("FusedGemm", (4, 5), activation="HardSigmoid", activation_alpha=0.3, activation_beta=0.4),
            {"Gemm": 1, "HardSigmoid": 1, "MatMul": 1},
        ),
    ],
)
def test_a_fused_product_becomes_a_linear_of_the_same_name(net: Net, operators: dict[str, int]) -> None:
    name, model = net.nodes[0].name, net.model()
    assert Unfuse()(model).modified
    assert Counter(node.op_type for node in model.graph) == operators
    found = find_sites(model.graph, Selection(head=True))
    assert found.passed_over == ()
    assert [linear.name for site in found.sites for linear in site.linears] == [name, net.nodes[-1].name]
    (expected,), (actual,) = run(net.proto(), X).values(), run(model, X).values()
    assert relative_error(expected, actual) <= 1e-6  # measured: 1e-7
    assert not Unfuse()(model).modified


@pytest.mark.parametrize(
    ("net", "selection"),
    [
        (net_of("FusedMatMul", (3, 5), transA=1), Selection()),
        (net_of("FusedMatMul", (4, 5), transBatchA=1), Selection()),
        (net_of("FusedMatMul", (4, 5)), Selection(exclude=("node*",))),
        (net_of("FusedGemm", (4, 5), activation="LeakyRelu"), Selection()),
        (net_of("FusedGemm", (4, 5), activation="Strange"), Selection()),
    ],
)
def test_what_is_no_linear_or_not_wanted_stays(net: Net, selection: Selection) -> None:
    model = net.model()
    assert not Unfuse(selection)(model).modified
    ((_, operator, reason),) = find_sites(model.graph).passed_over
    assert operator == net.nodes[0].op_type
    assert "belongs to a fused" in reason


def test_an_output_of_the_graph_keeps_its_name() -> None:
    net = Net(seed=2)
    weight = net.normal(4, 5)
    net.output(net.op("FusedGemm", net.input("x", [3, 4]), weight, domain="com.microsoft", activation="Relu"))
    model = net.model()
    Unfuse()(model)
    assert run(model, X).keys() == run(net.proto(), X).keys()
