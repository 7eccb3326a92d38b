"""An embedding that reads the codes of the output head: the numbers, and that they are stored once."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from catonnx.graph.sites import Linear, Selection, find_sites
from catonnx.graph.ties import tied_tables
from catonnx.math.activations import ActivationGrid
from catonnx.math.rounding import Bits, QuantizedWeight, quantize_weight
from catonnx.passes.canonicalize import Canonicalize
from catonnx.passes.integer_products import IntegerProducts
from catonnx.passes.quantize_weights import QuantizeWeights
from tests.graph.builder import Net, run

HEAD = Selection(head=True)
COUNT = 50
TOKENS = np.random.default_rng(3).integers(-COUNT, COUNT, (2, 7))
"""Indices from the end are lawful."""

Form = Literal["qdq", "nbits", "integer"]


def tied(width: int, dtype: type = np.float32, rank: int = 2) -> Net:
    """Look up rows of a table, hand them out, and multiply by its transpose what Tanh makes of them."""
    net = Net(seed=width)
    tokens = net.input("tokens", ["first", "second", "third"][:rank], TensorProto.INT64)
    table = net.constant(net.random.normal(size=(COUNT, width)).astype(dtype), "table")
    rows = net.output(net.op("Gather", table, tokens, result="rows"))
    product = net.op("MatMul", net.op("Tanh", rows), net.op("Transpose", table, perm=[1, 0]), result="logits")
    net.output(net.op("Cast", product, to=TensorProto.FLOAT, result="y"))
    return net


def shared(net: Net, form: Form, bits: Bits, group: int | None) -> tuple[ir.Model, np.ndarray]:
    """Return a model with its table rounded, and the table [V, d] as it is in there."""
    model = net.model()
    (table,) = tied_tables(model.graph)
    Canonicalize(HEAD)(model)
    (site,) = find_sites(model.graph, HEAD).sites
    (linear,) = site.linears
    seen: list[QuantizedWeight] = []

    def rounder(_linear: Linear, weight: np.ndarray, dtype: ir.DataType) -> QuantizedWeight:
        seen.append(quantize_weight(weight, group, bits=bits, scale_dtype=dtype.numpy()))
        return seen[0]

    if form == "integer":
        IntegerProducts(((site, ActivationGrid(8)),), rounder, tables={linear: table})(model)
    else:
        QuantizeWeights((linear,), rounder, form, tables={linear: table})(model)
    return model, seen[0].dequantize().T


@pytest.mark.parametrize("width", [64, 80])
@pytest.mark.parametrize("group", [16, 32, None])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["qdq", "nbits"])
def test_rows_are_those_that_the_head_multiplies_by(form: Form, bits: Bits, group: int | None, width: int) -> None:
    model, table = shared(tied(width), form, bits, group)
    result = run(model, {"tokens": TOKENS})
    np.testing.assert_allclose(result["rows"], table[TOKENS], rtol=1e-6)  # measured: 6e-8
    expected = np.tanh(table[TOKENS]) @ table.T
    np.testing.assert_allclose(result["y"], expected, atol=1e-5 * np.abs(expected).max())  # measured: 4e-7


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_an_integer_product(bits: Bits) -> None:
    model, table = shared(tied(64), "integer", bits, None)
    result = run(model, {"tokens": TOKENS})
    np.testing.assert_allclose(result["rows"], table[TOKENS], rtol=1e-6)
    expected = np.tanh(table[TOKENS]) @ table.T
    np.testing.assert_allclose(result["y"], expected, atol=0.02 * np.abs(expected).max())  # 8-bit activations


@pytest.mark.parametrize("form", ["qdq", "nbits"])
def test_float16_tables_give_float16_rows(form: Form) -> None:
    model, table = shared(tied(64, np.float16), form, 8, 32)
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT  # as the builder declares it, whatever flows
    model.graph.outputs[0].dtype = ir.DataType.FLOAT16
    rows = run(model, {"tokens": TOKENS})["rows"]
    assert rows.dtype == np.float16
    np.testing.assert_allclose(rows, table[TOKENS], rtol=1e-3, atol=1e-6)  # one rounding to float16


@pytest.mark.parametrize("form", ["qdq", "nbits", "integer"])
@pytest.mark.parametrize("rank", [1, 3])
def test_indices_of_any_rank(form: Form, rank: int) -> None:
    tokens = np.array([4, 9, -1, 0]).reshape((4,) if rank == 1 else (2, 1, 2))
    model, table = shared(tied(64, rank=rank), form, 8, None if form == "integer" else 32)
    np.testing.assert_allclose(run(model, {"tokens": tokens})["rows"], table[tokens], rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["qdq", "nbits", "integer"])
def test_the_codes_are_stored_once_and_no_table_in_float(form: Form, bits: Bits) -> None:
    model, _ = shared(tied(64), form, bits, None if form == "integer" else 32)
    sizes = [value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None]
    codes, scales = COUNT * 64 * bits // 8, COUNT * 4 * 2
    assert codes + scales <= sum(sizes) <= codes + scales + 300  # and what nodes need besides, a few numbers each


def test_two_lookups_share_one_copy() -> None:
    net = tied(64)
    table = next(iter(net.initializers))
    more = net.input("more", ["length"], TensorProto.INT64)
    net.output(net.op("Gather", table, more, result="more_rows"))
    model, rounded = shared(net, "qdq", 4, 32)
    result = run(model, {"tokens": TOKENS, "more": np.array([7, 0])})
    np.testing.assert_allclose(result["more_rows"], rounded[[7, 0]], rtol=1e-6)
    assert sum(node.op_type == "Transpose" for node in model.graph) == 2  # codes and scales


@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_runtime_fuses_the_head_all_the_same(bits: Bits) -> None:
    model, table = shared(tied(64), "qdq", bits, 32)
    # A fused product rounds activations to 8 bits unless a session forbids it; one that is not never does.
    result = run(model, {"tokens": TOKENS}, optimize=True)
    exact = np.tanh(table[TOKENS]) @ table.T
    error = np.abs(result["y"] - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 2e-2  # measured: 1e-3 to 2e-3
