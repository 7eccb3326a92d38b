"""What all passes owe to `onnx_ir.passes`: preconditions, so that a second run does no harm, and a true `modified`.

Passes hold nodes and values of one model. A pass is refused, before it changes anything, on a model that these do not
belong to or no longer belong to, and where it has done the same already: structure says so, or a note in the `meta` of
a value, which lives as long as the model is in memory. A model that is saved and read again is another model.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from catonnx.graph.bodies import remove_unused_initializers
from catonnx.graph.constants import constant_shape
from catonnx.graph.sites import Linear, Site


def check_linears(model: ir.Model, linears: Iterable[Linear]) -> None:
    """Refuse linears of another model, and such as were replaced.

    Raises:
        PreconditionError: naming the linear.
    """
    graphs = {model.graph, *model.graph.subgraphs()}
    for linear in linears:
        if linear.node.graph not in graphs:
            raise ir.passes.PreconditionError(f"{linear.name} is not, or no longer, in this model")


def check_weights(model: ir.Model, linears: Iterable[Linear]) -> None:
    """Refuse linears whose weight is no constant any more: it has been rounded.

    Raises:
        PreconditionError: naming the linear.
    """
    linears = list(linears)
    check_linears(model, linears)
    for linear in linears:
        if constant_shape(linear.node.inputs[1]) is None:
            raise ir.passes.PreconditionError(f"the weight of {linear.name} is no constant; it was rounded already")


def check_read_directly(model: ir.Model, sites: Iterable[Site]) -> None:
    """Refuse sites whose linears read something else by now: a transform or rounding was put between.

    Raises:
        PreconditionError: naming the site.
    """
    for site in sites:
        check_weights(model, site.linears)
        if any(linear.node.inputs[0] is not site.value for linear in site.linears):
            raise ir.passes.PreconditionError(f"what the linears of site {site.name} read was transformed already")


def check_new(value: ir.Value, kind: str, item: object) -> None:
    """Refuse what was done at a value before: the very same object, not one like it.

    Raises:
        PreconditionError: naming the value.
    """
    if any(done is item for done in value.meta.get(kind, ())):
        raise ir.passes.PreconditionError(f"this was {kind} at {value.name} already")


def note(value: ir.Value, kind: str, item: object) -> None:
    """Note what was done at a value."""
    value.meta[kind] = (*value.meta.get(kind, ()), item)


def cleaned(model: ir.Model, modified: bool) -> ir.passes.PassResult:
    """Return the result of a pass, having removed what nobody reads any more."""
    removed = RemoveUnusedNodesPass()(model).modified
    remove_unused_initializers(model.graph)
    return ir.passes.PassResult(model, removed or modified)
