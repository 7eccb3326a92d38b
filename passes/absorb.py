"""Write factors into the nodes before a site, and their inverse into the weights behind it.

    gamma -> Mul -> x -> MatMul(W)        gamma s -> Mul -> x s -> MatMul(s^-1 W)
    V W_v -> ... heads ... -> x W_o  ->   V (W_v F) -> ... heads ... -> (x F) (F^-1 W_o)
    SiLU(V W_g) * (V W_u) -> x W_d   ->   SiLU(V W_g P) * (V W_u P S) -> (x P S) (S^-1 P^T W_d)

The function of the model does not change, and no node is added.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from catonnx.graph.absorb import Permutable
from catonnx.graph.constants import constant_shape, constant_type
from catonnx.graph.edits import Compute, Names, float64_of, set_folded
from catonnx.graph.sites import Site
from catonnx.graph.writers import Writer, fold
from catonnx.math.factors import Factor, Permutation, Scale, Transform


@dataclasses.dataclass(frozen=True, eq=False)
class AbsorbedTransform:
    """Factors for one site and where they go.

    Attributes:
        site: The site.
        writers: Take every factor.
        factors: In order; the permutations among them need `permutable`.
        permutable: Where permutations go besides: the other branch of a gate takes nothing else.
        others: Further sites that read rows of the changed value, whose linears undo the factors too.
    """

    site: Site
    writers: tuple[Writer, ...]
    factors: tuple[Factor, ...]
    permutable: Permutable | None = None
    others: tuple[Site, ...] = ()


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
            ValueError: if a scaling is not positive, or a permutation does not fit, before anything is changed.
        """
        names = Names(model.graph)
        for item in self.transforms:
            _check_positive(item)
            _check_permutations(item)
        for item in self.transforms:
            for writer, factors in _writes(item):
                _fold_writer(model.graph, names, writer, Transform(factors))
            for site in (item.site, *item.others):
                undo_in_readers(model.graph, names, site, Transform(item.factors))
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(self.transforms))


def _check_positive(item: AbsorbedTransform) -> None:
    """A negative number does not pass a Relu."""
    if any(isinstance(factor, Scale) and (factor.vector < 0).any() for factor in item.factors):
        raise ValueError(f"the scaling of site {item.site.name} is negative in places; only a positive one is absorbed")


def _check_permutations(item: AbsorbedTransform) -> None:
    """A permutation has to go everywhere, heads and ties allowing."""
    for factor in item.factors:
        if isinstance(factor, Permutation) and (item.permutable is None or not item.permutable.takes(factor.order)):
            why = "" if item.permutable is None else item.permutable.reason or "channels would leave their head or tie"
            raise ValueError(f"site {item.site.name} cannot take the permutation" + (f": {why}" if why else ""))


def _writes(item: AbsorbedTransform) -> list[tuple[Writer, tuple[Factor, ...]]]:
    """Return every constant to be changed, with what it takes up."""
    writes = [(writer, item.factors) for writer in item.writers]
    permutations = tuple(factor for factor in item.factors if isinstance(factor, Permutation))
    if item.permutable is not None and permutations:
        taken = {writer.place for writer in item.writers}
        writes += [(writer, permutations) for writer in item.permutable.writers if writer.place not in taken]
    return writes


def _fold_writer(graph: ir.Graph, names: Names, writer: Writer, transform: Transform) -> None:
    value = writer.node.inputs[writer.index]
    assert value is not None
    original = float64_of(value)
    chosen = transform if writer.power == 1 else _powered(transform, writer.power)

    def compute() -> np.ndarray:
        return fold(writer, original(), chosen.apply)

    shape = list(constant_shape(value) or ())
    for axis, size in zip(writer.axes, writer.sizes, strict=True):
        shape[axis] = size
    set_folded(graph, names, writer.node, writer.index, compute, shape, constant_type(value), f"{value.name}_cat")


def _powered(transform: Transform, power: float) -> Transform:
    """What a divisor takes up: x / c scaled by s is x / (c / s), but permuted it is x' / c'. Squares ask for a root."""
    factors: list[Factor] = []
    for factor in transform.factors:
        assert isinstance(factor, Scale | Permutation), "only scalings and permutations pass a division or a power"
        factors.append(Scale(factor.vector**power) if isinstance(factor, Scale) else factor)
    return Transform(tuple(factors))


def undo_in_readers(graph: ir.Graph, names: Names, site: Site, transform: Transform) -> None:
    """Replace W by F^-1 W in every linear that reads the site."""
    for linear in site.linears:
        weight = linear.node.inputs[1]
        assert weight is not None
        turned = bool(linear.node.attributes.get_int("transB", 0))  # canonical are only sites with a selected linear
        compute = _solved(float64_of(weight), transform, turned)
        shape = (linear.outputs, linear.inputs) if turned else (linear.inputs, linear.outputs)
        set_folded(graph, names, linear.node, 1, compute, shape, constant_type(weight), f"{weight.name}_cat")


def _solved(original: Compute, transform: Transform, turned: bool) -> Compute:
    return lambda: transform.solve(original().T).T if turned else transform.solve(original())
