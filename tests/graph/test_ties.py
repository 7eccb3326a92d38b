"""Which tables count as shared by an embedding and an output head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from catonnx.graph.ties import TiedTable, tied_tables
from tests.graph.builder import Net

Length = int | str


def _tables(net: Net) -> tuple[TiedTable, ...]:
    return tied_tables(net.model().graph)


def _tokens(net: Net, shape: list[Length] | None, name: str = "tokens") -> str:
    return net.input(name, shape, TensorProto.INT64)


def _embedded(shape: list[Length] | None = ["batch", "sequence"], **attributes: Any) -> tuple[Net, str, str]:  # noqa: B006
    """Return a net, its square table [16, 16] and what follows the lookup."""
    net = Net()
    table = net.normal(16, 16, hint="table")
    rows = net.op("Gather", table, _tokens(net, shape), result="rows", **attributes)
    return net, table, net.op("Tanh", rows)


def transposed() -> Net:
    net, table, rows = _embedded()
    net.output(net.op("MatMul", rows, net.op("Transpose", table, perm=[1, 0])))
    return net


def default_order() -> Net:
    net, table, rows = _embedded(axis=0)
    net.output(net.op("MatMul", rows, net.op("Transpose", net.op("Identity", table))))
    return net


def gemm() -> Net:
    net, table, rows = _embedded(["batch"])
    net.output(net.op("Gemm", rows, table, transB=1, alpha=1.0))
    return net


def two_lookups() -> Net:
    net, table, rows = _embedded()
    more = net.op("Gather", net.op("Identity", table), _tokens(net, ["more"], "decoder_tokens"))
    net.output(net.op("MatMul", net.op("Add", rows, more), net.op("Transpose", table, perm=[1, 0])))
    return net


@pytest.mark.parametrize(
    ("build", "ranks"), [(transposed, (2,)), (default_order, (2,)), (gemm, (1,)), (two_lookups, (2, 1))]
)
def test_tied(build: Callable[[], Net], ranks: tuple[int, ...]) -> None:
    (found,) = _tables(build())
    assert found.product.op_type in ("MatMul", "Gemm")
    assert [node.op_type for node in found.lookups] == ["Gather"] * len(ranks)
    assert found.ranks == ranks


def not_transposed() -> Net:
    net, table, rows = _embedded()
    net.output(net.op("MatMul", rows, table))
    return net


def twice_transposed() -> Net:
    net, table, rows = _embedded(["batch"])
    net.output(net.op("Gemm", rows, net.op("Transpose", table, perm=[1, 0]), transB=1))
    return net


def order_that_moves_nothing() -> Net:
    net, table, rows = _embedded()
    net.output(net.op("MatMul", rows, net.op("Transpose", table, perm=[0, 1])))
    return net


def scaled() -> Net:
    net, table, rows = _embedded(["batch"])
    net.output(net.op("Gemm", rows, table, transB=1, alpha=2.0))
    return net


def columns_looked_up() -> Net:
    net, table, _ = _embedded(["batch"], axis=1)
    net.output(net.op("Gemm", net.op("Transpose", "rows"), table, transB=1))
    return net


def columns_looked_up_behind_a_transpose() -> Net:
    net = Net()
    turned = net.op("Transpose", net.normal(16, 16))
    net.output(net.op("MatMul", net.op("Gather", turned, _tokens(net, ["batch"])), turned))
    return net


def read_by_another() -> Net:
    net, table, rows = _embedded()
    net.output(net.op("MatMul", net.op("Add", rows, table), net.op("Transpose", table, perm=[1, 0])))
    return net


def two_products() -> Net:
    net, table, rows = _embedded()
    turned = net.op("Transpose", table, perm=[1, 0])
    net.output(net.op("MatMul", net.op("MatMul", rows, turned), turned))
    return net


def handed_out() -> Net:
    net, table, rows = _embedded()
    net.output(net.op("MatMul", rows, net.output(net.op("Transpose", table, perm=[1, 0]))))
    return net


def no_lookup() -> Net:
    net = Net()
    table = net.normal(16, 16)
    net.output(net.op("MatMul", net.input("x", ["batch", 16]), net.op("Transpose", table)))
    return net


def tokens_of_any_rank() -> Net:
    net, table, rows = _embedded(None)
    net.output(net.op("MatMul", rows, net.op("Transpose", table, perm=[1, 0])))
    return net


def batched() -> Net:
    net = Net()
    table = net.constant(np.ones((3, 16, 16)))
    rows = net.op("Gather", table, _tokens(net, ["batch"]))
    net.output(net.op("MatMul", rows, net.op("Transpose", table, perm=[0, 2, 1])))
    return net


@pytest.mark.parametrize(
    "build",
    [
        not_transposed,
        twice_transposed,
        order_that_moves_nothing,
        scaled,
        columns_looked_up,
        columns_looked_up_behind_a_transpose,
        read_by_another,
        two_products,
        handed_out,
        no_lookup,
        tokens_of_any_rank,
        batched,
    ],
)
def test_not_tied(build: Callable[[], Net]) -> None:
    assert _tables(build()) == ()
