"""Stacks of matrices become linears, one for each; the function stays."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto

from catonnx.analysis import analyse
from catonnx.graph.sites import Selection, find_sites
from catonnx.passes.unstack import Unstack
from catonnx.recipe import Recipe
from tests.graph.builder import Length, Net, relative_error, run

E, K, N = 3, 4, 5
X = {"x": np.random.default_rng(0).normal(size=(E, 2, K)).astype(np.float32)}


def net_of(*shape: Length, weight: tuple[int, ...] = (E, K, N), dtype: int = TensorProto.FLOAT) -> Net:
    net = Net(seed=2)
    value, stack = net.input("x", list(shape)), net.normal(*weight)
    if dtype != TensorProto.FLOAT:
        value, stack = (net.op("Cast", name, to=dtype) for name in (value, stack))
    result = net.op("MatMul", value, stack)
    net.output(net.op("Softplus", net.op("Cast", result, to=TensorProto.FLOAT)))
    return net


def test_every_matrix_becomes_a_linear_that_reads_its_rows() -> None:
    net = net_of(E, "rows", K)
    name, model = net.nodes[0].name, net.model()
    assert Unstack()(model).modified
    assert Counter(node.op_type for node in model.graph) == {
        "Gather": E,
        "MatMul": E,
        "Unsqueeze": E,
        "Concat": 1,
        "Cast": 1,
        "Softplus": 1,
    }
    found = find_sites(model.graph, Selection(head=True))
    assert found.passed_over == ()
    linears = [linear for site in found.sites for linear in site.linears]
    assert [linear.name for linear in linears] == [f"{name}/{number}" for number in range(E)]
    assert {(linear.inputs, linear.outputs) for linear in linears} == {(K, N)}
    (expected,), (actual,) = run(net.proto(), X).values(), run(model, X).values()
    assert relative_error(expected, actual) <= 1e-6  # measured: 1e-7
    assert not Unstack()(model).modified


def test_matrices_that_read_copies_of_one_value_share_what_is_absorbed() -> None:
    net = Net(seed=2)
    value = net.op("LayerNormalization", net.input("x", [2, K]), net.vector(K), net.vector(K))
    copies = net.op("Reshape", net.op("Tile", value, net.constant([E, 1])), net.constant([E, -1, K]))
    net.output(net.op("Softplus", net.op("MatMul", copies, net.normal(E, K, N))))
    opened = analyse(net.model(), Recipe())
    (absorption,) = {id(absorption): absorption for absorption in opened.absorptions.values()}.values()
    assert (absorption.width, len(absorption.peers)) == (1, E)


@pytest.mark.parametrize(
    ("net", "exclude", "reason"),
    [
        (net_of("experts", "rows", K), (), "3 axes"),
        (net_of(1, "rows", K), (), "3 axes"),
        (net_of("rows", K), (), "3 axes"),
        (net_of(1, "rows", K, weight=(1, K, N)), (), "3 axes"),
        (net_of(2, E, "rows", K), (), "3 axes"),
        (net_of(2, E, "rows", K, weight=(2, E, K, N)), (), "4 axes"),
        (net_of(E, "rows", K, dtype=TensorProto.DOUBLE), (), "3 axes"),
        (net_of(E, "rows", K), ("node*",), "3 axes"),
    ],
)
def test_what_has_no_matrix_for_each_or_is_not_wanted_stays(net: Net, exclude: tuple[str, ...], reason: str) -> None:
    model = net.model()
    assert not Unstack(Selection(exclude=exclude))(model).modified
    ((_, _, why),) = find_sites(model.graph).passed_over
    assert reason in why
