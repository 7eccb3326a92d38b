"""`optimize` where several linears have one weight: one basis, one rounding, stored once."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import catonnx
from catonnx import Recipe
from catonnx.analysis import analyse
from catonnx.calibrating import measure_sites
from catonnx.graph import load
from catonnx.kept import Kept
from catonnx.progress import silent
from catonnx.report import Report
from tests.graph.builder import Net
from tests.small_models import run, write_feeds

WIDTH = 64


def _layers(count: int = 3, *, turned: bool = False) -> Net:
    """Return layers that all read one weight, behind an Identity but for the first; or one reads it transposed."""
    net = Net(seed=3)
    weight = net.normal(WIDTH, WIDTH, hint="shared")
    value = net.input("x", ["batch", "sequence", WIDTH])
    for layer in range(count):
        value = net.op("Mul", value, net.vector(WIDTH))
        read = net.op("Identity", weight) if layer else weight
        read = net.op("Transpose", weight, perm=[1, 0]) if turned and layer == 1 else read
        value = net.op("Tanh", net.op("MatMul", value, read))
    net.output(net.op("MatMul", net.op("Mul", value, net.vector(WIDTH)), net.normal(WIDTH, 8), result="y"))
    return net


def _optimize(net: Net, folder: Path, **wishes: Any) -> Report:
    onnx.save(net.proto(), folder / "model.onnx")
    feeds = write_feeds(folder / "feeds.npz", 2, 20, WIDTH, samples=6)
    recipe = Recipe(calibration=str(feeds), lm_head=True, **wishes)
    return catonnx.optimize(folder / "model.onnx", folder / "out", recipe)


def _codes(folder: Path) -> list[int]:
    """Return the bits of a number in every rounded weight of the shared one's size."""
    graph = onnx.load(folder / "out/model.onnx").graph
    kinds = (onnx.TensorProto.INT4, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    tensors = [tensor for tensor in graph.initializer if tensor.data_type in kinds]
    return [8 * len(tensor.raw_data) // WIDTH**2 for tensor in tensors if len(tensor.raw_data) >= WIDTH**2 // 2]


WISHES: Mapping[str, tuple[int, dict[str, Any]]] = {
    "qdq": (4, {}),
    "qdq, channels": (4, {"group_size": None}),
    "qdq, 8 bits": (8, {"w8": ("node_15",)}),
    "nbits": (4, {"form": "nbits"}),
    "integer": (4, {"form": "integer", "scheme": "w4a8", "group_size": None}),
    "op": (4, {"form": "op", "scheme": "w4a8", "activation_range": "symmetric"}),
    "w4a4": (4, {"scheme": "w4a4", "group_size": None, "activations": "static"}),
    "gptq": (4, {"rounding": "gptq"}),
    "sequential": (4, {"rounding": "sequential"}),
    "corrected bias": (4, {"correct_bias": True}),
    "budget": (4, {"max_overhead": 0.15}),
    "some sites in 8 bits": (4, {"keep_8bit": 2}),
    "blocks": (4, {"block_size": 16}),
}


@pytest.mark.parametrize("name", WISHES)
def test_a_shared_weight_is_stored_once(name: str, tmp_path: Path) -> None:
    bits, wishes = WISHES[name]
    report = _optimize(_layers(), tmp_path, **wishes)
    assert _codes(tmp_path) == [bits]
    assert report.verification["transform_relative_l2"] < 1e-5  # measured: 3e-7
    assert report.verification["not_fused"] == []
    assert report.verification["fused"] == report.verification["linears"] == 4
    shared, other = report.sites[:3], report.sites[3]
    assert {(row.absorbed, row.online, row.why, row.bits) for row in shared} == {
        ((), shared[0].online, shared[0].why, bits)
    }
    assert shared[0].online
    assert "shared with other sites" in shared[0].why
    assert "shared" not in other.why
    assert report.online_multiply_adds <= wishes.get("max_overhead", 1) * report.multiply_adds
    assert report.plan is not None
    factors = [row.factors for row in report.plan.sites[:3]]
    assert factors[0] == factors[1] == factors[2]  # the same objects


def test_moments_are_those_of_all_sites_together(tmp_path: Path) -> None:
    onnx.save(_layers().proto(), tmp_path / "model.onnx")
    recipe = Recipe(lm_head=True, rounding="gptq")
    opened = analyse(load.load(tmp_path / "model.onnx"), recipe)
    random = np.random.default_rng(6)
    feeds = [{"x": random.standard_normal((1, length, WIDTH)).astype(np.float32)} for length in (5, 9)]
    joint = measure_sites(opened, tmp_path, feeds, recipe, silent)
    alone = measure_sites(replace(opened, leaders={}), tmp_path, feeds, recipe, silent)
    *names, other = (site.name for site in opened.sites)
    for name in names:
        assert joint[name] is joint[names[0]]
        assert alone[name].count == 14
    assert joint[names[0]].count == 3 * 14
    np.testing.assert_allclose(joint[names[0]].sums, sum(alone[name].sums for name in names))
    np.testing.assert_array_equal(joint[other].sums, alone[other].sums)


def test_what_is_counted_is_what_is_stored(tmp_path: Path) -> None:
    rows = _optimize(_layers(), tmp_path).sites
    assert rows[0].bytes_after == WIDTH**2 // 2 + WIDTH**2 // 32 * 4
    assert [row.bytes_after for row in rows[1:3]] == [0, 0]


def test_what_is_not_rounded_keeps_its_size(tmp_path: Path) -> None:
    rows = _optimize(_layers(), tmp_path, scheme="float").sites
    assert [row.bytes_after for row in rows] == [row.bytes_before for row in rows]


def test_no_matrix_of_a_shared_basis_is_stored_twice(tmp_path: Path) -> None:
    _optimize(_layers(), tmp_path, block_size=16)
    tensors = onnx.load(tmp_path / "out/model.onnx").graph.initializer
    blocks = [tensor for tensor in tensors if list(tensor.dims) == [WIDTH // 16, 1, 16, 16]]
    assert len(blocks) == 2  # of the three sites together, and of the last


def test_a_weight_read_in_two_ways_is_two_weights(tmp_path: Path) -> None:
    report = _optimize(_layers(turned=True), tmp_path)
    assert _codes(tmp_path) == [4, 4]
    first, turned, third, _ = report.sites
    assert first.online == third.online
    assert turned.absorbed


def test_every_form_computes_the_same(tmp_path: Path) -> None:
    results = []
    for form in ("qdq", "nbits"):
        (tmp_path / form).mkdir()
        _optimize(_layers(), tmp_path / form, form=form)
        feeds = {"x": np.random.default_rng(5).standard_normal((1, 9, WIDTH)).astype(np.float32)}
        results.append(run(tmp_path / form / "out", feeds, exact=True)["y"])
    np.testing.assert_allclose(results[0], results[1], atol=1e-5 * np.abs(results[0]).max())


def test_a_plan_with_two_bases_stores_two_weights(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    plan = _optimize(_layers(), tmp_path / "own").plan
    assert plan is not None
    first = plan.sites[0]
    other = type(first)(first.site, (), first.factors[1:])
    changed = type(plan)((other, *plan.sites[1:]))
    onnx.save(_layers().proto(), tmp_path / "model.onnx")
    recipe = Recipe(calibration=str(tmp_path / "own/feeds.npz"), lm_head=True)
    report = catonnx.optimize(tmp_path / "model.onnx", tmp_path / "out", recipe, plan=changed)
    assert _codes(tmp_path) == [4, 4]
    assert report.verification["transform_relative_l2"] < 1e-5


def test_a_plan_with_other_bits_stores_two_weights(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    plan = _optimize(_layers(), tmp_path / "own").plan
    assert plan is not None
    changed = replace(plan, sites=(replace(plan.sites[0], bits=8), *plan.sites[1:]))
    onnx.save(_layers().proto(), tmp_path / "model.onnx")
    recipe = Recipe(calibration=str(tmp_path / "own/feeds.npz"), lm_head=True)
    catonnx.optimize(tmp_path / "model.onnx", tmp_path / "out", recipe, plan=changed)
    assert sorted(_codes(tmp_path)) == [4, 8]


@pytest.mark.parametrize("kind", ["rounded together", "joint moments", "plan"])
@pytest.mark.parametrize("rounding", ["mse", "gptq", "sequential"])
def test_a_run_that_was_cut_off_goes_on_sharing(
    rounding: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _optimize(_layers(), tmp_path, rounding=rounding)
    once = [(tmp_path / "out" / name).read_bytes() for name in ("model.onnx", "model.onnx_data")]
    shutil.rmtree(tmp_path / "out")
    put, seen = Kept.put, Counter[str]()

    def cut_off(kept: Kept, what: str, name: str = "", arrays: Any = None) -> None:
        put(kept, what, name, arrays)
        seen[f"{what} {name}"] += 1
        if what == kind and not interrupted:
            interrupted.append(what)
            raise KeyboardInterrupt

    interrupted: list[str] = []
    monkeypatch.setattr(Kept, "put", cut_off)
    with pytest.raises(KeyboardInterrupt):
        _optimize(_layers(), tmp_path, rounding=rounding)
    _optimize(_layers(), tmp_path, rounding=rounding)
    assert interrupted == [kind]
    assert max(seen.values()) == 1
    assert sum(key.startswith("rounded together") for key in seen) == 1
    assert [(tmp_path / "out" / name).read_bytes() for name in ("model.onnx", "model.onnx_data")] == once


def test_sites_that_read_rows_of_one_value_absorb_nothing_if_one_shares_its_weights() -> None:
    net = Net(seed=6)
    shared, value = net.normal(WIDTH, WIDTH), net.input("x", [8, WIDTH])
    rows = net.op("Mul", value, net.vector(WIDTH))
    for start, weight in ((0, shared), (4, net.normal(WIDTH, WIDTH))):
        part = net.op("Gather", rows, net.constant(np.arange(start, start + 4)), axis=0)
        net.output(net.op("Tanh", net.op("MatMul", part, weight)))
    before = analyse(net.model(), Recipe(lm_head=True))
    assert [len(item.peers) for item in before.absorptions.values()] == [2, 2]
    assert all(item.width for item in before.absorptions.values())
    net.output(net.op("MatMul", net.input("y", [8, WIDTH]), shared))
    opened = analyse(net.model(), Recipe(lm_head=True))
    first, second, _ = opened.absorptions.values()
    assert (first.width, first.peers, second.width, second.peers) == (0, (), 0, ())
    assert "shared with other sites" in first.reason
    assert "would change weights that sites share" in second.reason


def test_nothing_is_absorbed_into_a_shared_weight() -> None:
    net = Net(seed=4)
    shared, value = net.normal(WIDTH, WIDTH), net.input("x", ["batch", WIDTH])
    for _ in range(2):
        value = net.op("MatMul", net.op("MatMul", value, shared), net.normal(WIDTH, WIDTH))
        value = net.op("Tanh", value)
    net.output(value)
    opened = analyse(net.model(), Recipe(lm_head=True))
    reasons = [opened.absorptions[site.name].reason for site in opened.sites]
    assert ["shared with other sites" in reason for reason in reasons] == [True, False, True, False]
    assert ["would change weights that sites share" in reason for reason in reasons] == [False, True, False, True]
    assert all(absorption.width == 0 for absorption in opened.absorptions.values())


def test_sites_that_share_weights_through_others_have_one_leader() -> None:
    net = Net(seed=5)
    weights = [net.normal(WIDTH, WIDTH) for _ in range(3)]
    values = [net.input(name, ["batch", WIDTH]) for name in "abc"]
    for value, read in zip(values, ((0, 1), (2,), (1, 2)), strict=True):
        for index in read:
            net.output(net.op("Tanh", net.op("MatMul", value, weights[index])))
    opened = analyse(net.model(), Recipe(lm_head=True))
    assert set(opened.leaders) == {"a", "b", "c"}
    assert len(set(opened.leaders.values())) == 1
