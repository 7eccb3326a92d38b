"""Spell a Relu or Clip behind a rounded linear as Max and Min: ONNX Runtime would leave the weight in int4 unfused.

    MatMul(x, DequantizeLinear(W)) -> Relu                 MatMul(x, DequantizeLinear(W)) -> Max(., 0)
    MatMul(x, DequantizeLinear(W)) -> Clip(low, high)  ->  MatMul(x, DequantizeLinear(W)) -> Max(., low) -> Min(., high)
    Gemm(x, DequantizeLinear(W), b) -> Relu                Gemm(x, DequantizeLinear(W), b) -> Max(., 0)

Relu and Clip straight behind the product are taken for the rounding of its output, whatever its rank; behind a matrix
with a bias Relu becomes part of a FusedGemm, and Clip keeps the Gemm. All of them expand the weight at every run, 15 to
25 times slower (onnxruntime 1.31). A product of more axes with an Add between is fused. Max and Min are left alone. The
function of the model does not change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from catonnx.graph.constants import constant_shape
from catonnx.graph.edits import Names, add_constant
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import Linear

_CLAMPS = frozenset({"Relu", "Clip"})


@dataclasses.dataclass(frozen=True)
class ClampAsMax(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        linears: Linears of the model whose weights come from a DequantizeLinear.
    """

    linears: tuple[Linear, ...]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Relu and Clip that would be in the way."""
        names, shapes = Names(model.graph), Shapes(model.graph)
        modified = False
        for linear in self.linears:
            shape = shapes[linear.node.outputs[0]]
            for clamp in list(_clamps(linear.node, matrix=shape is None or len(shape) == 2)):
                _rewrite(model.graph, names, clamp, linear.dtype)
                modified = True
        return ir.passes.PassResult(model, modified)


def _clamps(node: ir.Node, *, matrix: bool) -> Iterator[ir.Node]:
    """Yield what clamps the output of a linear, or of the Add of its constant bias if its output is a matrix."""
    readers = list(node.outputs[0].consumers())
    if matrix and len(readers) == 1 and readers[0].op_type == "Add" and any(map(constant_shape, readers[0].inputs)):
        readers = list(readers[0].outputs[0].consumers())
    yield from (reader for reader in readers if reader.op_type in _CLAMPS and not reader.domain)


def _rewrite(graph: ir.Graph, names: Names, clamp: ir.Node, dtype: ir.DataType) -> None:
    bounds: list[tuple[str, ir.Value | None]]
    if clamp.op_type == "Relu":
        bounds = [("Max", add_constant(graph, names, f"{clamp.name}/zero", ir.tensor(0.0, dtype=dtype)))]
    else:
        ends = [*clamp.inputs[1:], None, None][:2]
        bounds = [(kind, end) for kind, end in zip(("Max", "Min"), ends, strict=True) if end is not None]
    value, new = clamp.inputs[0], []
    for operator, bound in bounds or [("Identity", None)]:
        inputs = [value] if bound is None else [value, bound]
        new.append(ir.node(operator, inputs, name=names.new(f"{clamp.name}/{operator.lower()}")))
        value = new[-1].outputs[0]
        value.name = names.new(f"{new[-1].name}_output")
    assert clamp.graph is not None
    ir.convenience.replace_nodes_and_values(clamp.graph, clamp, [clamp], new, clamp.outputs, new[-1].outputs)
