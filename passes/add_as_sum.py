"""Spell an Add behind a rounded linear as Sum: ONNX Runtime would leave the weight in int4 unfused.

    MatMul(x, DequantizeLinear(W)) -> Add(., r)    ->    MatMul(x, DequantizeLinear(W)) -> Sum(., r)

A product of two axes and an Add become a Gemm, a residual connection of two axes included, and the Gemm expands the
weight at every run unless what is added is one constant vector [N] (onnxruntime 1.31). A Sum of two is the same Add and
is left alone. The function of the model does not change.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from catonnx.graph.constants import constant_shape
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import Linear


@dataclasses.dataclass(frozen=True)
class AddAsSum(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        linears: Linears of the model whose weights come from a DequantizeLinear.
    """

    linears: tuple[Linear, ...]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Add that would be in the way."""
        shapes = Shapes(model.graph)
        modified = False
        for linear in self.linears:
            value = linear.node.outputs[0]
            shape, readers = shapes[value], list(value.consumers())
            if (shape is None or len(shape) == 2) and len(readers) == 1 and _hinders(readers[0], linear.outputs):
                readers[0].op_type = "Sum"
                modified = True
        return ir.passes.PassResult(model, modified)


def _hinders(reader: ir.Node, width: int) -> bool:
    added = (constant_shape(value) for value in reader.inputs)
    return reader.op_type == "Add" and not reader.domain and (width,) not in added
