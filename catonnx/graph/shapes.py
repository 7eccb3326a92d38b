"""Symbolic shapes of a whole graph, with the values of its shape arithmetic.

ONNX's own inference does not see that `Reshape(v, Concat(batch, seq, -1, 64))` splits 192 channels into 3 heads of 64;
absorption must know it for certain. What is not known is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from catonnx.graph import dims
from catonnx.graph.constants import constant_array
from catonnx.graph.dims import Dim
from catonnx.graph.shape_values import CONTENTS, LONGEST, Contents, at, known, read_shape

Shape = tuple[Dim, ...]
_DOMAINS = ("", "com.microsoft")
"""Where operators with these names mean what the tables below say."""


_SAME = frozenset(
    "Abs Cast Clip Cos CumSum DequantizeLinear Dropout Elu Erf Exp FastGelu Gelu HardSigmoid HardSwish Identity IsNaN "
    "LayerNormalization LeakyRelu Log Neg Not QuantizeLinear QuickGelu Reciprocal Relu RMSNormalization Round "
    "ScatterND Sigmoid Sign SimplifiedLayerNormalization Sin SkipLayerNormalization SkipSimplifiedLayerNormalization "
    "Softmax Softplus Sqrt Swish Tanh Trilu".split()
)
_BROADCAST = frozenset(
    "Add And BitwiseAnd Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow PRelu "
    "Sub Where".split()
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
        rule = None if node.domain else CONTENTS.get(node.op_type)
        if rule is not None and (shape is None or len(shape) < 2):
            contents = rule(self, node)
            if contents is not None and len(contents) <= LONGEST:
                self._contents[output] = contents

    def _shape(self, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
        if node.op_type in _BROADCAST:
            return _broadcast_all(inputs)
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
        rule = _SHAPES.get(node.op_type)
        return None if rule is None else rule(self, node, inputs)

    def _from_target(self, node: ir.Node) -> Shape | None:
        """Return the shape that a ConstantOfShape, or a Reshape of something unknown, asks for."""
        target = self.contents(node.inputs[-1])
        if target is None:
            return None
        return tuple(
            dims.unknown() if dim is None or (dim.value is not None and dim.value < 1) else dim for dim in target
        )

    def _axes(self, node: ir.Node, rank: int) -> list[int] | None:
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
        axes = self._axes(node, len(shape))
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


def _broadcast_all(shapes: list[Shape | None]) -> Shape | None:
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max(len(shape) for shape in known)
    result: Shape = (Dim(1),) * rank
    for shape in known:
        padded = (Dim(1),) * (rank - len(shape)) + shape
        result = tuple(dims.broadcast(left, right) for left, right in zip(result, padded, strict=True))
    return result


def _matmul(_: Shapes, __: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    left, right = inputs[0], inputs[1]
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    batch = _broadcast_all([left[:-2], right[:-2]])
    return None if batch is None else (*batch, left[-2], right[-1])


def _gemm(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    left, right = inputs[0], inputs[1]
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return None
    return (left[node.attributes.get_int("transA", 0)], right[1 - node.attributes.get_int("transB", 0)])


def _transpose(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0] or ()
    attribute = node.attributes.get("perm")
    order = reversed(range(len(shape))) if attribute is None else attribute.as_ints()
    return tuple(shape[axis] for axis in order)


def _reshape(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    source, target = inputs[0] or (), shapes.contents(node.inputs[1])
    if target is None:
        return None
    copy_zero = not node.attributes.get_int("allowzero", 0)
    result: list[Dim | None] = []
    for axis, dim in enumerate(target):
        copied = dim is not None and dim.value == 0 and copy_zero and axis < len(source)
        result.append(source[axis] if copied else dim)
    open_axes = [axis for axis, dim in enumerate(result) if dim is None or dim.value == -1]
    if len(open_axes) == 1:
        rest = dims.product(dim for axis, dim in enumerate(result) if axis != open_axes[0] and dim is not None)
        result[open_axes[0]] = dims.divide(dims.product(source), rest)
    return tuple(dims.unknown() if dim is None or dim.value == -1 else dim for dim in result)


def _unsqueeze(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = list(inputs[0] or ())
    known = node.attributes.get("axes")
    count = len(known.as_ints()) if known is not None else len(shapes.contents(node.inputs[1]) or ())
    axes = shapes._axes(node, len(shape) + count)
    for axis in sorted(axes or ()):
        shape.insert(axis, Dim(1))
    return tuple(shape) if axes else None


def _squeeze(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0] or ()
    axes = shapes._axes(node, len(shape)) if shape else []
    return tuple(dim for axis, dim in enumerate(shape) if axis not in axes) if axes else None


def _concat(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    known = [shape for shape in inputs if shape is not None]
    if len(known) != len(inputs) or len({len(shape) for shape in known}) != 1:
        return None
    axis = node.attributes.get_int("axis", 0) % len(known[0])
    total = known[0][axis]
    for shape in known[1:]:
        total = dims.add(total, shape[axis])
    return (*known[0][:axis], total, *known[0][axis + 1 :])


def _slice(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = list(inputs[0] or ())
    axes = [known(dim) for dim in shapes.contents(node.inputs[3]) or (None,)] if len(node.inputs) > 3 else None
    if axes is None or any(axis is None for axis in axes):
        return tuple(dims.unknown() for _ in shape)
    starts, ends = shapes.contents(node.inputs[1]), shapes.contents(node.inputs[2])
    steps = shapes.contents(node.inputs[4]) if len(node.inputs) > 4 else None
    for index, axis in enumerate(axes):
        position = (axis or 0) % len(shape)
        length, start, end = shape[position].value, at(starts, index), at(ends, index)
        step = 1 if steps is None and len(node.inputs) <= 4 else at(steps, index)
        exact = (
            None
            if None in (length, start, end, step) or not step
            else len(range(*slice(start, end, step).indices(length or 0)))
        )
        shape[position] = dims.unknown() if exact is None else Dim(exact)
    return tuple(shape)


def _gather(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    data, indices = inputs[0], inputs[1]
    if data is None or indices is None:
        return None
    axis = node.attributes.get_int("axis", 0) % len(data)
    return (*data[:axis], *indices, *data[axis + 1 :])


def _expand(shapes: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    target = shapes.contents(node.inputs[1])
    if target is None:
        return None
    return _broadcast_all(
        [inputs[0], tuple(dims.unknown() if dim is None or dim.value == -1 else dim for dim in target)]
    )


def _flatten(_: Shapes, node: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    shape = inputs[0] or ()
    axis = node.attributes.get_int("axis", 1) % (len(shape) + 1)
    return (dims.product(shape[:axis]), dims.product(shape[axis:]))


def _conv(_: Shapes, __: ir.Node, inputs: list[Shape | None]) -> Shape | None:
    data, weight = inputs[0], inputs[1]
    if data is None or weight is None:
        return None
    return (data[0], weight[0], *(dims.unknown() for _ in data[2:]))


def _shape_of(shapes: Shapes, node: ir.Node, _: list[Shape | None]) -> Shape | None:
    contents = read_shape(shapes, node)
    return None if contents is None else (Dim(len(contents)),)


_SHAPES: dict[str, Callable[[Shapes, ir.Node, list[Shape | None]], Shape | None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Flatten": _flatten,
    "Conv": _conv,
    "Shape": _shape_of,
}
