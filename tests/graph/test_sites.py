"""Linears are found by structure, gathered by what they read, and nothing is passed over in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from catonnx.graph.sites import Found, Selection, find_sites
from tests.graph.builder import Net

HEAD = Selection(head=True)


@pytest.fixture
def net() -> Net:
    net = Net()
    net.input("x", ["rows", 4])
    return net


def found(net: Net, selection: Selection = HEAD) -> Found:
    return find_sites(net.model().graph, selection)


def test_all_linears_that_read_one_activation_are_one_site(net: Net) -> None:
    hidden = net.op("Relu", "x")
    for width in (3, 5):
        net.output(net.op("MatMul", hidden, net.normal(4, width)))
    net.output(net.op("MatMul", "x", net.normal(4, 2)))
    sites = found(net).sites
    assert [(site.name, site.width, [linear.outputs for linear in site.linears]) for site in sites] == [
        (hidden, 4, [3, 5]),
        ("x", 4, [2]),
    ]


@pytest.mark.parametrize("spelling", ["Identity", "Transpose", "Cast", "Constant"])
def test_a_weight_counts_as_constant_whatever_node_spells_it(net: Net, spelling: str) -> None:
    array = np.ones((4, 3), np.float32)
    match spelling:
        case "Identity":
            weight = net.op("Identity", net.constant(array))
        case "Transpose":
            weight = net.op("Transpose", net.constant(array.T.copy()), perm=[1, 0])
        case "Cast":
            weight = net.op("Cast", net.constant(array.astype(np.float16)), to=TensorProto.FLOAT)
        case _:
            weight = net.constant_node(array)
    net.output(net.op("MatMul", "x", weight))
    ((site,), passed_over) = (found(net).sites, found(net).passed_over)
    assert (site.width, site.linears[0].outputs, site.dtype) == (4, 3, ir.DataType.FLOAT)
    assert passed_over == ()


def test_a_gemm_is_seen_in_one_orientation_whatever_it_says(net: Net) -> None:
    net.output(net.op("Gemm", "x", net.normal(3, 4), transB=1))
    net.output(net.op("Gemm", "x", net.normal(4, 3)))
    (site,) = found(net).sites
    assert [(linear.inputs, linear.outputs) for linear in site.linears] == [(4, 3), (4, 3)]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda n: n.op("MatMul", n.normal(3, 4), n.op("Unknown", "x", domain="example.com")), "rank of what it"),
        (lambda n: n.op("MatMul", n.op("Unknown", "x", domain="example.com"), n.normal(1, 4, 3)), "rank of what it"),
        (lambda n: n.op("MatMul", n.normal(3, 1), n.op("ReduceSum", "x")), "outer product"),
        (lambda n: n.op("MatMul", "x", n.normal(4)), "1 axis"),
        (lambda n: n.op("MatMul", n.normal(3), "x"), "1 axis"),
        (
            lambda n: n.op(
                "MatMul", n.op("DequantizeLinear", n.constant(np.ones((4, 3), np.int8)), n.constant(0.1)), "x"
            ),
            "already quantized",
        ),
        (lambda n: n.op("MatMul", n.normal(3, 4), n.normal(4, 4)), "both operands are constant"),
        (lambda n: n.op("MatMul", "x", n.normal(2, 4, 3)), "3 axes"),
        (lambda n: n.op("MatMul", "x", n.constant(np.zeros((4, 0)))), "empty"),
        (lambda n: n.op("MatMul", "x", n.constant(np.ones((4, 4), np.int32))), "type INT32"),
        (lambda n: n.op("MatMul", n.op("Cast", "x", to=11), n.op("Cast", n.normal(4, 4), to=11)), "type DOUBLE"),
        (lambda n: n.op("MatMulInteger", "x", n.constant(np.ones((4, 4), np.int8))), "already quantized"),
        (lambda n: n.op("MatMulNBits", "x", "x", "x", domain="com.microsoft"), "already quantized"),
        (
            lambda n: n.op(
                "MatMul", "x", n.op("DequantizeLinear", n.constant(np.ones((4, 3), np.int8)), n.constant(0.1))
            ),
            "already quantized",
        ),
    ],
)
def test_what_looks_like_a_linear_and_is_none_is_listed_with_the_reason(net: Net, build: object, reason: str) -> None:
    net.output(build(net))  # type: ignore[operator]
    result = found(net)
    assert result.sites == ()
    ((_, _, why),) = result.passed_over
    assert reason in why


@pytest.mark.parametrize(
    ("build", "inputs", "outputs"),
    [
        (lambda n: n.op("MatMul", n.normal(3, 4), "y"), 4, 3),
        (lambda n: n.op("MatMul", n.normal(1, 1, 3, 4), "y"), 4, 3),
        (lambda n: n.op("Gemm", n.normal(3, 4), "y"), 4, 3),
        (lambda n: n.op("Gemm", n.normal(4, 3), "y", transA=1), 4, 3),
        (lambda n: n.op("Gemm", n.normal(3, 4), "x", transB=1), 4, 3),
    ],
)
def test_a_constant_on_the_left_is_seen_in_the_same_orientation(
    net: Net, build: Callable[[Net], str], inputs: int, outputs: int
) -> None:
    net.input("y", [4, "rows"])
    net.output(net.op("MatMul", "y", net.op("MatMul", "x", net.normal(4, 4), result="right")))
    net.output(build(net))
    right, left = found(net).sites
    (linear,) = left.linears
    assert (left.width, linear.inputs, linear.outputs, linear.place) == (inputs, inputs, outputs, 0)
    assert right.linears[0].place == 1


def test_what_multiplies_from_both_sides_is_no_one_site(net: Net) -> None:
    net.input("square", [4, 4])
    net.output(net.op("MatMul", "square", net.normal(4, 3)))
    net.output(net.op("MatMul", net.normal(5, 4), "square"))
    assert [[linear.place for linear in site.linears] for site in found(net).sites] == [[1], [0]]


def test_products_of_activations_and_operators_of_other_domains_are_not_mentioned(net: Net) -> None:
    net.output(net.op("MatMul", "x", net.op("Transpose", "x")))
    net.output(net.op("MatMul", "x", net.normal(4, 4), domain="example.com"))
    assert found(net) == Found((), ())


def branch(name: str, activation: str = "x") -> onnx.GraphProto:
    """Return a branch that multiplies an activation of the main graph by a weight of its own."""
    return helper.make_graph(
        [helper.make_node("MatMul", [activation, f"{name}_w"], [f"{name}_y"], f"{name}_product")],
        name,
        [],
        [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor(f"{name}_w", TensorProto.FLOAT, [4, 4], np.eye(4).reshape(-1))],
    )


def test_linears_in_bodies_are_sites_of_their_own_whatever_they_read(net: Net) -> None:
    condition = net.constant(np.array(True))
    net.output(net.op("If", condition, then_branch=branch("one"), else_branch=branch("two")))
    net.output(net.op("MatMul", "x", net.normal(4, 4)))
    sites = found(net).sites
    assert {(site.name, site.inside, len(site.linears)) for site in sites} == {
        ("x/one_product", True, 1),
        ("x/two_product", True, 1),
        ("x", False, 1),
    }


@pytest.mark.parametrize("behind", ["Softmax", "MatMul"])
def test_a_head_in_a_branch_is_one_if_nothing_stands_behind_the_if(net: Net, behind: str) -> None:
    hidden = net.op("Relu", net.op("MatMul", "x", net.normal(4, 4)))
    condition = net.constant(np.array(True))
    chosen = net.op("If", condition, then_branch=branch("one", hidden), else_branch=branch("two", hidden))
    net.output(net.op(behind, chosen, *([net.normal(4, 4)] if behind == "MatMul" else [])))
    heads = [linear.name for site in found(net, Selection()).sites for linear in site.linears if linear.reason]
    assert sorted(heads) == (["one_product", "two_product"] if behind == "Softmax" else [net.nodes[-1].name])


def test_what_a_loop_repeats_is_no_head(net: Net) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["going"]),
            helper.make_node("MatMul", ["state", "w"], ["next"], "step"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["rows", 4]),
        ],
        [
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["rows", 4]),
        ],
        [helper.make_tensor("w", TensorProto.FLOAT, [4, 4], np.eye(4).reshape(-1))],
    )
    net.output(net.op("Loop", net.constant(np.array(3)), "", "x", body=body))
    net.output(net.op("MatMul", "x", net.normal(4, 4)))
    reasons = {linear.name: linear.reason for site in found(net, Selection()).sites for linear in site.linears}
    assert reasons.pop("step") == ""
    assert all("output head" in reason for reason in reasons.values())
    assert len(reasons) == 1


@pytest.mark.parametrize(
    ("operator", "operands", "options"),
    [
        ("Attention", ["h", "w", "b"], {"num_heads": 2}),
        ("FusedMatMul", ["x", "w"], {"alpha": 2.0}),
        ("FusedGemm", ["x", "w", "b"], {"activation": "Relu"}),
    ],
)
def test_weights_of_fused_operators_are_not_passed_over_in_silence(
    net: Net, operator: str, operands: list[str], options: dict[str, Any]
) -> None:
    constants = {"w": net.normal(4, 12), "b": net.normal(12)}
    net.input("h", ["batch", "rows", 4])
    net.op(operator, *(constants.get(name, name) for name in operands), domain="com.microsoft", **options)
    ((_, kind, why),) = found(net).passed_over
    assert kind == operator
    assert f"a fused {operator}" in why


def test_a_fused_product_of_activations_is_not_mentioned(net: Net) -> None:
    net.op("FusedMatMul", "x", "x", domain="com.microsoft", transB=1)
    assert found(net).passed_over == ()


def test_patterns_choose_by_name_and_say_so(net: Net) -> None:
    names = []
    for _ in range(3):
        net.output(net.op("MatMul", "x", net.normal(4, 4)))
        names.append(net.nodes[-1].name)
    (site,) = found(net, Selection(include=(names[0], names[1]), exclude=(names[1],), head=True)).sites
    assert [linear.reason for linear in site.linears] == [
        "",
        f"named by --exclude {names[1]}",
        "not named by --include",
    ]
    assert [linear.name for linear in site.selected] == [names[0]]


def test_an_output_head_is_left_in_float_unless_asked_for_or_alone(net: Net) -> None:
    hidden = net.op("Relu", net.op("MatMul", "x", net.normal(4, 4)))
    net.output(net.op("Softmax", net.op("Add", net.op("MatMul", hidden, net.normal(4, 9)), net.vector(9))))
    first, head = (site.linears[0] for site in found(net, Selection()).sites)
    assert (first.selected, head.selected) == (True, False)
    assert "--lm-head" in head.reason
    assert all(site.linears[0].selected for site in found(net, HEAD).sites)
    alone = Net()
    alone.output(alone.op("MatMul", alone.input("x", ["rows", 4]), alone.normal(4, 4)))
    assert found(alone, Selection()).sites[0].selected


def _routed(net: Net, choice: str) -> str:
    """Expert 2 or not, chosen by a linear behind a linear, and what is left of the chosen one."""
    hidden = net.op("Relu", net.op("MatMul", "x", net.normal(4, 4)))
    logits = net.op("Add", net.op("MatMul", hidden, net.normal(4, 3), result="logits"), net.vector(3))
    weights = net.op("Cast", net.op("Softmax", net.op("Cast", logits, to=TensorProto.FLOAT)), to=TensorProto.FLOAT)
    if choice == "ArgMax":
        index = net.op("ArgMax", weights, axis=-1, keepdims=0)
    else:
        _, index = net.ops("TopK", weights, net.constant([2]), results=["best", "index"])
    depth, values = net.constant([3]), net.constant(np.array([0.0, 1.0]))
    net.output(net.op("OneHot", index, depth, values))
    return hidden


@pytest.mark.parametrize("choice", ["TopK", "ArgMax"])
def test_a_router_is_left_in_float_unless_it_is_named(net: Net, choice: str) -> None:
    hidden = _routed(net, choice)
    net.output(net.op("Softplus", net.op("MatMul", hidden, net.normal(4, 4))))
    (_, (router, other)) = (site.linears for site in found(net, Selection()).sites)
    assert router.reason == "router; name it by --include to round it"
    assert other.selected
    assert found(net, Selection(exclude=(router.name,))).sites[1].linears[0].reason.startswith("named by --exclude")
    named = [site.linears[0].selected for site in found(net, Selection(include=(router.name,))).sites]
    assert named == [False, True]


def test_a_linear_whose_choice_leaves_the_graph_is_an_output_head(net: Net) -> None:
    hidden = net.op("Relu", net.op("MatMul", "x", net.normal(4, 4)))
    net.output(net.op("ArgMax", net.op("MatMul", hidden, net.normal(4, 9)), axis=-1))
    head = found(net, Selection()).sites[1].linears[0]
    assert head.reason == "output head; --lm-head includes it"
    assert found(net, HEAD).sites[1].linears[0].selected


@pytest.mark.parametrize("between", ["MatMul", "ReduceMax", "Gather", "Softplus"])
def test_nobody_is_a_router_whose_numbers_are_not_compared_one_by_one(net: Net, between: str) -> None:
    first = net.op("MatMul", "x", net.normal(4, 4))
    match between:
        case "MatMul":
            value = net.op("MatMul", net.op("Transpose", first, perm=[1, 0]), "x")
        case "ReduceMax":
            value = net.op("ReduceMax", first, net.constant([-1]))
        case "Gather":
            value = net.op("Gather", first, net.constant([0]), axis=1)
        case _:
            value = net.op("Softplus", first)
    index = net.op("ArgMax", value, axis=0)
    net.output(net.op("Gather", net.op("MatMul", "x", net.normal(4, 4)), index, axis=0))
    assert [linear.reason for linear in found(net, Selection()).sites[0].linears] == ["", ""]
