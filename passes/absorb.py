"""Write factors into the nodes before a site, and their inverse into the weights behind it.

    gamma -> Mul -> x -> MatMul(W)        gamma s -> Mul -> x s -> MatMul(s^-1 W)
    V W_v -> ... heads ... -> x W_o  ->   V (W_v F) -> ... heads ... -> (x F) (F^-1 W_o)

The function of the model does not change, and no node is added.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from catonnx.graph.constants import constant_shape, constant_type
from catonnx.graph.edits import Compute, Names, float64_of, set_folded
from catonnx.graph.sites import Site
from catonnx.graph.writers import Writer, fold
from catonnx.math.factors import Factor, Scale, Transform


@dataclasses.dataclass(frozen=True, eq=False)
class AbsorbedTransform:
    """Factors for one site and where they go."""

    site: Site
    writers: tuple[Writer, ...]
    factors: tuple[Factor, ...]


@dataclasses.dataclass(frozen=True)
class Absorb(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        transforms: What to write, in graph order; sites and writers must belong to the model.
    """

    transforms: tuple[AbsorbedTransform, ...]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every transform into its writers and readers.

        Raises:
            ValueError: if a scaling is not positive, before anything is changed.
        """
        names = Names(model.graph)
        for item in self.transforms:
            _check_positive(item)
        for item in self.transforms:
            transform = Transform(item.factors)
            for writer in item.writers:
                _fold_writer(model.graph, names, writer, transform)
            undo_in_readers(model.graph, names, item.site, transform)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(self.transforms))


def _check_positive(item: AbsorbedTransform) -> None:
    """A negative number does not pass a Relu."""
    if any(isinstance(factor, Scale) and (factor.vector < 0).any() for factor in item.factors):
        raise ValueError(f"the scaling of site {item.site.name} is negative in places; only a positive one is absorbed")


def _fold_writer(graph: ir.Graph, names: Names, writer: Writer, transform: Transform) -> None:
    value = writer.node.inputs[writer.index]
    assert value is not None
    original = float64_of(value)
    chosen = _inverse_scale(transform) if writer.divides else transform

    def compute() -> np.ndarray:
        return fold(writer, original(), chosen.apply)

    shape = list(constant_shape(value) or ())
    for axis, size in zip(writer.axes, writer.sizes, strict=True):
        shape[axis] = size
    set_folded(graph, names, writer.node, writer.index, compute, shape, constant_type(value), f"{value.name}_cat")


def _inverse_scale(transform: Transform) -> Transform:
    scales = [factor for factor in transform.factors if isinstance(factor, Scale)]
    assert len(scales) == len(transform.factors), "only scalings pass a division"
    return Transform(tuple(Scale(1 / factor.vector) for factor in scales))


def undo_in_readers(graph: ir.Graph, names: Names, site: Site, transform: Transform) -> None:
    """Replace W by F^-1 W in every linear that reads the site."""
    for linear in site.linears:
        weight = linear.node.inputs[1]
        assert weight is not None
        compute = _solved(float64_of(weight), transform)
        shape = (linear.inputs, linear.outputs)
        set_folded(graph, names, linear.node, 1, compute, shape, constant_type(weight), f"{weight.name}_cat")


def _solved(original: Compute, transform: Transform) -> Compute:
    return lambda: transform.solve(original())
