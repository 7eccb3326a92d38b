"""Random graphs, random transforms, the same function: the net under everything that was not thought of.

Campaigns of 23 000 such graphs went before; what they found stands as a test of its own beside these.
"""

from __future__ import annotations

import random

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catonnx.graph.absorb import Absorption
from catonnx.graph.absorb_rules import CONTRIB_RULES, RULES
from models.random_graphs import random_graph
from models.random_pieces import DECODE, PREFILL
from tests.graph.builder import relative_error, run
from tests.graph.equivalence import assert_same, rewritten

NEVER_DRAWN = {"Flatten"}

WORST_AMPLIFICATION = 30
"""A norm of numbers that nearly cancel multiplies any rounding; about 1 graph in 15 000 is left out for that."""


def amplification(source: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """Return by how much a model multiplies a relative change of its input."""
    noise = 1 + 1e-6 * np.random.default_rng(0).normal(size=feeds["x"].shape)
    moved = feeds | {"x": (feeds["x"] * noise).astype(np.float32)}
    first, second = run(source, feeds), run(source, moved)
    return max(relative_error(first[name], second[name]) for name in first) / 1e-6


def check(choose: random.Random) -> tuple[Absorption, ...]:
    """Draw one graph, rewrite it, compare every stage of it with the source, and return what was absorbable."""
    graph = random_graph(choose)
    source, feeds = graph.net.proto(), graph.feeds(PREFILL)
    if amplification(source, feeds) > WORST_AMPLIFICATION:
        return ()
    change_caches = choose.random() < 0.8
    stages = rewritten(source, np.random.default_rng(choose.randrange(1 << 30)), change_caches=change_caches)
    assert change_caches or not stages.caches
    reference = run(source, feeds)
    for name in ("canonical", "absorbed", "inserted"):
        model, changed = getattr(stages, name), frozenset() if name == "canonical" else stages.caches
        actual = run(model, feeds)
        assert_same(reference, actual, name, changed)
        if graph.caches:
            expected = run(source, graph.feeds(DECODE, reference))
            assert_same(expected, run(model, graph.feeds(DECODE, actual)), f"{name}, decode", changed)
    return stages.absorptions


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.randoms(use_true_random=False))
def test_a_random_graph_computes_the_same_after_every_pass(choose: random.Random) -> None:
    check(choose)


def test_so_do_graphs_from_fixed_seeds_which_hold_every_row_of_the_table() -> None:
    found = [absorption for seed in range(200) for absorption in check(random.Random(seed))]
    free = [absorption for absorption in found if absorption.width]
    crossed = {operator for absorption in free for operator in absorption.path}
    drawn = {*RULES, *CONTRIB_RULES, "Split", "LayerNormalization", "SimplifiedLayerNormalization"} - NEVER_DRAWN
    assert crossed >= drawn
    written = {(writer.node.domain, writer.node.op_type) for absorption in free for writer in absorption.writers}
    assert ("com.microsoft", "Attention") in written, "only the standard's Attention was drawn"
    assert any(absorption.caches for absorption in free)
    assert any(len(np.unique(absorption.ties)) < len(absorption.ties) for absorption in free)
    assert {min(absorption.width, 2) for absorption in found} == {0, 1, 2}
    rooms = [absorption.permutable for absorption in found if absorption.permutable and absorption.permutable.writers]
    assert {len(room.writers) for room in rooms} >= {1, 2, 3, 4}
    assert any(room.caches for room in rooms)
    assert any(len(np.unique(room.ties)) < len(room.ties) for room in rooms)
    assert any(len(np.unique(room.groups)) > 1 for room in rooms)
    assert any(absorption.width == 0 and absorption.permutable in rooms for absorption in found)
    assert any(absorption.width == 1 and absorption.permutable in rooms for absorption in found)


def test_onnx_runtimes_own_optimizations_do_not_change_that() -> None:
    for seed in range(12):
        graph = random_graph(random.Random(seed))
        source, feeds = graph.net.proto(), graph.feeds(PREFILL)
        stages = rewritten(source, np.random.default_rng(seed))
        reference = run(source, feeds, optimize=True)
        assert_same(reference, run(stages.inserted, feeds, optimize=True), "optimized", stages.caches)
