"""Every way to write one product as a Gemm, and matrices of awkward sizes, from the model to its 4-bit form."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import catonnx
from catonnx import Recipe, Report
from tests.graph.builder import Net
from tests.small_models import first_sample, relative, run, write_feeds

ROWS, COLUMNS, WIDTH = 8, 12, 20
BIASES = ("none", "scalar", "one", "row", "vector", "column", "full", "activation")


def optimized(net: Net, folder: Path, *shape: int, **wishes: Any) -> tuple[Report, Path, Path, dict[str, np.ndarray]]:
    """Return report, source, result and inputs."""
    model = folder / "model.onnx"
    onnx.save(net.proto(), model)
    feeds = write_feeds(folder / "feeds.npz", *shape)
    out = folder / "out"
    report = catonnx.optimize(model, out, Recipe(calibration=str(feeds), lm_head=True, **wishes))
    return report, model, out, first_sample(feeds)


def every_gemm() -> Net:
    """Return a model in which x [8, 12], or its transpose, is multiplied by a constant in each way that Gemm has."""
    net = Net(seed=5)
    net.input("x", [ROWS, COLUMNS])
    for left, turned, turned_weight, bias in itertools.product((False, True), (0, 1), (0, 1), BIASES):
        inner, outer = (ROWS, COLUMNS) if turned != left else (COLUMNS, ROWS)
        for alpha, beta in itertools.product((1.0, -0.5), (1.0, 0.0, 3.0)):
            shape = (inner, WIDTH) if turned_weight == left else (WIDTH, inner)
            weight = net.normal(*shape)
            flags: dict[str, Any] = (
                {"transB": turned, "transA": turned_weight} if left else {"transA": turned, "transB": turned_weight}
            )
            operands = [weight, "x"] if left else ["x", weight]
            operands += bias_of(net, bias, (WIDTH, outer) if left else (outer, WIDTH))
            net.output(net.op("Gemm", *operands, alpha=alpha, beta=beta, **flags))
    return net


def bias_of(net: Net, kind: str, shape: tuple[int, int]) -> Iterator[str]:
    sizes = {
        "scalar": (),
        "one": (1,),
        "row": (1, shape[1]),
        "vector": shape[1:],
        "column": (shape[0], 1),
        "full": shape,
    }
    if kind in sizes:
        yield net.vector(*sizes[kind])
    elif kind == "activation":
        mean = net.op("ReduceMean", "x", net.constant([0 if COLUMNS in shape else 1]), keepdims=0)
        wanted = [length if length in (ROWS, COLUMNS) else 1 for length in shape]
        yield net.op("Reshape", mean, net.constant(wanted))


@pytest.mark.parametrize("form", ["float", "qdq", "nbits"])
def test_every_gemm(form: str, tmp_path: Path) -> None:
    net = every_gemm()
    wishes = {"scheme": "float"} if form == "float" else {"form": form}
    report, model, out, feeds = optimized(net, tmp_path, ROWS, COLUMNS, **wishes)
    assert sum(len(row.linears) for row in report.sites) == len(net.outputs) == 384
    assert report.left == ()
    before, after = run(model, feeds), run(out, feeds, exact=True)
    # Measured 1.5e-7, and 0.085 in 4 bits.
    limit = 1e-5 if form == "float" else 0.2
    assert [name for name in net.outputs if not relative(before[name], after[name]) < limit] == []
    if form != "float":
        assert report.verification["fused"] == report.verification["linears"] == 384


@pytest.mark.parametrize(("form", "transform"), [("qdq", "cat"), ("nbits", "hadamard")])
def test_awkward_sizes(form: str, transform: str, tmp_path: Path) -> None:
    net = Net(seed=6)
    net.input("x", [5, 24])
    count = 0
    for rows, columns in itertools.product((1, 2, 7, 13, 127), repeat=2):
        inner = net.op("Sigmoid", net.op("MatMul", "x", net.normal(24, rows)))
        net.output(net.op("Gemm", inner, net.normal(columns, rows), net.vector(columns), transB=1))
        net.output(net.op("MatMul", net.normal(columns, rows), net.op("Transpose", inner)))
        net.output(net.op("MatMul", inner, net.normal(1, rows, columns)))
        count += 4 if rows > 1 else 2
    report, model, out, feeds = optimized(net, tmp_path, 5, 24, form=form, transform=transform)
    left = [reason for _, _, reason in report.left]
    assert left == ["it is an outer product, and 4 bits make no single row smaller"] * 10
    assert report.verification["fused"] == report.verification["linears"] == count == 90
    before, after = run(model, feeds), run(out, feeds, exact=True)
    # Measured 0.20 at most, for two rounded matrices one after the other.
    assert [name for name in net.outputs if not relative(before[name], after[name]) < 0.3] == []


def test_matrices_on_the_left_and_in_more_axes(tmp_path: Path) -> None:
    net = Net(seed=7)
    net.input("x", ["batch", 24, 32])
    hidden = net.op("Sigmoid", net.op("MatMul", net.normal(48, 24), "x"))
    hidden = net.op("Relu", net.op("MatMul", hidden, net.normal(1, 32, 16)))
    hidden = net.op("MatMul", net.normal(1, 1, 40, 48), hidden)
    net.output(net.op("Add", hidden, net.vector(40, 1), result="y"))
    report, model, out, feeds = optimized(net, tmp_path, 3, 24, 32)
    assert report.left == ()
    assert report.verification["fused"] == report.verification["linears"] == 3
    assert report.verification["transform_relative_l2"] < 1e-5
    # Measured 0.15, for three rounded matrices one after the other.
    assert relative(run(model, feeds)["y"], run(out, feeds, exact=True)["y"]) < 0.25
