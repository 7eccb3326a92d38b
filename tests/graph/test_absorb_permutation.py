"""Row by row: what a permutation passes, where it is written, and that the function stays the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from catonnx.graph.absorb import Absorption, Permutable
from catonnx.graph.writers import Writer
from catonnx.math.factors import Permutation, Scale
from tests.graph.builder import Net, absorbable
from tests.graph.equivalence import assert_equivalent
from tests.graph.test_absorb import WHOLE, Build, D, X, bias, net_of, read_again, reshape

WRITERS = (Writer(ir.node("MatMul", []), 1, (1,), (8,), np.arange(8)),)


def silu(net: Net, value: str) -> str:
    return net.op("Mul", value, net.op("Sigmoid", value))


def gelu_in_pieces(net: Net, value: str) -> str:
    inner = net.op("Add", net.op("Erf", net.op("Div", value, net.constant(1.4))), net.constant(1.0))
    return net.op("Mul", net.op("Mul", value, inner), net.constant(0.5))


def fused_gate(net: Net, value: str) -> str:
    whole = net.op("Add", net.op("MatMul", net.op("Tanh", value), net.normal(D, 2 * D)), net.vector(2 * D))
    gate, up = net.ops("Split", whole, results=["gate", "up"], axis=-1, num_outputs=2)
    return net.op("Mul", silu(net, gate), up)


PERMUTES: dict[str, tuple[Build, list[tuple[str, int, bool]]]] = {
    "a linear": (lambda _, v: v, WHOLE),
    "its bias": (bias, [*WHOLE, ("Add", 1, False)]),
    "Gelu": (lambda n, v: n.op("Gelu", bias(n, v)), [*WHOLE, ("Add", 1, False)]),
    "Gelu in pieces": (gelu_in_pieces, WHOLE),
    "SiLU, where the ways meet again": (silu, WHOLE),
    "a square": (lambda n, v: n.op("Mul", v, v), WHOLE),
    "both branches of a gate": (
        lambda n, v: n.op("Mul", silu(n, v), n.op("MatMul", n.op("Tanh", "x"), n.normal(4, D))),
        [*WHOLE, *WHOLE],
    ),
    "both sides of a quotient": (
        lambda n, v: n.op("Div", n.op("MatMul", n.op("Tanh", "x"), n.normal(4, D)), n.op("Exp", n.op("Tanh", v))),
        [*WHOLE, *WHOLE],
    ),
    "both slices of a fused gate": (fused_gate, [*WHOLE, ("Add", 1, False), *WHOLE, ("Add", 1, False)]),
    "a vector and what it multiplies": (lambda n, v: n.op("Mul", n.vector(D), v), [*WHOLE, ("Mul", 0, False)]),
    "a divisor and what it divides": (lambda n, v: n.op("Div", v, n.vector(D)), [*WHOLE, ("Div", 1, False)]),
    "a constant over the value": (lambda n, v: n.op("Div", n.vector(D), v), [*WHOLE, ("Div", 0, False)]),
    "one number for all, between limits": (
        lambda n, v: n.op("Clip", n.op("Add", v, n.constant(0.5)), n.constant(-1.0), n.constant(1.0)),
        WHOLE,
    ),
    "one number for each row": (
        lambda n, v: n.op("Mul", v, n.op("MatMul", "x", n.normal(4, 1))),
        WHOLE,
    ),
    "a slope for each channel": (lambda n, v: n.op("PRelu", v, n.vector(D)), [*WHOLE, ("PRelu", 1, False)]),
    "ONNX Runtime's Gelu with a bias": (
        lambda n, v: n.op("FastGelu", v, n.vector(D), domain="com.microsoft"),
        [*WHOLE, ("FastGelu", 1, False)],
    ),
    "its other Gelu with a bias": (
        lambda n, v: n.op("BiasGelu", v, n.vector(D), domain="com.microsoft"),
        [*WHOLE, ("BiasGelu", 1, False)],
    ),
    "axes that change places": (
        lambda n, v: reshape(n, n.op("Transpose", silu(n, reshape(n, v, 0, 0, 2, 3)), perm=[0, 1, 3, 2]), 0, 0, D),
        WHOLE,
    ),
}


@pytest.mark.parametrize(("build", "writers"), PERMUTES.values(), ids=PERMUTES)
def test_a_permutation_goes_everywhere(build: Build, writers: list[tuple[str, int, bool]]) -> None:
    net = net_of(build)
    absorption = absorbable(net)
    room = absorption.permutable
    assert room is not None
    assert room.reason == ""
    assert sorted((w.node.op_type, w.index, w.power < 0) for w in room.writers) == sorted(writers)
    assert {writer.place for writer in absorption.writers} <= {writer.place for writer in room.writers}
    assert absorption.can_permute(np.array([5, 3, 0, 1, 2, 4]))
    assert_equivalent(net, X)


STAYS: dict[str, tuple[Build, str]] = {
    "a norm": (lambda n, v: n.op("LayerNormalization", v, n.vector(D)), "LayerNormalization takes up nothing"),
    "another reader of the site": (read_again, "also read by Tanh"),
    "another reader of one branch": (
        lambda n, v: n.op("Mul", n.op("Sigmoid", read_again(n, v)), n.op("MatMul", "x", n.normal(4, D))),
        "also read by Tanh",
    ),
    "an output of one branch": (
        lambda n, v: n.op("Mul", n.op("Sigmoid", n.output(v)), n.op("MatMul", "x", n.normal(4, D))),
        "also an output of the graph",
    ),
    "a sum over channels": (
        lambda n, v: n.op("Div", v, n.op("ReduceSum", v, n.constant([-1]))),
        "also read by ReduceSum",
    ),
    "a sum over channels further on": (
        lambda n, v: n.op("Div", v, n.op("ReduceMax", n.op("Exp", v), n.constant([-1]))),
        "also read by ReduceMax",
    ),
    "one branch that stays": (lambda n, v: n.op("Mul", v, n.op("Softmax", n.op("Tanh", v))), "also read by Softmax"),
    "a branch from the graph's input": (
        lambda n, v: n.op("Mul", v, n.input("z", ["batch", "seq", D])),
        "straight from a graph input",
    ),
    "another linear": (
        lambda n, v: n.op("Mul", v, n.op("MatMul", n.op("Tanh", v), n.normal(D, D))),
        "also read by MatMul",
    ),
    "channels in two places": (
        lambda n, v: n.op(
            "Mul",
            v,
            reshape(n, n.op("Transpose", reshape(n, v, 0, 0, 2, 3), perm=[0, 1, 3, 2]), 0, 0, D),
        ),
        "would be permuted in two ways",
    ),
    "constants alone": (lambda n, v: n.op("Exp", n.op("Softmax", v)), "Softmax takes up nothing"),
}


@pytest.mark.parametrize(("build", "reason"), STAYS.values(), ids=STAYS)
def test_what_no_permutation_passes(build: Build, reason: str) -> None:
    absorption = absorbable(net_of(build))
    room = absorption.permutable
    assert room is not None
    assert (room.writers, room.caches) == ((), ())
    assert reason in room.reason
    assert not absorption.can_permute(np.arange(D))


def test_which_orders_fit_heads_and_ties() -> None:
    channels = np.arange(8)
    room = Permutable(WRITERS, np.repeat([0, 1], 4), np.tile(np.arange(4), 2))
    assert room.takes(channels)
    assert room.takes(np.array([1, 0, 2, 3, 5, 4, 6, 7]))
    assert not room.takes(np.array([1, 0, 2, 3, 4, 5, 6, 7])), "tied heads need the same order"
    assert not room.takes(np.roll(channels, 4)), "heads do not change places"
    assert not room.takes(channels[:4])
    assert not Permutable((), room.groups, room.ties).takes(channels)
    pairs = Permutable(WRITERS, np.zeros(4, np.int64), np.array([0, 0, 1, 1]))
    assert pairs.takes(np.array([2, 3, 0, 1]))
    assert pairs.takes(np.array([3, 2, 0, 1]))
    assert not pairs.takes(np.array([0, 2, 1, 3]))


def test_caches_change_with_what_is_taken_up() -> None:
    room = Permutable((), np.arange(2), np.arange(2), caches=("other",))
    absorption = Absorption((), 1, np.arange(2), caches=("own",), permutable=room)
    scale, order = Scale(np.ones(2)), Permutation(np.arange(2))
    assert absorption.changed_caches(()) == ()
    assert absorption.changed_caches((scale,)) == ("own",)
    assert absorption.changed_caches((order,)) == ("other",)
    assert absorption.changed_caches((order, scale)) == ("other", "own")
