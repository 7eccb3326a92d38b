"""A model opened for work: canonical, with its sites and what the graph before each can absorb."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from catonnx.errors import ModelError, NothingToOptimizeError, UsageError
from catonnx.graph.absorb import Absorption
from catonnx.graph.constants import tensor_array
from catonnx.graph.edits import float64_of
from catonnx.graph.residual import find_streams
from catonnx.graph.shapes import Shapes
from catonnx.graph.sharing import trace_sites
from catonnx.graph.sites import INSIDE, Found, Linear, Selection, Site, find_sites
from catonnx.graph.ties import TiedTable, shared_inside, shared_weights, tied_tables
from catonnx.math.stream_rotation import StreamRotation
from catonnx.passes.canonicalize import Canonicalize
from catonnx.passes.rotate_stream import RotateStream
from catonnx.passes.unfuse import Unfuse
from catonnx.passes.unstack import Unstack
from catonnx.recipe import Recipe
from catonnx.runtime.decoding import can_be_continued

MARK = "catonnx"
"""Key in the metadata of a model that we made; its value is the scheme."""


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """A model with its sites.

    Attributes:
        model: Normalized and canonical.
        found: Every site, and what was passed over.
        sites: The sites that hold a linear to be rounded, in graph order.
        absorptions: What the graph can take up before each of these, by name.
        recipe: The wish that it was opened for.
        turned: What became of its residual streams, for people; empty if they were not to be turned.
        narrowed: What became of its float32, for people; empty if it stayed what it was.
        tables: Linears to be rounded whose weight an embedding shares, if the recipe wants it shared -> the table.
        alike: Linears to be rounded whose weight other linears share -> a number for each such weight.
        leaders: Sites of such linears -> the one whose plan they follow: weights stay alike if their bases do.
    """

    model: ir.Model
    found: Found
    sites: tuple[Site, ...]
    absorptions: Mapping[str, Absorption]
    recipe: Recipe
    turned: tuple[str, ...] = ()
    narrowed: tuple[str, ...] = ()
    tables: Mapping[Linear, TiedTable] = dataclasses.field(default_factory=dict)
    alike: Mapping[Linear, int] = dataclasses.field(default_factory=dict)
    leaders: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def tied(self) -> frozenset[str]:
        """Names of the sites that such linears read: they keep their basis, because the embedding has the same one."""
        return frozenset(site.name for site in self.sites if not self.tables.keys().isdisjoint(site.selected))

    def left_alone(self) -> tuple[tuple[str, str, str], ...]:
        """Return (node, operator, reason) of everything that looks like a linear and is not rounded."""
        linears = (linear for site in self.found.sites for linear in site.linears if not linear.selected)
        return (*((linear.name, linear.node.op_type, linear.reason) for linear in linears), *self.found.passed_over)


def analyse(model: ir.Model, recipe: Recipe) -> Opened:
    """Bring a model into canonical form, find its sites and trace what can be absorbed.

    Args:
        model: As `graph.load.load` returns it; changed in place.
        recipe: Which linears are wanted.

    Raises:
        UsageError: if the recipe wants the residual stream turned, and there is none that can be.
    """
    shares = recipe.tied_embeddings is not None
    selection = Selection(recipe.include, recipe.exclude, recipe.lm_head or shares)
    Unfuse(selection)(model)
    Unstack(selection)(model)
    tied, numbers = tied_tables(model.graph) if shares else (), shared_weights(model.graph)
    Canonicalize(selection)(model)
    found = find_sites(model.graph, selection)
    turned: tuple[str, ...] = ()
    if recipe.rotate and MARK not in model.metadata_props and any(site.selected for site in found.sites):
        turned = _turn_streams(model, recipe)
        found = find_sites(model.graph, selection)
    sites = tuple(site for site in found.sites if site.selected)
    shapes = Shapes(model.graph)
    # A cache in another basis must be proven to fit the model that wrote it; where it cannot, it stays as it is.
    change_caches = recipe.caches == "transformed" and can_be_continued(model)
    linears = {linear.node: linear for site in sites for linear in site.selected}
    tables = {linears[table.product]: table for table in tied if table.product in linears}
    numbers |= shared_inside((site for site in sites if site.inside), first=len(numbers))
    alike = {linear: numbers[node] for node, linear in linears.items() if node in numbers}
    opened = Opened(model, found, sites, {}, recipe, turned, (), tables, alike, _leaders(sites, alike))
    absorptions = trace_sites(found.sites, shapes, change_caches=change_caches)
    own = {name: _without_shared(name, absorption, opened) for name, absorption in absorptions.items()}
    return dataclasses.replace(opened, absorptions=own)


def _turn_streams(model: ir.Model, recipe: Recipe) -> tuple[str, ...]:
    """Turn every residual stream that can be, and return what was done and what was not."""
    streams = find_streams(model.graph)
    possible = [stream for stream in streams if not stream.reason]
    if not possible:
        why = streams[0].reason if streams else "no Add joins what a norm reads"
        raise UsageError(f"the residual stream cannot be turned: {why}", hint="leave out --rotate")
    turned = [
        (stream, StreamRotation.random(stream.width, recipe.seed, keeps_mean=stream.keeps_mean)) for stream in possible
    ]
    RotateStream(tuple(turned))(model)
    done = (f"{stream.width} channels from {stream.name} on, by {rotation.name}" for stream, rotation in turned)
    twice = (f"{name} is stored {count} times now" for stream in possible for name, count in stream.multiplied)
    left = (f"not {stream.width} channels at {stream.name}: {stream.reason}" for stream in streams if stream.reason)
    return (*done, *twice, *left)


def _leaders(sites: Sequence[Site], alike: Mapping[Linear, int]) -> dict[str, str]:
    """Return sites that share weights, directly or through others -> one of them."""
    leaders: dict[str, str] = {}
    first: dict[int, str] = {}
    for site in sites:
        for number in (alike[linear] for linear in site.selected if linear in alike):
            own = leaders.setdefault(site.name, site.name)
            other = leaders[first.setdefault(number, site.name)]
            leaders |= {name: other for name, leader in leaders.items() if leader == own}
    return leaders


def _without_shared(name: str, absorption: Absorption, opened: Opened) -> Absorption:
    """Return what can be absorbed where weights are shared: nothing that would make them differ."""
    shared, permutable = {linear.node for linear in opened.alike}, absorption.permutable
    if permutable is not None and any(writer.node in shared for writer in permutable.writers):
        absorption = dataclasses.replace(absorption, permutable=None)
    # What is absorbed for some is undone by their peers too, in weights that must stay as they are.
    bound = {peer.name for peer in absorption.peers} & (opened.leaders.keys() | opened.tied)
    if name in opened.leaders and absorption.reason != INSIDE:
        reason = "its weights are shared with other sites"
    elif bound or any(writer.node in shared for writer in absorption.writers):
        reason = "it would change weights that sites share"
    else:
        return absorption
    return dataclasses.replace(absorption, writers=(), width=0, caches=(), reason=reason, permutable=None, shared=())


def check_something_to_do(opened: Opened) -> None:
    """Refuse a model without a linear that the recipe selects, and one that was optimized before.

    Raises:
        NothingToOptimizeError: naming the reasons why its linears are left alone.
        UsageError: if embeddings are to be shared that are not tied.
    """
    if MARK in opened.model.metadata_props:
        # What is left in it are the output head and the matrices of our own transforms.
        raise NothingToOptimizeError(
            f"catonnx made this model already, with scheme {opened.model.metadata_props[MARK]}",
            hint="give the model that it was made from",
        )
    if opened.recipe.tied_embeddings is not None and not opened.tables:
        raise UsageError(
            "no table is shared by an embedding and a linear to be rounded, so tied_embeddings has nothing to share",
            hint="leave it out; lm_head rounds an output head of its own",
        )
    if opened.sites:
        return
    found = {reason for _, _, reason in opened.left_alone()}
    reasons = "; ".join(sorted(found))
    raise NothingToOptimizeError(
        "no linear layer to optimize" + (f": {reasons}" if reasons else ""),
        hint="a linear is a MatMul or Gemm with a constant 2-D weight; `catonnx inspect` lists them",
    )


def check_types(opened: Opened) -> None:
    """Refuse a form that the provider meant for the result has no kernel for, in the type of a linear.

    Every form is sound ONNX in bfloat16. On CUDA, ONNX Runtime (1.31) multiplies it by MatMulNBits and MatMulInteger,
    our operators take it, and there is no DequantizeLinear of it; the CPU has nothing of it at all, so that such a
    result is for other runtimes.

    Raises:
        UsageError: naming the linear.
    """
    recipe = opened.recipe
    if recipe.provider != "cuda" or recipe.form != "qdq" or not recipe.rounds:
        return
    for site in opened.sites:
        if site.dtype == ir.DataType.BFLOAT16:
            raise UsageError(
                "form qdq dequantizes weights to bfloat16, which ONNX Runtime cannot do on CUDA",
                where=site.selected[0].name,
                hint="choose form nbits, or form integer or op for rounded activations",
            )


def check_weights(opened: Opened) -> None:
    """Refuse NaN and Inf in what is to be rounded, before they are met as a strange activation.

    Raises:
        ModelError: naming the linear.
    """
    for site in opened.sites:
        for linear in site.selected:
            tensor = linear.node.inputs[1].const_value  # type: ignore[union-attr]
            assert tensor is not None
            _check_finite(tensor_array(tensor), linear)


def _check_finite(array: np.ndarray, linear: Linear) -> None:
    if not np.isfinite(array).all():
        raise ModelError(
            "the weight holds NaN or Inf", where=linear.name, hint="export the model again, or --exclude it"
        )


def selected_weights(site: Site) -> list[np.ndarray]:
    """Return the weights [d, N] of a site that are rounded, float64, pending folds included.

    Raises:
        ModelError: if one holds NaN or Inf.
    """
    arrays = []
    for linear in site.selected:
        weight = linear.node.inputs[1]
        assert weight is not None
        array = float64_of(weight)()
        _check_finite(array, linear)
        arrays.append(array)
    return arrays
