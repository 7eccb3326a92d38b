"""Every pass through `onnx_ir.passes`: alone, in a sequence, by a manager, and a second time without harm."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

import catonnx.passes
from catonnx.analysis import Opened, analyse
from catonnx.graph.precision import Precision
from catonnx.graph.residual import find_streams
from catonnx.math.activations import ActivationGrid
from catonnx.math.factors import Hadamard, Scale
from catonnx.math.rounding import QuantizedWeight, quantize_weight
from catonnx.math.stream_rotation import StreamRotation
from catonnx.passes.absorb import Absorb, AbsorbedTransform
from catonnx.passes.add_as_sum import AddAsSum
from catonnx.passes.bound_masks import BoundMasks
from catonnx.passes.canonicalize import Canonicalize
from catonnx.passes.clamp_as_max import ClampAsMax
from catonnx.passes.insert import Insert, OnlineTransform
from catonnx.passes.integer_products import IntegerProducts
from catonnx.passes.narrow import Narrow
from catonnx.passes.operator_products import OperatorProducts
from catonnx.passes.quantize_activations import QuantizeActivations
from catonnx.passes.quantize_weights import QuantizeWeights
from catonnx.passes.rotate_stream import RotateStream
from catonnx.passes.shift_outputs import ShiftOutputs
from catonnx.passes.unfuse import Unfuse
from catonnx.passes.unstack import Unstack
from catonnx.recipe import Recipe
from tests.graph.builder import Net, run

Make = Callable[[ir.Model], ir.passes.PassBase]

WIDTH = 8
X = {
    "x": np.random.default_rng(0).normal(size=(2, 3, WIDTH)).astype(np.float32),
    "rows": np.random.default_rng(1).normal(size=(4, WIDTH)).astype(np.float32),
}


def net() -> Net:
    """A stream with one block: norm, two linears with a Relu between, a norm, a head."""
    net = Net(seed=9)
    start = net.op("MatMul", net.input("x", [2, "seq", WIDTH]), net.normal(WIDTH, WIDTH))
    h = net.op("SimplifiedLayerNormalization", start, net.vector(WIDTH), axis=-1, epsilon=1e-5)
    h = net.op("Relu", net.op("MatMul", h, net.normal(WIDTH, 16)))
    stream = net.op("Add", start, net.op("MatMul", h, net.op("Transpose", net.normal(WIDTH, 16), perm=[1, 0])))
    h = net.op("SimplifiedLayerNormalization", stream, net.vector(WIDTH), axis=-1, epsilon=1e-5)
    net.output(net.op("MatMul", h, net.normal(WIDTH, 5), result="y"))
    net.output(net.op("Softmax", net.op("Where", net.op("IsNaN", "x"), "x", net.constant(-1e30))))
    # What fused operators, stacks of matrices and products of two axes come from.
    net.output(net.op("Tanh", net.op("FusedMatMul", "x", net.normal(WIDTH, 5), domain="com.microsoft")))
    net.output(net.op("Exp", net.op("MatMul", "x", net.normal(2, WIDTH, 5))))
    rows = net.input("rows", ["n", WIDTH])
    net.output(net.op("Sigmoid", net.op("Add", rows, net.op("MatMul", rows, net.normal(WIDTH, WIDTH)))))
    return net


def rounder(_: object, weight: np.ndarray, __: object) -> QuantizedWeight:
    return quantize_weight(weight, None)


def opened(model: ir.Model) -> Opened:
    return analyse(model, Recipe(lm_head=True))


def _absorb(model: ir.Model) -> Absorb:
    work = opened(model)
    site = work.sites[1]
    return Absorb((AbsorbedTransform(site, work.absorptions[site.name].writers, (Scale(np.arange(1.0, WIDTH + 1)),)),))


def _insert(model: ir.Model) -> Insert:
    return Insert((OnlineTransform(opened(model).sites[1], (Hadamard(WIDTH, WIDTH),)),))


def _integer(model: ir.Model) -> IntegerProducts:
    return IntegerProducts(tuple((site, ActivationGrid(8)) for site in opened(model).sites), rounder)


def _operators(model: ir.Model) -> OperatorProducts:
    return OperatorProducts(tuple((site, ActivationGrid(8)) for site in opened(model).sites), rounder)


def _activations(model: ir.Model) -> QuantizeActivations:
    return QuantizeActivations(tuple((site, ActivationGrid(8)) for site in opened(model).sites))


def _weights(model: ir.Model, form: str = "qdq") -> QuantizeWeights:
    linears = tuple(linear for site in opened(model).sites for linear in site.selected)
    return QuantizeWeights(linears, rounder, form)  # type: ignore[arg-type]


def _clamp(model: ir.Model) -> ClampAsMax:
    weights = _weights(model)
    weights(model)
    return ClampAsMax(weights.linears)


def _sum(model: ir.Model) -> AddAsSum:
    weights = _weights(model)
    weights(model)
    return AddAsSum(weights.linears)


def _shift(_: ir.Model) -> ShiftOutputs:
    return ShiftOutputs({"y": np.ones(5, np.float32)})


def _rotate(model: ir.Model) -> RotateStream:
    (stream,) = find_streams(model.graph)
    return RotateStream(((stream, StreamRotation.random(WIDTH, 0)),))


def _narrow(model: ir.Model) -> Narrow:
    BoundMasks()(model)
    return Narrow(Precision(model.graph))


ROWS: dict[str, tuple[Make, bool]] = {
    "add_as_sum": (_sum, False),
    "absorb": (_absorb, True),
    "bound_masks": (lambda _: BoundMasks(), False),
    "canonicalize": (lambda _: Canonicalize(), False),
    "clamp_as_max": (_clamp, False),
    "insert": (_insert, True),
    "integer_products": (_integer, True),
    "narrow": (_narrow, True),
    "operator_products": (_operators, True),
    "quantize_activations": (_activations, True),
    "quantize_weights": (_weights, True),
    "rotate_stream": (_rotate, True),
    "shift_outputs": (_shift, True),
    "unfuse": (lambda _: Unfuse(), False),
    "unstack": (lambda _: Unstack(), False),
}
"""Module -> how to make its pass for a model, and whether a second run is refused; else it changes nothing."""

KEEPS_FUNCTION = ("absorb", "bound_masks", "canonicalize", "insert", "rotate_stream", "unfuse", "unstack")


def text(model: ir.Model) -> bytes:
    """Return all of a model, weights included."""
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def test_every_pass_has_a_row() -> None:
    modules = {module.name for module in pkgutil.iter_modules(catonnx.passes.__path__)}
    assert {name for name in modules if not name.startswith("_")} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_it_runs_alone_and_says_that_it_changed_something(name: str) -> None:
    model = net().model()
    made = ROWS[name][0](model)
    before = text(model)
    result = made(model)
    assert result.model is model
    assert result.modified
    assert text(model) != before
    if name in KEEPS_FUNCTION:
        for name, value in run(net().proto(), X).items():
            np.testing.assert_allclose(run(model, X)[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_a_second_run_does_no_harm(name: str) -> None:
    model = net().model()
    made = ROWS[name][0](model)
    made(model)
    before = text(model)
    if ROWS[name][1]:
        with pytest.raises(ir.passes.PreconditionError):
            made(model)
    else:
        assert not made(model).modified
    assert text(model) == before


@pytest.mark.parametrize("name", ROWS)
def test_what_was_found_in_another_model_is_refused(name: str) -> None:
    model, other = net().model(), net().model()
    made = ROWS[name][0](other)
    before = text(model)
    if name in ("bound_masks", "canonicalize", "shift_outputs", "unfuse", "unstack"):  # they hold no part of a model
        assert made(model).modified
        return
    with pytest.raises(ir.passes.PreconditionError):
        made(model)
    assert text(model) == before


@pytest.mark.parametrize("name", ROWS)
def test_it_runs_in_a_sequence_and_by_a_manager(name: str) -> None:
    refused = ROWS[name][1]
    model = net().model()
    made = ROWS[name][0](model)
    assert ir.passes.Sequential(made)(model).modified
    alone = text(model)
    again = net().model()
    manager = ir.passes.PassManager([ROWS[name][0](again)], steps=2)
    if refused:
        with pytest.raises(ir.passes.PassError) as error:
            manager(again)
        assert isinstance(error.value.__cause__.__cause__, ir.passes.PreconditionError)  # type: ignore[union-attr]
    else:
        assert manager(again).modified
    assert text(again) == alone


def test_both_forms_of_rounded_weights_refuse_a_second_run() -> None:
    model = net().model()
    made = _weights(model, "nbits")
    made(model)
    with pytest.raises(ir.passes.PreconditionError, match="no longer, in this model"):
        made(model)


def test_what_transforms_a_site_comes_before_what_is_inserted_there() -> None:
    model = net().model()
    work = opened(model)
    site = work.sites[1]
    Insert((OnlineTransform(site, (Hadamard(WIDTH, WIDTH),)),))(model)
    late = AbsorbedTransform(site, work.absorptions[site.name].writers, (Scale(np.full(WIDTH, 2.0)),))
    with pytest.raises(ir.passes.PreconditionError, match="was transformed already"):
        Absorb((late,))(model)


def test_another_shift_of_the_same_output_is_no_second_run() -> None:
    model = net().model()
    for _ in range(2):
        assert ShiftOutputs({"y": np.ones(5, np.float32)})(model).modified
    np.testing.assert_allclose(run(model, X)["y"], run(net().proto(), X)["y"] + 2, rtol=1e-5, atol=1e-5)
