"""Take ONNX Runtime's fused products apart again, where what was fused is a linear.

    FusedMatMul(x, W, alpha, transB)          MatMul(x, alpha W^T)
    FusedGemm(x, W, b, activation=Relu)  ->   Relu(Gemm(x, W, b))

No 4-bit form takes the place of the fused operators. ONNX Runtime fuses them anew where it pays. The linear keeps the
name of the node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from catonnx.graph.constants import constant_shape, constant_type
from catonnx.graph.edits import Names, float64_of, set_folded
from catonnx.graph.sites import Selection

_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
}
"""Activation of a FusedGemm -> its attributes, which are called `activation_alpha` and so on there."""


@dataclasses.dataclass(frozen=True)
class Unfuse(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        selection: Which linears will be rounded; others are left alone.
    """

    selection: Selection = dataclasses.field(default_factory=Selection)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every FusedMatMul and FusedGemm with a constant matrix as its second operand."""
        names, modified = Names(model.graph), False
        for node in list(model.graph):
            if node.domain != "com.microsoft" or self.selection.reason_against(node.name or ""):
                continue
            if node.op_type == "FusedMatMul" and _is_linear(node):
                _unfuse_product(model.graph, names, node)
                modified = True
            elif node.op_type == "FusedGemm" and _is_linear(node) and _knows_activation(node):
                _unfuse_activation(model.graph, names, node)
                modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _is_linear(node: ir.Node) -> bool:
    """Whether the right operand is a constant matrix, and the left one is read as it is."""
    turned = ("transA", "transBatchA", "transBatchB") if node.op_type == "FusedMatMul" else ()
    return len(constant_shape(node.inputs[1]) or ()) == 2 and not any(node.attributes.get_int(n, 0) for n in turned)


def _knows_activation(node: ir.Node) -> bool:
    names = _ACTIVATIONS.get(node.attributes.get_string("activation", ""))
    return names is not None and all(f"activation_{name}" in node.attributes for name in names)


def _unfuse_product(graph: ir.Graph, names: Names, node: ir.Node) -> None:
    weight = node.inputs[1]
    assert weight is not None
    turned, alpha = bool(node.attributes.get_int("transB", 0)), node.attributes.get_float("alpha", 1.0)
    original, shape = float64_of(weight), constant_shape(weight) or ()
    node.op_type, node.domain = "MatMul", ""
    node.attributes.clear()
    if not turned and alpha == 1:
        return
    set_folded(
        graph,
        names,
        node,
        1,
        lambda: alpha * (original().T if turned else original()),
        shape[::-1] if turned else shape,
        constant_type(weight),
        f"{weight.name}_kn",
    )


def _unfuse_activation(graph: ir.Graph, names: Names, node: ir.Node) -> None:
    kind = node.attributes.get_string("activation", "")
    kept = [attribute for name, attribute in node.attributes.items() if not name.startswith("activation")]
    options = {name: node.attributes.get_float(f"activation_{name}") for name in _ACTIVATIONS[kind]}
    output = ir.Value(name=names.new(f"{node.name}/product"), type=node.outputs[0].type, shape=node.outputs[0].shape)
    product = ir.Node("", "Gemm", node.inputs, kept, outputs=[output], name=node.name)
    activation = ir.node(kind, [output], attributes=options, name=names.new(f"{node.name}/{kind}"))
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [product, activation], node.outputs, activation.outputs
    )
