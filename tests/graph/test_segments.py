"""Stages, run one after the other, give every site what the whole model gives it, and hand over little."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from catonnx.analysis import analyse
from catonnx.graph import load
from catonnx.graph.segments import cut
from catonnx.graph.sites import Selection, Site
from catonnx.graph.stages import Stage
from catonnx.math.factors import Hadamard, Scale
from catonnx.passes.insert import Insert, OnlineTransform
from catonnx.recipe import Recipe
from models.random_graphs import random_graph
from models.random_pieces import PREFILL
from tests.graph.builder import Net
from tests.graph.following import assert_faithful, follow, rows, sites_of
from tests.small_models import language_feeds


@pytest.fixture
def net() -> Net:
    net = Net()
    net.input("x", ["rows", 4])
    return net


def operators(stages: Sequence[Stage]) -> list[list[str]]:
    return [[node.op_type for node in stage.nodes] for stage in stages]


def handed(stages: Sequence[Stage]) -> list[list[str | None]]:
    return [[value.name for value in stage.outputs] for stage in stages]


def test_a_chain_gives_one_stage_per_site_and_the_head_is_in_none(net: Net) -> None:
    first = net.op("MatMul", net.op("Relu", "x", result="a"), net.normal(4, 6))
    second = net.op("MatMul", net.op("Tanh", first, result="b"), net.normal(6, 4))
    net.output(net.op("MatMul", net.op("Exp", second, result="c"), net.normal(4, 9)))
    model = net.model()
    stages = assert_faithful(model, sites_of(model, Selection()), rows())
    assert operators(stages) == [["Relu"], ["MatMul", "Tanh"], []]
    assert handed(stages) == [["a"], ["b"], []]
    assert [[tap.site.name for tap in stage.arriving] for stage in stages] == [[], ["a"], ["b"]]
    assert [stage.ending for stage in stages] == [(), ("a",), ("b",)]


def test_branches_that_do_not_need_each_other_share_a_stage(net: Net) -> None:
    left = net.op("MatMul", net.op("Relu", "x", result="a"), net.normal(4, 4))
    right = net.op("MatMul", net.op("Tanh", "x", result="b"), net.normal(4, 4))
    both = net.op("Add", net.op("Sin", left), net.op("MatMul", net.op("Cos", right, result="c"), net.normal(4, 4)))
    net.output(net.op("MatMul", net.op("Exp", both, result="d"), net.normal(4, 4)))
    model = net.model()
    stages = assert_faithful(model, sites_of(model), rows())
    assert [[tap.name for tap in stage.arriving] for stage in stages] == [[], ["a", "b"], ["c"], ["d"]]
    assert operators(stages) == [["Relu", "Tanh"], ["MatMul", "MatMul", "Sin", "Cos"], ["MatMul", "Add", "Exp"], []]


def test_only_selected_linears_are_fed_and_all_other_readers_get_the_value(net: Net) -> None:
    site = net.op("Relu", "x", result="a")
    chosen = net.op("MatMul", site, net.normal(4, 4))
    left = net.op("MatMul", site, net.normal(4, 4))
    total = net.op("Add", net.op("Add", chosen, left), site)  # a residual
    net.output(net.op("MatMul", net.op("Exp", total, result="b"), net.normal(4, 4)))
    model = net.model()
    excluded = [node.name for node in model.graph][2]
    sites = sites_of(model, Selection(exclude=[str(excluded)], head=True))
    stages = assert_faithful(model, sites, rows())
    assert list(stages[1].linears) == [[node.name for node in model.graph][1]]
    moved = follow(stages, rows(), change_rows=lambda given: given + 1)["b"]
    value = np.maximum(rows()["x"], 0)
    weights = list(net.initializers.values())
    expected = np.exp((value + 1) @ weights[0] + value @ weights[1] + value)
    np.testing.assert_allclose(moved, expected, rtol=1e-5)  # measured 3e-7


def test_an_input_of_the_graph_can_be_a_site(net: Net) -> None:
    net.output(net.op("MatMul", net.op("Add", net.op("MatMul", "x", net.normal(4, 4)), "x"), net.normal(4, 4)))
    model = net.model()
    stages = assert_faithful(model, sites_of(model), rows())
    assert operators(stages) == [[], ["MatMul", "Add"], []]
    assert stages[1].arriving[0].name == "x"
    assert all("x" not in stage.ending for stage in stages)


def test_constants_are_copied_and_a_value_with_many_readers_goes_alone(net: Net) -> None:
    table = net.op("Sin", "x", result="table")
    flow = "x"
    for index in range(4):
        turned = net.op(
            "Neg", table, result=f"turned{index}"
        )  # as each layer turns the cosines of its positions for itself
        scale = net.op("Exp", net.constant(0.5))
        flow = net.op("Relu", net.op("Mul", net.op("Add", flow, turned), scale), result=f"s{index}")
        flow = net.op("MatMul", flow, net.normal(4, 4))
    net.output(flow)
    model = net.model()
    stages = assert_faithful(model, sites_of(model), rows())
    # The table goes as far as two readers want it; from there the last reader's result goes in its place.
    assert [sorted(map(str, names)) for names in handed(stages)] == [
        ["s0", "table"],
        ["s1"],
        ["s2", "turned3"],
        ["s3"],
        [],
    ]
    assert [kinds.count("Exp") for kinds in operators(stages)] == [1, 1, 1, 1, 0]


def test_a_shape_is_handed_over_rather_than_the_activation(net: Net) -> None:
    wide = net.op("Sin", net.op("Exp", "x"), result="wide")
    lengths = [net.op("Shape", wide), net.op("Shape", wide)]
    flow = net.op("Relu", "x")
    for length in lengths:
        flow = net.op("MatMul", flow, net.normal(4, 4))
        flow = net.op("Reshape", flow, length)
    net.output(net.op("MatMul", net.op("Relu", flow), net.normal(4, 4)))
    model = net.model()
    stages = assert_faithful(model, sites_of(model), rows())
    assert "wide" not in handed(stages)[0]


def test_what_follows_from_an_input_alone_waits_for_its_reader(net: Net) -> None:
    flow = net.op("MatMul", net.op("Relu", "x", result="a"), net.normal(4, 4))
    flow = net.op("MatMul", net.op("Sin", flow, result="b"), net.normal(4, 4))
    flow = net.op("Add", flow, net.op("Neg", net.input("mask", ["rows", 4])))
    net.output(net.op("MatMul", net.op("Cos", flow, result="c"), net.normal(4, 4)))
    model = net.model()
    stages = assert_faithful(model, sites_of(model), rows() | {"mask": np.ones((3, 4), np.float32)})
    assert handed(stages) == [["a"], ["b"], ["c"], []]


def test_a_bias_that_comes_later_makes_its_linear_wait_with_the_rows(net: Net) -> None:
    site = net.op("Relu", "x", result="a")
    early = net.op("MatMul", site, net.normal(4, 4))
    late = net.op("Gemm", site, net.normal(4, 4), net.op("MatMul", net.op("Sin", early, result="b"), net.normal(4, 4)))
    net.output(net.op("MatMul", net.op("Exp", late, result="c"), net.normal(4, 4)))
    model = net.model()
    stages = assert_faithful(model, sites_of(model), rows())
    assert [[tap.name for tap in stage.fed] for stage in stages] == [[], ["a"], ["a", "b"], []]


def body(name: str, nodes: list[tuple[str, list[str], str]], result: str) -> object:
    inner = [helper.make_node(operator, inputs, [output]) for operator, inputs, output in nodes]
    return helper.make_graph(inner, name, [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)])


def test_what_a_body_captures_is_live_too(net: Net) -> None:
    early = net.op("Sin", net.op("Neg", "x"), result="early")
    bias = net.vector(4)
    flow = net.op("MatMul", net.op("Relu", "x", result="a"), net.normal(4, 4), result="flow")
    then = body("then", [("Add", [flow, early], "t1"), ("Mul", ["t1", bias], "t2")], "t2")
    otherwise = body("else", [("Identity", [early], "e1")], "e1")
    flow = net.op("If", net.input("yes", [], TensorProto.BOOL), then_branch=then, else_branch=otherwise)
    net.output(net.op("MatMul", net.op("Sin", flow, result="b"), net.normal(4, 4)))
    model = net.model()
    stages = assert_faithful(model, sites_of(model), rows() | {"yes": np.array(True)})
    assert_faithful(model, sites_of(model), rows() | {"yes": np.array(False)})
    assert [value.name for value in stages[1].inputs] == ["yes", "early"]


def test_after_an_insertion_the_rows_are_those_of_the_later_value(net: Net) -> None:
    for _ in range(2):
        net.output(net.op("MatMul", net.op("Relu", "x"), net.normal(4, 4)))
    hidden = net.op("Add", *net.outputs)
    net.output(net.op("MatMul", net.op("Sin", hidden), net.normal(4, 4)))
    model = net.model()
    sites = sites_of(model)
    Insert(tuple(OnlineTransform(site, (Scale(np.arange(1, 5.0)), Hadamard(4, 4))) for site in sites))(model)
    stages = assert_faithful(model, sites, rows())
    taps = [tap for stage in stages for tap in stage.arriving]
    assert all(tap.value is tap.site.linears[0].node.inputs[0] is not tap.site.value for tap in taps)


def test_random_graphs_with_all_kinds_of_readers() -> None:
    several = 0
    for seed in range(60):
        graph = random_graph(random.Random(seed))
        model = graph.net.model()
        stages = assert_faithful(model, sites_of(model), graph.feeds(PREFILL))
        several += len(stages) > 3
    assert several > 5


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_bert", "tiny_llama_dynamo", "tiny_llama_opset23"])
def test_real_architectures(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    opened = analyse(load.load(folder / "model.onnx"), Recipe())
    stages = assert_faithful(opened.model, opened.sites, language_feeds(folder, length=7))
    assert len(stages) == len(opened.sites) + 1
    running = [node for stage in stages for node in stage.nodes]
    assert len({node.name for node in running if node.op_type == "MatMul"}) < len(opened.model.graph)
    assert not {node.name for node in running} & {str(node.name) for node in _behind(opened.sites[-1])}


def _behind(site: Site) -> list[ir.Node]:
    """Return every node that needs the last site."""
    pending, found = [site.value], list[ir.Node]()
    while pending:
        for reader in pending.pop().consumers():
            found.append(reader)
            pending.extend(reader.outputs)
    return found


def test_llama_hands_over_the_residual_the_site_and_what_positions_need(tiny_llama: Path) -> None:
    opened = analyse(load.load(tiny_llama / "model.onnx"), Recipe())
    feeds = language_feeds(tiny_llama, length=16)
    stages = cut(opened.model, opened.sites)
    seen = follow(stages, feeds)
    large = [sum(seen[str(value.name)].size > 300 for value in stage.outputs) for stage in stages]
    # After stage 0: residual, site, cosines, sines, mask. Before an o_proj or a down_proj the residual lives already.
    assert large == [5, *[1, 2, 1, 2] * 2, 1, 1, 1, 0]


def test_no_site_no_stage(net: Net) -> None:
    net.output(net.op("Relu", "x"))
    assert cut(net.model(), ()) == ()


def test_linears_of_one_site_that_read_different_values_are_named(net: Net) -> None:
    for _ in range(2):
        net.output(net.op("MatMul", "x", net.normal(4, 4)))
    model = net.model()
    (site,) = sites_of(model)
    Insert((OnlineTransform(Site(site.value, 4, site.linears[1:]), (Hadamard(4, 4),)),))(model)
    with pytest.raises(ValueError, match=f"site x read 2 different values.*all of {site.linears[0].name}, "):
        cut(model, (site,))
