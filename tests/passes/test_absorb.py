"""Factors written into producers and their inverse into readers: structure and numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from catonnx.analysis import Opened, analyse
from catonnx.graph.absorb import Permutable
from catonnx.graph.edits import float64_of
from catonnx.graph.writers import Writer
from catonnx.math.factors import Blocks, Factor, Hadamard, Permutation, Scale
from catonnx.passes.absorb import Absorb, AbsorbedTransform
from catonnx.recipe import Recipe
from tests.graph.builder import Net, relative_error, run

X = {"x": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)}
RANDOM = np.random.default_rng(1)
SCALE = Scale(np.array([0.25, 0.5, 1, 2, 4, 8.0]))
ORDER = Permutation(np.array([3, 5, 0, 1, 4, 2]))
BLOCKS = Blocks(RANDOM.normal(size=(2, 3, 3)) + 3 * np.eye(3))


def net_of(*between: str) -> Net:
    """Norm -> linear with bias -> point-wise operators -> two linears."""
    net = Net(seed=6)
    x = net.op("LayerNormalization", net.input("x", ["batch", "seq", 4]), net.vector(4), net.vector(4))
    value = net.op("Add", net.op("MatMul", x, net.normal(4, 6, hint="first")), net.vector(6, hint="bias"))
    for operator in between:
        value = net.op(operator, value)
    for name in ("y", "z"):
        net.output(net.op("MatMul", value, net.normal(6, 5, hint="second"), result=name))
    return net


def absorbed(opened: Opened, index: int, *factors: Factor) -> AbsorbedTransform:
    site = opened.sites[index]
    absorption = opened.absorptions[site.name]
    return AbsorbedTransform(site, absorption.writers, factors, absorption.permutable)


@pytest.mark.parametrize(
    "factors",
    [
        (SCALE,),
        (BLOCKS,),
        (Hadamard(6, 2),),
        (ORDER,),
        (SCALE, Hadamard(6, 2)),
        (BLOCKS, SCALE),
        (Hadamard(6, 2), BLOCKS, SCALE),
        (SCALE, ORDER, BLOCKS, ORDER, SCALE),
    ],
    ids=lambda factors: "-".join(factor.kind.value for factor in factors),
)
def test_the_function_stays_and_the_activation_is_in_the_new_basis(factors: tuple[Factor, ...]) -> None:
    net = net_of()
    hidden = net.nodes[2].output[0]
    opened = analyse(net.model(), Recipe(lm_head=True))
    before = run(net.proto(), X)
    Absorb((absorbed(opened, 1, *factors),))(opened.model)
    after = run(opened.model, X)
    for name, array in before.items():
        # Measured 3e-7.
        assert relative_error(array, after[name]) < 1e-5
    shown = net_of()
    shown.output(hidden)
    expected = run(shown.proto(), X)[hidden]
    for factor in factors:
        expected = factor.apply(expected)
    opened.model.graph.outputs.append(opened.sites[1].value)
    opened.sites[1].value.dtype = opened.sites[1].dtype
    assert relative_error(expected, run(opened.model, X)[hidden]) < 1e-5


def test_no_node_is_added_and_every_weight_keeps_its_shape() -> None:
    opened = analyse(net_of("Relu").model(), Recipe(lm_head=True))
    graph = opened.model.graph
    nodes = Counter(node.op_type for node in graph)
    shapes = sorted(tuple(value.shape or ()) for value in graph.initializers.values())
    result = Absorb((absorbed(opened, 0, Scale(np.ones(4) * 2)), absorbed(opened, 1, SCALE)))(opened.model)
    assert result.modified
    assert Counter(node.op_type for node in graph) == nodes
    assert sorted(tuple(value.shape or ()) for value in graph.initializers.values()) == shapes


def test_a_weight_between_two_sites_takes_both_sides_and_is_rounded_once() -> None:
    opened = analyse(net_of().model(), Recipe(lm_head=True))
    first, second = Blocks(RANDOM.normal(size=(1, 4, 4)) + 3 * np.eye(4)), BLOCKS
    site = opened.sites[0]
    weight = site.linears[0].node.inputs[1]
    assert weight is not None
    original = float64_of(weight)()
    norm = AbsorbedTransform(site, (), (first,))
    Absorb((norm, absorbed(opened, 1, second)))(opened.model)
    folded = site.linears[0].node.inputs[1]
    assert folded is not None
    exact = np.linalg.inv(first.dense()) @ original @ second.dense()
    np.testing.assert_allclose(float64_of(folded)(), exact, rtol=1e-12, atol=1e-14)  # measured 5e-16
    assert folded.const_value is not None
    np.testing.assert_array_equal(folded.const_value.numpy(), float64_of(folded)().astype(np.float32))


def test_a_constant_of_one_number_is_written_out_where_channels_must_differ() -> None:
    net = Net(seed=3)
    x = net.input("x", ["batch", "seq", 4])
    heads = net.op("Reshape", net.op("MatMul", x, net.normal(4, 6)), net.constant([0, 0, 2, 3]))
    moved = net.op("Add", heads, net.vector(2, 1, hint="per_head"))
    net.output(net.op("MatMul", net.op("Reshape", moved, net.constant([0, 0, 6])), net.normal(6, 5), result="y"))
    opened = analyse(net.model(), Recipe(lm_head=True))
    Absorb((absorbed(opened, 1, SCALE),))(opened.model)
    (add,) = (node for node in opened.model.graph if node.op_type == "Add")
    constant = add.inputs[1]
    assert constant is not None
    assert tuple(constant.shape or ()) == (2, 3)
    assert relative_error(run(net.proto(), X)["y"], run(opened.model, X)["y"]) < 1e-5


def test_a_constant_that_others_read_too_stays_theirs() -> None:
    net = Net(seed=3)
    x, gamma = net.input("x", ["batch", "seq", 4]), net.vector(4)
    net.output(net.op("Mul", net.op("Tanh", x), gamma, result="other"))
    net.output(net.op("MatMul", net.op("Mul", x, gamma), net.normal(4, 5), result="y"))
    opened = analyse(net.model(), Recipe(lm_head=True))
    Absorb((absorbed(opened, 0, Scale(np.array([1, 2, 3, 4.0]))),))(opened.model)
    before, after = run(net.proto(), X), run(opened.model, X)
    np.testing.assert_array_equal(after["other"], before["other"])
    assert relative_error(before["y"], after["y"]) < 1e-5


def test_a_negative_scaling_is_refused_before_anything_changes() -> None:
    net = net_of("Relu")
    opened = analyse(net.model(), Recipe(lm_head=True))
    flipped = Scale(np.array([1, 1, 1, 1, 1, -1.0]))
    with pytest.raises(ValueError, match="negative in places"):
        Absorb((absorbed(opened, 0, Scale(np.ones(4) * 2)), absorbed(opened, 1, flipped)))(opened.model)
    after = run(opened.model, X)
    for name, array in run(net.proto(), X).items():
        np.testing.assert_array_equal(after[name], array)


def test_nothing_to_absorb_changes_nothing() -> None:
    opened = analyse(net_of().model(), Recipe(lm_head=True))
    assert not Absorb(())(opened.model).modified


def gated_net(divided: bool = False) -> Net:
    """SiLU of one linear times another linear with a bias, read by a third: a gated MLP."""
    net = Net(seed=4)
    x = net.input("x", ["batch", "seq", 4])
    gate = net.op("MatMul", x, net.normal(4, 6, hint="gate"))
    up = net.op("Add", net.op("MatMul", x, net.normal(4, 6, hint="up")), net.vector(6, hint="bias"))
    if divided:
        up = net.op("Div", up, net.vector(6, hint="divisor"))
    value = net.op("Mul", net.op("Mul", gate, net.op("Sigmoid", gate)), up)
    net.output(net.op("MatMul", value, net.normal(6, 5, hint="down"), result="y"))
    return net


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("factors", [(ORDER,), (SCALE, ORDER), (ORDER, SCALE), (ORDER, SCALE, ORDER)])
def test_a_permutation_goes_into_both_branches_of_a_gate_and_a_scaling_into_one(
    factors: tuple[Factor, ...], divided: bool
) -> None:
    net = gated_net(divided)
    (hidden,) = (node.output[0] for node in net.nodes[-2:-1])
    shown = gated_net(divided)
    shown.output(hidden)
    before = run(shown.proto(), X)
    opened = analyse(net.model(), Recipe(lm_head=True))
    nodes = Counter(node.op_type for node in opened.model.graph)
    Absorb((absorbed(opened, 1, *factors),))(opened.model)
    assert Counter(node.op_type for node in opened.model.graph) == nodes
    opened.model.graph.outputs.append(opened.sites[1].value)
    opened.sites[1].value.dtype = opened.sites[1].dtype
    after = run(opened.model, X)
    assert relative_error(before["y"], after["y"]) < 1e-5  # measured 2e-7
    expected = before[hidden]
    for factor in factors:
        expected = factor.apply(expected)
    assert relative_error(expected, after[hidden]) < 1e-5


def test_a_permutation_alone_does_not_round_anything() -> None:
    opened = analyse(gated_net().model(), Recipe(lm_head=True))
    Absorb((absorbed(opened, 1, ORDER),))(opened.model)
    back = Permutation(np.argsort(ORDER.order))
    Absorb((absorbed(opened, 1, back),))(opened.model)
    before, after = run(gated_net().proto(), X), run(opened.model, X)
    np.testing.assert_array_equal(before["y"], after["y"])


def test_a_permutation_that_does_not_fit_is_refused_before_anything_changes() -> None:
    net = net_of("Softmax")
    opened = analyse(net.model(), Recipe(lm_head=True))
    free = absorbed(opened, 0, Scale(np.ones(4) * 2))
    with pytest.raises(ValueError, match="cannot take the permutation: Softmax takes up nothing"):
        Absorb((free, absorbed(opened, 1, ORDER)))(opened.model)
    site = opened.sites[1]
    with pytest.raises(ValueError, match=f"site {site.name} cannot take the permutation$"):
        Absorb((free, AbsorbedTransform(site, (), (ORDER,))))(opened.model)
    room = Permutable((Writer(site.linears[0].node, 1, (1,), (6,), np.arange(6)),), np.arange(6), np.arange(6))
    with pytest.raises(ValueError, match="channels would leave their head or tie"):
        Absorb((free, AbsorbedTransform(site, (), (ORDER,), room)))(opened.model)
    after = run(opened.model, X)
    for name, array in run(net.proto(), X).items():
        np.testing.assert_array_equal(after[name], array)
