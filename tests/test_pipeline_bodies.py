"""Linears in bodies of If, Loop and Scan, and in functions: rounded where they stand, shared weights only once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

import catonnx
from catonnx import Recipe, Report, pipeline
from catonnx.analysis import Opened
from catonnx.errors import UsageError, VerificationError
from catonnx.graph.sites import INSIDE
from catonnx.math.factors import Scale
from catonnx.planning.siteplan import Plan, SitePlan
from tests.small_models import Arrays, relative, run

HEADER = '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>'

BRANCHES = """
main (float[rows, 32] x, bool flag) => (float[rows, 8] y) {
    h = MatMul(x, first)
    a = Relu(h)
    b = If (flag) <
        then_branch = then_graph () => (float[rows, 32] t) { m = MatMul(a, shared) t = Sigmoid(m) },
        else_branch = else_graph () => (float[rows, 32] t) { m = MatMul(a, shared) n = Tanh(m) t = MatMul(n, own) }
    >
    c = Tanh(b)
    y = MatMul(c, last)
}
"""

TWICE = "d = Tanh(b) c = MatMul(d, first)"

LOOP = """
main (float[rows, 32] x, bool flag) => (float[rows, 8] y) {
    h = MatMul(x, first)
    b = Loop (three, flag, h) <
        body = steps (int64 i, bool on, float[rows, 32] s) => (bool going, float[rows, 32] next) {
        going = Identity(on)
        m = Gemm <transB = 1, alpha = 0.5> (s, own, bias)
        n = If (on) <
            then_branch = deeper () => (float[rows, 32] t) { t = MatMul(m, shared) },
            else_branch = other () => (float[rows, 32] t) { t = Identity(m) }
        >
        next = Tanh(n)
    }>
    y = MatMul(b, last)
}
"""

SCAN = """
main (float[rows, 32] x, bool flag) => (float[rows, 8] y) {
    h = MatMul(x, first)
    state = ReduceMean <keepdims = 1> (h, nought)
    final, b = Scan <
        num_scan_inputs = 1,
        body = steps (float[1, 32] s, float[32] r) => (float[1, 32] next, float[32] out) {
        m = MatMul(s, shared)
        q = MatMul(r, own)
        k = Add(m, q)
        next = Tanh(k)
        out = Squeeze(next, nought)
    }> (state, h)
    y = MatMul(b, last)
}
"""

CAPTURED = """
main (float[rows, 32] x, bool flag) => (float[rows, 8] y) {
    h = MatMul(x, first)
    k = MatMul(h, own)
    b = If (flag) <
        then_branch = then_graph () => (float[rows, 32] t) { t = MatMul(h, shared) },
        else_branch = else_graph () => (float[rows, 32] t) { t = Sigmoid(h) }
    >
    c = Add(b, k)
    d = Tanh(c)
    y = MatMul(d, last)
}
"""

FUNCTION = """
main (float[rows, 32] x, bool flag) => (float[rows, 8] y) {
    h = local.layer(x, first)
    b = local.layer(h, shared)
    y = MatMul(b, last)
}
<domain: "local", opset_import: ["" : 21]>
layer (a, w) => (o) { m = MatMul(a, w) o = Tanh(m) }
"""


def write(path: Path, text: str, inside: str = "") -> Path:
    """Write a model of its text, with random weights for whatever names it reads.

    Args:
        path: The new file.
        text: Its graph and functions.
        inside: Name of a weight that is an initializer of the body that reads it, not of the main graph.
    """
    model = parser.parse_model(HEADER + text)
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((32, 32)) / 6 for name in ("first", "shared", "own")}
    arrays |= {"last": random.standard_normal((32, 8)) / 6, "bias": random.standard_normal(32)}
    tensors = {name: numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()}
    tensors |= {
        "three": numpy_helper.from_array(np.array(3), "three"),
        "nought": numpy_helper.from_array(np.array([0]), "nought"),
    }
    for graph in graphs(model.graph):
        for index, node in enumerate(graph.node):
            node.name = f"node_{index}"  # the same again in every body
            if inside and inside in node.input:
                graph.initializer.append(tensors[inside])
    used = {name for graph in graphs(model.graph) for node in graph.node for name in node.input} - {inside}
    model.graph.initializer.extend(tensor for name, tensor in tensors.items() if name in used)
    onnx.save(model, path)
    return path


def graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Return a graph and all bodies in it."""
    inner = [part for node in graph.node for item in node.attribute if item.HasField("g") for part in graphs(item.g)]
    return [graph, *inner]


def samples(path: Path) -> list[dict[str, np.ndarray]]:
    """Write inputs for either branch and return them."""
    random = np.random.default_rng(1)
    found = [
        {"x": random.standard_normal((6, 32)).astype(np.float32), "flag": np.array(flag)}
        for flag in (True, False, True, False)
    ]
    np.savez(
        path, allow_pickle=False, **{f"{index}/{key}": a for index, one in enumerate(found) for key, a in one.items()}
    )
    return found


def optimized(model: Path, **wishes: Any) -> tuple[Report, Path, list[dict[str, np.ndarray]]]:
    feeds = samples(model.parent / "feeds.npz")
    out = model.parent / "out"
    recipe = Recipe(calibration=str(model.parent / "feeds.npz"), lm_head=True, **wishes)
    return catonnx.optimize(model, out, recipe), out, feeds


def worst(model: Path, out: Path, feeds: Sequence[Arrays]) -> float:
    return max(relative(run(model, one)["y"], run(out, one, exact=True)["y"]) for one in feeds)


def stored(out: Path) -> list[tuple[int, list[int]]]:
    """Return type and shape of every matrix in a result."""
    model = onnx.load(out / "model.onnx")
    return [(t.data_type, list(t.dims)) for graph in graphs(model.graph) for t in graph.initializer if len(t.dims) > 1]


# Linears, and sites in bodies.
CASES = {
    "if": (BRANCHES, 5, 3),
    "loop": (LOOP, 4, 2),
    "scan": (SCAN, 4, 2),
    "captured": (CAPTURED, 4, 1),
    "function": (FUNCTION, 3, 0),
}


@pytest.mark.parametrize("inside", ["", "own"])
@pytest.mark.parametrize("form", ["qdq", "nbits"])
@pytest.mark.parametrize(("text", "count", "bodies"), CASES.values(), ids=CASES)
def test_linears_in_bodies_are_rounded_and_fused(
    text: str, count: int, bodies: int, form: str, inside: str, tmp_path: Path
) -> None:
    model = write(tmp_path / "model.onnx", text, inside)
    report, out, feeds = optimized(model, form=form, transform="scale")
    assert report.left == ()
    assert report.verification["transform_relative_l2"] < 1e-5
    assert report.verification["fused"] == report.verification["linears"] == count
    rows = [row for row in report.sites if INSIDE in row.why]
    assert len(rows) == bodies
    assert all(row.absorbed == row.online == () for row in rows)
    assert len({name for row in report.sites for name in row.linears}) == count
    assert TensorProto.FLOAT not in [kind for kind, shape in stored(out) if shape in ([32, 32], [32, 8])]
    # Measured 0.14 to 0.21.
    assert worst(model, out, feeds) < 0.3


@pytest.mark.parametrize(
    "wishes",
    [
        {"form": "qdq"},
        {"form": "nbits"},
        {"group_size": None},
        {"w8": ("*",)},
        {"keep_8bit": 3},
        {"rounding": "gptq"},
    ],
)
def test_a_weight_that_branches_share_is_stored_once(wishes: dict[str, Any], tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", BRANCHES)
    report, out, _ = optimized(model, transform="none", **wishes)
    assert report.verification["fused"] == 5
    codes = {TensorProto.INT4, TensorProto.INT8, TensorProto.UINT8}
    assert len([kind for kind, _ in stored(out) if kind in codes]) == 4  # first, shared, own, last


@pytest.mark.parametrize(("form", "count"), [("qdq", 5), ("nbits", 4)])
def test_a_weight_that_a_body_and_the_main_graph_read_has_both_layouts(form: str, count: int, tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", BRANCHES.replace("first", "shared").replace("c = Tanh(b)", TWICE))
    report, out, feeds = optimized(model, transform="none", form=form)
    assert report.verification["fused"] == report.verification["linears"] == 6
    codes = {TensorProto.INT4, TensorProto.UINT8}
    # shared, own, first, last; for a body codes of form qdq are transposed
    assert len([kind for kind, _ in stored(out) if kind in codes]) == count
    assert worst(model, out, feeds) < 0.3


@pytest.mark.parametrize(
    "wishes",
    [
        {"rounding": "gptq"},
        {"rounding": "sequential"},
        {"scheme": "w4a8", "form": "integer", "group_size": None},
        {"scheme": "w4a8", "form": "op", "activation_range": "symmetric"},
        {"scheme": "w4a4"},
        {"keep_8bit": 2},
        {"correct_bias": True},
        {"max_overhead": 0.5},
        {"transform": "smoothquant"},
    ],
    ids=lambda wishes: "-".join(map(str, wishes.values())),
)
def test_whatever_is_wished_bodies_hold_rounded_weights(wishes: dict[str, Any], tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", BRANCHES)
    report, out, feeds = optimized(model, **wishes)
    assert report.verification["fused"] == report.verification["linears"] == 5
    rows = [row for row in report.sites if INSIDE in row.why]
    assert [row.activation for row in rows] == [""] * 3
    assert all(("its activation stays" in row.why) == ("scheme" in wishes) for row in rows)
    # Measured 0.15 to 0.22, the largest with activations of 4 bits.
    assert worst(model, out, feeds) < 0.35


@pytest.mark.parametrize("text", [BRANCHES, CAPTURED], ids=["branches", "captured"])
def test_scheme_float_changes_nothing_in_bodies(text: str, tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", text)
    report, out, feeds = optimized(model, scheme="float")
    assert report.verification["transform_relative_l2"] < 1e-5
    assert worst(model, out, feeds) < 1e-5


def test_a_plan_for_bodies_changes_no_basis_there(tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", BRANCHES)
    report, _, _ = optimized(model)
    (inside, *_) = [row.site for row in report.sites if INSIDE in row.why]
    sites = [
        SitePlan(item.site, (), (Scale(np.full(32, 2.0)),)) if item.site == inside else item
        for item in report.plan.sites
    ]
    recipe = Recipe(calibration=str(tmp_path / "feeds.npz"), lm_head=True)
    catonnx.optimize(model, tmp_path / "again", recipe, plan=report.plan)
    with pytest.raises(UsageError, match=f"changes a basis {INSIDE}"):
        catonnx.optimize(model, tmp_path / "other", recipe, plan=Plan(tuple(sites)))


def test_an_output_head_in_a_branch_is_left_unless_asked_for(tmp_path: Path) -> None:
    text = """
    main (float[rows, 32] x, bool flag) => (float[rows, 32] y) {
        h = MatMul(x, first)
        a = Relu(h)
        y = If (flag) <
            then_branch = then_graph () => (float[rows, 32] t) { m = MatMul(a, shared) n = Tanh(m) t = MatMul(n, own) },
            else_branch = else_graph () => (float[rows, 32] t) { t = MatMul(a, own) }
        >
    }
    """
    model = write(tmp_path / "model.onnx", text)
    samples(tmp_path / "feeds.npz")
    report = catonnx.optimize(model, tmp_path / "out", Recipe(calibration=str(tmp_path / "feeds.npz")))
    assert report.verification["linears"] == 2
    assert [reason for _, _, reason in report.left] == ["output head; --lm-head includes it"] * 2


DECODER = """
main (int64[batch, length] input_ids, float[batch, 1, past, 32] "past_key_values.0.key", bool[1] use_cache_branch)
    => (float[batch, length, 8] logits, float[batch, 1, total, 32] "present.0.key") {
    e = Gather(first, input_ids)
    new = Unsqueeze(e, one)
    "present.0.key" = Concat <axis = 2> ("past_key_values.0.key", new)
    flag = Squeeze(use_cache_branch)
    h = If (flag) <
        then_branch = with_past () => (float[batch, length, 32] t) { m = MatMul(e, shared) t = Tanh(m) },
        else_branch = without () => (float[batch, length, 32] t) { m = MatMul(e, shared) t = Sigmoid(m) }
    >
    logits = MatMul(h, last)
}
"""


def decoder(path: Path) -> Path:
    """Write a language model whose two branches are a decoder without and with a cache."""
    model = parser.parse_model(HEADER + DECODER)
    random = np.random.default_rng(0)
    for name, shape in {"first": (8, 32), "shared": (32, 32), "own": (32, 32), "last": (32, 8)}.items():
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    onnx.save(model, path)
    feeds: dict[str, Any] = {
        "input_ids": random.integers(0, 8, (2, 16)),
        "past_key_values.0.key": np.zeros((2, 1, 0, 32), np.float32),
        "use_cache_branch": np.array([False]),
    }
    np.savez(path.with_name("feeds.npz"), allow_pickle=False, **{f"0/{key}": array for key, array in feeds.items()})
    return path


def test_the_branch_that_continues_from_a_cache_is_verified_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder(tmp_path / "model.onnx")
    recipe = Recipe(calibration=str(tmp_path / "feeds.npz"))
    report = catonnx.optimize(model, tmp_path / "out", recipe)
    assert report.verification["fused"] == report.verification["linears"] == 2

    def wrong(opened: Opened, plan: Plan) -> None:
        del plan
        (branch,) = (part for part in opened.model.graph.subgraphs() if part.name == "with_past")
        branch[1].op_type = "Sigmoid"

    monkeypatch.setattr(pipeline, "transform", wrong)
    with pytest.raises(VerificationError, match="differs from the source"):
        catonnx.optimize(model, tmp_path / "other", recipe)
