"""Spell a Relu behind a rounded 2-D linear as Max: ONNX Runtime would fuse the two before it sees the int4 weight.

    Gemm(x, DequantizeLinear(W), b) -> Relu                Gemm(x, DequantizeLinear(W), b) -> Max(., 0)
    MatMul(x, DequantizeLinear(W)) -> Add(b) -> Relu  ->   MatMul(x, DequantizeLinear(W)) -> Add(b) -> Max(., 0)

A Gemm with its Relu becomes FusedGemm, and so does MatMul + Add of matrices; a FusedGemm dequantizes its weight at
every run, 15 to 25 times slower (onnxruntime 1.31). Max is left alone. The function of the model does not change.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from catonnx.graph.constants import constant_shape
from catonnx.graph.edits import Names, add_constant
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import Linear


@dataclasses.dataclass(frozen=True)
class ReluAsMax(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        linears: Linears of the model whose weights come from a DequantizeLinear.
    """

    linears: tuple[Linear, ...]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Relu that would be fused."""
        names, shapes = Names(model.graph), Shapes(model.graph)
        modified = False
        for linear in self.linears:
            shape = shapes[linear.node.outputs[0]]
            if shape is not None and len(shape) != 2:
                continue
            for relu in _fused_relus(linear.node):
                _rewrite(model.graph, names, relu, linear.dtype)
                modified = True
        return ir.passes.PassResult(model, modified)


def _fused_relus(node: ir.Node) -> list[ir.Node]:
    """Return the Relus right behind a linear, or behind the Add of its constant bias."""
    readers = list(node.outputs[0].consumers())
    if len(readers) == 1 and readers[0].op_type == "Add" and any(map(constant_shape, readers[0].inputs)):
        readers = list(readers[0].outputs[0].consumers())
    return [reader for reader in readers if reader.op_type == "Relu" and not reader.domain]


def _rewrite(graph: ir.Graph, names: Names, relu: ir.Node, dtype: ir.DataType) -> None:
    zero = add_constant(graph, names, f"{relu.name}/zero", ir.tensor(0.0, dtype=dtype))
    maximum = ir.node("Max", [relu.inputs[0], zero], name=relu.name)
    graph.insert_before(relu, maximum)
    ir.convenience.replace_nodes_and_values(graph, relu, [relu], [maximum], relu.outputs, maximum.outputs)
