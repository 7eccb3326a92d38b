"""A model opened for work: canonical, with its sites and what the graph before each can absorb."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from catonnx.errors import ModelError, NothingToOptimizeError, UsageError
from catonnx.graph.absorb import Absorption, trace
from catonnx.graph.constants import tensor_array
from catonnx.graph.edits import float64_of
from catonnx.graph.residual import find_streams
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import INSIDE, Found, Linear, Selection, Site, find_sites
from catonnx.math.stream_rotation import StreamRotation
from catonnx.passes.canonicalize import Canonicalize
from catonnx.passes.rotate_stream import RotateStream
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
    """

    model: ir.Model
    found: Found
    sites: tuple[Site, ...]
    absorptions: Mapping[str, Absorption]
    recipe: Recipe
    turned: tuple[str, ...] = ()

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
    selection = Selection(recipe.include, recipe.exclude, recipe.lm_head)
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
    absorptions = {site.name: _trace(site, shapes, change_caches) for site in sites}
    return Opened(model, found, sites, absorptions, recipe, turned)


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


def _trace(site: Site, shapes: Shapes, change_caches: bool) -> Absorption:
    readers = frozenset(linear.node for linear in site.linears)
    return trace(site.value, site.width, readers, shapes, change_caches=change_caches)


def check_something_to_do(opened: Opened) -> None:
    """Refuse a model without a linear that the recipe selects, and one that was optimized before.

    Raises:
        NothingToOptimizeError: naming the reasons why its linears are left alone.
    """
    if MARK in opened.model.metadata_props:
        # What is left in it are the output head and the matrices of our own transforms.
        raise NothingToOptimizeError(
            f"catonnx made this model already, with scheme {opened.model.metadata_props[MARK]}",
            hint="give the model that it was made from",
        )
    if opened.sites:
        return
    found = {reason for _, _, reason in opened.left_alone()}
    reasons = "; ".join(sorted(found))
    merged = "of a merged decoder take the parts, decoder_model.onnx and decoder_with_past_model.onnx; "
    raise NothingToOptimizeError(
        "no linear layer to optimize" + (f": {reasons}" if reasons else ""),
        hint=merged * (INSIDE in found)
        + "a linear is a MatMul or Gemm with a constant 2-D weight; `catonnx inspect` lists them",
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
