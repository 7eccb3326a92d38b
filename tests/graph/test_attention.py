"""Values of attention: blocks within a head, tied where heads are repeated; caches keep the basis they came in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.graph.builder import Net, absorbable, run
from tests.graph.equivalence import assert_equivalent, assert_same, rewritten

BATCH, DEPTH = 2, 4


@dataclasses.dataclass(frozen=True)
class Attention:
    """Options of one attention layer; the fields name what deviates from the plainest one.

    Attributes:
        groups: Heads of keys and values.
        repeats: Query heads for each of them.
        repeat: How they are repeated: `expand` behind the heads, `front` before them, or `broadcast` by the product.
        cache: Whether keys and values are joined to graph inputs.
        fused: Whether values are a part of a fused projection, with a bias.
        turned: Whether the channels of a head lie before the heads in the projection.
        merged: Whether heads and batch are one axis during the products, as in Bloom.
        attended: Whether values are weighted at all; if not, they are joined and read as they are.
    """

    groups: int = 2
    repeats: int = 1
    repeat: str = "expand"
    cache: bool = False
    fused: bool = False
    turned: bool = False
    merged: bool = False
    attended: bool = True

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.groups * self.repeats

    def net(self) -> Net:
        """Build the layer on x [batch, seq, 8], with one linear behind."""
        net = Net(seed=3)
        x = net.input("x", ["batch", "seq", 8])
        width = self.groups * DEPTH
        if self.fused:
            whole = net.op("Add", net.op("MatMul", x, net.normal(8, 3 * width)), net.vector(3 * width))
            values = net.ops("Split", whole, results=["q", "k", "v"], axis=-1, num_outputs=3)[2]
        else:
            values = net.op("MatMul", x, net.normal(8, width))
        state = self._in_heads(net, values)
        if self.cache:
            past = net.input("past", ["batch", self.groups, "past", DEPTH])
            state = net.op("Concat", past, state, axis=2, result="present")
            net.output(state)
        state = self._repeated(net, state)
        if self.attended:
            query = net.op("MatMul", net.op("Unsqueeze", x, net.constant([1])), net.normal(self.heads, 8, 8))
            length = net.op("Shape", state, start=2, end=3)
            key = net.op("Expand", net.vector(8, 1), net.op("Concat", net.constant([8]), length, axis=0))
            weights = net.op("Softmax", net.op("MatMul", query, key), axis=-1)
            state = self._product(net, weights, state)
        joined = net.op(
            "Reshape", net.op("Transpose", state, perm=[0, 2, 1, 3]), net.constant([0, 0, self.heads * DEPTH])
        )
        net.output(net.op("MatMul", joined, net.normal(self.heads * DEPTH, 8), result="y"))
        return net

    def _product(self, net: Net, weights: str, state: str) -> str:
        if not self.merged:
            return net.op("MatMul", weights, state)
        heads = net.constant([self.heads])
        batch, rows, columns = (net.op("Shape", weights, start=axis, end=axis + 1) for axis in (0, 2, 3))
        both = net.op("Mul", batch, heads)
        weights = net.op("Reshape", weights, net.op("Concat", both, rows, columns, axis=0))
        state = net.op("Reshape", state, net.op("Concat", both, net.constant([-1, DEPTH]), axis=0))
        apart = net.op("Concat", batch, heads, rows, net.constant([DEPTH]), axis=0)
        return net.op("Reshape", net.op("MatMul", weights, state), apart)

    def _in_heads(self, net: Net, values: str) -> str:
        tail, order = ([DEPTH, self.groups], [0, 3, 1, 2]) if self.turned else ([self.groups, DEPTH], [0, 2, 1, 3])
        return net.op("Transpose", net.op("Reshape", values, net.constant([0, 0, *tail])), perm=order)

    def _repeated(self, net: Net, state: str) -> str:
        if self.repeats == 1 or self.repeat == "broadcast":
            return state
        axis, shape = (2, [1, 1, self.repeats, 1, 1]) if self.repeat == "expand" else (1, [1, self.repeats, 1, 1, 1])
        wide = net.op("Expand", net.op("Unsqueeze", state, net.constant([axis])), net.constant(shape))
        return net.op("Reshape", wide, net.constant([0, self.heads, -1, DEPTH]))


def feeds(length: int, past: np.ndarray | None = None, groups: int = 0) -> dict[str, np.ndarray]:
    arrays = {"x": np.random.default_rng(length).normal(size=(BATCH, length, 8)).astype(np.float32)}
    if groups:
        arrays["past"] = np.zeros((BATCH, groups, 0, DEPTH), np.float32) if past is None else past
    return arrays


HEADS_APART = [4 * group + channel for group in (0, 1) for channel in range(4)]


@pytest.mark.parametrize(
    ("attention", "width", "ties"),
    [
        (Attention(), 4, HEADS_APART),
        (Attention(fused=True), 4, HEADS_APART),
        (Attention(repeats=2), 4, [*range(4), *range(4), *range(4, 8), *range(4, 8)]),
        (Attention(repeats=2, repeat="front"), 4, HEADS_APART * 2),
        (Attention(groups=1, repeats=3, repeat="broadcast"), 4, list(range(4)) * 3),
        (Attention(groups=1, repeats=2), 4, list(range(4)) * 2),
        (
            Attention(groups=3, repeats=2, fused=True),
            4,
            [4 * g + c for g in range(3) for _ in range(2) for c in range(4)],
        ),
        (Attention(turned=True), 4, [2 * c + g for g in (0, 1) for c in range(4)]),
        (Attention(merged=True), 4, HEADS_APART),
        (Attention(merged=True, repeats=2, cache=True), 4, [*range(4), *range(4), *range(4, 8), *range(4, 8)]),
        (Attention(attended=False), 8, HEADS_APART),
        (Attention(cache=True, repeats=2, fused=True), 4, [*range(4), *range(4), *range(4, 8), *range(4, 8)]),
    ],
    ids=str,
)
def test_blocks_stay_within_a_head_and_repeated_heads_are_tied(
    attention: Attention, width: int, ties: list[int]
) -> None:
    net = attention.net()
    absorption = absorbable(net)
    assert absorption.width == width
    assert absorption.caches == (("present",) if attention.cache else ())
    same = np.array(ties)[:, None] == np.array(ties)
    np.testing.assert_array_equal(absorption.ties[:, None] == absorption.ties, same)
    assert_equivalent(net, feeds(3, groups=attention.groups if attention.cache else 0))


def test_ties_of_blocks_number_the_sets_of_blocks() -> None:
    absorption = absorbable(Attention(repeats=2).net())
    assert absorption.block_ties(4).tolist() == [0, 0, 1, 1]
    assert absorption.block_ties(2).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_continues_from_its_own_cache_as_the_source_does_from_its(fused: bool) -> None:
    attention = Attention(cache=True, repeats=2, fused=fused)
    source = attention.net().proto()
    changed = 0
    for seed in range(4):
        stages = rewritten(source, np.random.default_rng(seed))
        reference, actual = (run(model, feeds(3, groups=2)) for model in (source, stages.inserted))
        assert_same(reference, actual, "prefill", stages.caches)
        if stages.caches:
            changed += 1
            assert np.abs(actual["present"] - reference["present"]).max() > 0.1, "the cache is in the old basis"
        expected = run(source, feeds(1, reference["present"], groups=2))
        assert_same(expected, run(stages.inserted, feeds(1, actual["present"], groups=2)), "decode", stages.caches)
    assert changed >= 2, "no cache was changed: this tested nothing"


def test_caches_stay_as_they_are_where_the_recipe_wants_them_exact() -> None:
    absorption = absorbable(Attention(cache=True).net(), change_caches=False)
    assert (absorption.width, absorption.caches) == (0, ())
    assert "present is also an output" in absorption.reason


def test_an_output_joined_with_a_graph_input_is_no_cache_without_attention() -> None:
    absorption = absorbable(Attention(cache=True, attended=False).net())
    assert absorption.width == 0
    assert "present is also an output" in absorption.reason


def test_a_cache_input_that_anything_else_reads_is_left_alone() -> None:
    net = Attention(cache=True).net()
    net.output(net.op("Tanh", "past"))
    assert "present is also an output" in absorbable(net).reason
    shape_only = Attention(cache=True).net()
    shape_only.output(shape_only.op("Cast", shape_only.op("Shape", "past"), to=1))
    assert absorbable(shape_only).width == 4


def test_new_rows_that_are_not_returned_are_no_cache() -> None:
    net = Attention(cache=True).net()
    net.outputs.remove("present")
    assert "straight from a graph input" in absorbable(net).reason


def test_a_cache_that_is_read_by_two_layers_is_left_alone() -> None:
    net = Attention(cache=True).net()
    net.output(net.op("ReduceSum", "present"))
    assert "also read by ReduceSum" in absorbable(net).reason


def test_heads_that_were_not_turned_back_mix_rows_and_channels() -> None:
    net = Net()
    x = net.input("x", ["batch", 3, 8])
    values = net.op("Reshape", net.op("MatMul", x, net.normal(8, 8)), net.constant([0, 0, 2, 4]))
    turned = net.op("Transpose", values, perm=[0, 2, 1, 3])
    net.output(net.op("MatMul", net.op("Reshape", turned, net.constant([0, 3, 8])), net.normal(8, 2)))
    assert absorbable(net).width == 0
    assert_equivalent(net, feeds(3))


def test_the_left_operand_of_a_product_takes_nothing() -> None:
    net = Net()
    x = net.input("x", ["batch", "seq", 8])
    left = net.op("MatMul", x, net.normal(8, 8))
    right = net.op("Softmax", net.op("Reshape", net.op("Tanh", x), net.constant([0, 8, -1])))
    square = net.op("MatMul", right, left)
    net.output(net.op("MatMul", square, net.normal(8, 2)))
    assert absorbable(net).path == ("MatMul", "MatMul")
    swapped = Net()
    x = swapped.input("x", ["batch", 8, 8])
    square = swapped.op("MatMul", swapped.op("MatMul", x, swapped.normal(8, 8)), swapped.op("Tanh", x))
    swapped.output(swapped.op("MatMul", square, swapped.normal(8, 2)))
    assert absorbable(swapped).reason == "Tanh takes up nothing"


def test_rows_of_a_single_vector_times_heads_are_not_followed() -> None:
    """[seq] x [heads, batch, seq, depth]: the product has an axis less than its right operand."""
    net = Net()
    weights = net.input("weights", [3])
    values = net.op(
        "Reshape", net.op("MatMul", net.input("x", [2, 2, 3, 8]), net.normal(8, 4)), net.constant([2, 2, 3, 4])
    )
    product = net.op("MatMul", weights, values)
    net.output(net.op("MatMul", net.op("Reshape", product, net.constant([2, 8])), net.normal(8, 2)))
    assert absorbable(net).width == 0
