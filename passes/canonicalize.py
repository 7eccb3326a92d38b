"""Give every linear of the chosen sites one orientation and a weight of its own.

    MatMul(x, Transpose(W))                  MatMul(x, W')
    Gemm(x, W, b, transB=1, alpha, beta) ->  Gemm(x, W', b')
    Gemm(x, W, b, transA=1)              ->  Gemm(Transpose(x), W, b)

W' [K, N] is an initializer that nobody else reads, so that later passes can change it. Constant, Identity, Transpose
and Cast nodes that only spelled a weight are dropped with it. A site whose linears read it transposed becomes the site
behind the Transpose. A second run changes nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from catonnx.graph.constants import constant_shape, constant_type
from catonnx.graph.edits import Names, float64_of, set_folded
from catonnx.graph.sites import Linear, Selection, find_sites
from catonnx.passes._protocol import cleaned


@dataclasses.dataclass(frozen=True)
class Canonicalize(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        selection: Which linears will be rounded; sites without one are left alone.
    """

    selection: Selection = dataclasses.field(default_factory=Selection)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the linears of all sites that hold a selected one."""
        graph = model.graph
        names = Names(graph)
        modified = False
        for site in find_sites(graph, self.selection).sites:
            if not site.selected:
                continue
            for linear in site.linears:
                modified |= _turn_activation(graph, names, linear.node)
                modified |= _own_weight(graph, names, linear)
                modified |= _own_bias(graph, names, linear.node)
        return cleaned(model, modified)


def _turn_activation(graph: ir.Graph, names: Names, node: ir.Node) -> bool:
    value = node.inputs[0]
    if node.op_type != "Gemm" or not node.attributes.get_int("transA", 0) or value is None:
        return False
    shape = None if value.shape is None else ir.Shape(reversed(list(value.shape)))
    turned = ir.Value(name=names.new(f"{value.name}_transposed"), type=value.type, shape=shape)
    turn = ir.node(
        "Transpose", [value], attributes={"perm": [1, 0]}, outputs=[turned], name=names.new(f"{node.name}/transpose")
    )
    graph.insert_before(node, turn)
    node.replace_input_with(0, turned)
    del node.attributes["transA"]
    return True


def _own_weight(graph: ir.Graph, names: Names, linear: Linear) -> bool:
    node = linear.node
    weight = node.inputs[1]
    assert weight is not None
    turned, alpha = bool(node.attributes.get_int("transB", 0)), node.attributes.get_float("alpha", 1.0)
    if (
        weight.is_initializer()
        and len(weight.uses()) == 1
        and not turned
        and alpha == 1
        and not weight.is_graph_input()
    ):
        return False
    original = float64_of(weight)

    def compute() -> np.ndarray:
        array = original()
        return (array.T if turned else array) * alpha

    dtype = constant_type(weight)
    set_folded(graph, names, node, 1, compute, (linear.inputs, linear.outputs), dtype, f"{weight.name}_kn")
    for attribute in ("transB", "alpha"):
        node.attributes.pop(attribute, None)
    return True


def _own_bias(graph: ir.Graph, names: Names, node: ir.Node) -> bool:
    beta = node.attributes.get_float("beta", 1.0)
    if node.op_type != "Gemm" or beta == 1 or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    shape = constant_shape(node.inputs[2])
    if shape is None:
        return False
    original = float64_of(node.inputs[2])
    set_folded(
        graph,
        names,
        node,
        2,
        lambda: original() * beta,
        shape,
        constant_type(node.inputs[2]),
        f"{node.inputs[2].name}_beta",
    )
    del node.attributes["beta"]
    return True
