"""An Add behind a rounded matrix product must not keep ONNX Runtime from fusing the weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from catonnx.graph.sites import Linear, Selection, find_sites
from catonnx.math.rounding import QuantizedWeight, quantize_weight
from catonnx.passes.add_as_sum import AddAsSum
from catonnx.passes.quantize_weights import QuantizeWeights
from catonnx.runtime.fusion import fused_ops
from tests.graph.builder import Net, run

X = {"x": np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)}

ADDED: dict[str, tuple[Callable[[Net, str], str], str]] = {
    "a residual": (lambda n, product: n.op("Add", "x", product), "Sum"),
    "a residual on the right": (lambda n, product: n.op("Add", product, "x"), "Sum"),
    "a row": (lambda n, product: n.op("Add", product, n.vector(1, 32)), "Sum"),
    "a number": (lambda n, product: n.op("Add", product, n.vector()), "Sum"),
    "a bias": (lambda n, product: n.op("Add", product, n.vector(32)), "Add"),
    "a bias on the left": (lambda n, product: n.op("Add", n.vector(32), product), "Add"),
}


def rounded(build: Callable[[Net, str], str]) -> tuple[Net, ir.Model, tuple[Linear, ...]]:
    """Return a net, and the model of it with rounded weights."""
    net = Net(seed=3)
    x = net.input("x", ["rows", 32])
    net.output(net.op("Sigmoid", build(net, net.op("MatMul", x, net.normal(32, 32))), result="y"))
    model = net.model()
    linears = tuple(linear for site in find_sites(model.graph, Selection(head=True)).sites for linear in site.linears)

    def rounder(_linear: Linear, weight: np.ndarray, dtype: ir.DataType) -> QuantizedWeight:
        return quantize_weight(weight, 32, bits=4, scale_dtype=dtype.numpy())

    QuantizeWeights(linears, rounder)(model)
    return net, model, linears


@pytest.mark.parametrize(("build", "operator"), ADDED.values(), ids=ADDED)
def test_whatever_is_added_the_weight_is_fused(build: Callable[[Net, str], str], operator: str, tmp_path: Path) -> None:
    _, model, linears = rounded(build)
    before = run(model, X)["y"]
    assert AddAsSum(linears)(model).modified == (operator == "Sum")
    assert [node.op_type for node in model.graph][-2:] == [operator, "Sigmoid"]
    np.testing.assert_array_equal(run(model, X)["y"], before)
    ir.save(model, tmp_path / "model.onnx")
    graph = fused_ops(tmp_path / "model.onnx")
    assert graph.unfused == ()
    assert graph.operators["MatMulNBits"] == 1
    assert not AddAsSum(linears)(model).modified, "a second run found something"


def test_onnx_runtime_still_needs_it(tmp_path: Path) -> None:
    _, model, _ = rounded(ADDED["a residual"][0])
    ir.save(model, tmp_path / "model.onnx")
    assert len(fused_ops(tmp_path / "model.onnx").unfused) == 1


def test_an_add_that_is_not_alone_or_of_more_axes_stays() -> None:
    for build in (
        lambda n, product: n.op("Mul", n.op("Add", product, "x"), product),
        lambda n, product: n.op("Add", product, "x", domain="example.com"),
    ):
        _, model, linears = rounded(build)
        assert not AddAsSum(linears)(model).modified
    net = Net(seed=3)
    x = net.input("x", ["batch", "rows", 32])
    net.output(net.op("Add", x, net.op("MatMul", x, net.normal(32, 32))))
    model = net.model()
    linears = tuple(find_sites(model.graph, Selection(head=True)).sites[0].linears)
    assert not AddAsSum(linears)(model).modified
