"""Symbolic shapes of a whole graph, with the values of its shape arithmetic.

ONNX's own inference does not see that `Reshape(v, Concat(batch, seq, -1, 64))` splits 192 channels into 3 heads of 64;
absorption must know it for certain. What is not known is None, never a guess.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from catonnx.graph import dims
from catonnx.graph.constants import constant_array
from catonnx.graph.dims import Dim
from catonnx.graph.shape_rules import MORE_OUTPUTS, SHAPES, Shape, broadcast_all
from catonnx.graph.shape_values import CONTENTS, LONGEST, Contents

_DOMAINS = ("", "com.microsoft")
"""Where operators with these names mean what the tables below say."""


_SAME = frozenset(
    "Abs BiasGelu Cast Ceil Clip Cos CumSum DequantizeLinear Dropout Elu Erf Exp FastGelu Floor Gelu HardSigmoid "
    "HardSwish Identity IsNaN LayerNormalization LeakyRelu Log LogSoftmax Neg Not QuantizeLinear QuickGelu Reciprocal "
    "Relu RMSNormalization RotaryEmbedding Round ScatterElements ScatterND Sigmoid Sign SimplifiedLayerNormalization "
    "Sin SkipLayerNormalization SkipSimplifiedLayerNormalization Softmax Softplus Sqrt Swish Tanh Trilu".split()
)
_BROADCAST = frozenset(
    "Add And BitwiseAnd Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow PRelu "
    "Sub Sum Where".split()
)
_REDUCE = frozenset("ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL2 ReduceSumSquare".split())


class Shapes:
    """Shapes and shape-arithmetic values of all values of a graph.

    Args:
        graph: A sorted graph; only its top level is looked at.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._shapes: dict[ir.Value, Shape] = {}
        self._contents: dict[ir.Value, Contents] = {}
        for value in graph.inputs:
            if value.shape is not None:
                self._shapes[value] = tuple(_declared(dim) for dim in value.shape)
        for value in graph.initializers.values():
            self._add_constant(value)
        for node in graph:
            self._visit(node)

    def __getitem__(self, value: ir.Value) -> Shape | None:
        """Return the shape of `value`, None if its rank is not known."""
        return self._shapes.get(value)

    def contents(self, value: ir.Value | None) -> Contents | None:
        """Return the elements of a small integer tensor of rank 0 or 1, as far as they are known."""
        return None if value is None else self._contents.get(value)

    def _add_constant(self, value: ir.Value) -> None:
        tensor = value.const_value
        if tensor is None:
            return
        shape = tensor.shape.numpy()
        self._shapes[value] = tuple(Dim(length) for length in shape)
        if (
            tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
            and len(shape) < 2
            and tensor.size <= LONGEST
        ):
            self._contents[value] = tuple(Dim(int(element)) for element in np.atleast_1d(tensor.numpy()))

    def _visit(self, node: ir.Node) -> None:
        if not node.outputs:
            return
        output = node.outputs[0]
        array = constant_array(output) if node.op_type == "Constant" else None
        if array is not None:
            self._shapes[output] = tuple(Dim(length) for length in array.shape)
            if array.dtype.kind in "ib" and array.ndim < 2 and array.size <= LONGEST:
                self._contents[output] = tuple(Dim(int(element)) for element in array.reshape(-1))
            return
        inputs = [None if value is None else self._shapes.get(value) for value in node.inputs]
        if node.op_type == "Split" and not node.domain:
            self._split(node, inputs[0])
            return
        shape = self._shape(node, inputs) if node.domain in _DOMAINS else None
        if shape is None and output.shape is not None:
            shape = tuple(Dim(dim) if isinstance(dim, int) else dims.unknown() for dim in output.shape)
        if shape is not None:
            self._shapes[output] = shape
            place = MORE_OUTPUTS.get(node.op_type)
            if place is not None and place < len(node.outputs):
                self._shapes[node.outputs[place]] = shape
        rule = None if node.domain else CONTENTS.get(node.op_type)
        if rule is not None and (shape is None or len(shape) < 2):
            contents = rule(self, node)
            if contents is not None and len(contents) <= LONGEST:
                self._contents[output] = contents

    def _shape(self, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
        if node.op_type in _BROADCAST:
            return broadcast_all(inputs)
        if node.op_type == "Range":
            return (dims.unknown(),)
        if node.op_type == "ConstantOfShape" or (node.op_type == "Reshape" and inputs[0] is None):
            return self._from_target(node)
        if not inputs or inputs[0] is None:
            return None
        if node.op_type in _SAME:
            return inputs[0]
        if node.op_type in _REDUCE:
            return self._reduce(node, inputs[0])
        rule = SHAPES.get(node.op_type)
        return None if rule is None else rule(self, node, inputs)

    def _from_target(self, node: ir.Node) -> Shape | None:
        """Return the shape that a ConstantOfShape, or a Reshape of something unknown, asks for."""
        target = self.contents(node.inputs[-1])
        if target is None:
            return None
        return tuple(
            dims.unknown() if dim is None or (dim.value is not None and dim.value < 1) else dim for dim in target
        )

    def axes(self, node: ir.Node, rank: int) -> list[int] | None:
        """Return the axes that an attribute or the second input names; none if neither does, None if unknown."""
        attribute = node.attributes.get("axes")
        if attribute is not None:
            return [axis % rank for axis in attribute.as_ints()]
        if len(node.inputs) < 2 or node.inputs[1] is None:
            return []
        known = self.contents(node.inputs[1])
        if known is None or any(dim is None or dim.value is None for dim in known):
            return None
        return [dim.coefficient % rank for dim in known if dim is not None]

    def _reduce(self, node: ir.Node, shape: Shape) -> Shape | None:
        axes = self.axes(node, len(shape))
        keep = bool(node.attributes.get_int("keepdims", 1))
        if axes is None:
            return None
        if not axes and node.attributes.get_int("noop_with_empty_axes"):
            return shape
        axes = axes or list(range(len(shape)))
        reduced = [Dim(1) if axis in axes else dim for axis, dim in enumerate(shape)]
        return tuple(dim for axis, dim in enumerate(reduced) if keep or axis not in axes)

    def _split(self, node: ir.Node, shape: Shape | None) -> None:
        if shape is None:
            return
        axis = node.attributes.get_int("axis", 0) % len(shape)
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            sizes = self.contents(node.inputs[1]) or (None,) * len(node.outputs)
        else:
            sizes = (dims.divide(shape[axis], Dim(len(node.outputs))),) * len(node.outputs)
        for value, size in zip(node.outputs, sizes, strict=False):
            self._shapes[value] = (*shape[:axis], size or dims.unknown(), *shape[axis + 1 :])


def _declared(dim: int | ir.SymbolicDim) -> Dim:
    if isinstance(dim, int):
        return Dim(dim)
    # Exporters that know no name write one of these for every length, equal or not.
    return dims.unknown() if dim.value is None or dim.value in ("?", "None", "-1") else dims.symbol(str(dim.value))
