"""Round the weights of selected linears to int4 and write them in the form that ONNX Runtime fuses.

    qdq      MatMul(x, W)  ->  MatMul(x, DequantizeLinear(W_int4 [K, N], scale [K / group, N], axis=0, block_size))
    nbits    MatMul(x, W)  ->  com.microsoft.MatMulNBits(x, W_uint4 [N, K / group, group / 2], scale [N * K / group])

The zero point is left out: the scale carries the sign, so -8 to 7 is used whole. Each MatMul has a DequantizeLinear of
its own, because ONNX Runtime does not fuse a shared one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from catonnx.errors import ModelError
from catonnx.graph.constants import constant_shape, constant_type
from catonnx.graph.edits import Names, add_constant, dequantizer, float64_of
from catonnx.graph.sites import Linear
from catonnx.math.rounding import QuantizedWeight, quantize_weight
from catonnx.progress import Progress, silent
from catonnx.recipe import Recipe

_BLOCK_OF_CHANNEL = 128
"""MatMulNBits has no scale per output channel: it is repeated for blocks of this many rows."""


@dataclasses.dataclass(frozen=True)
class QuantizeWeights(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        linears: Linears of the model with an initializer [K, N] of their own.
        recipe: Group size, rounding and form.
        observe: Called for each linear with the weight in float64 and what it was rounded to.
        progress: Told after each linear.
    """

    linears: tuple[Linear, ...]
    recipe: Recipe
    observe: Callable[[Linear, np.ndarray, QuantizedWeight], None] | None = None
    progress: Progress = silent

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Round and rewrite every linear."""
        names = Names(model.graph)
        write = _FORMS[self.recipe.form]
        for index, linear in enumerate(self.linears):
            weight = linear.node.inputs[1]
            assert weight is not None
            dtype = constant_type(weight)
            array = float64_of(weight)()
            rounded = _rounded(array, linear, dtype, self.recipe)
            if self.observe is not None:
                self.observe(linear, array, rounded)
            write(model, names, linear, rounded, dtype, self.recipe)
            self.progress("rounding weights", index + 1, len(self.linears))
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(self.linears))


def _rounded(array: np.ndarray, linear: Linear, dtype: ir.DataType, recipe: Recipe) -> QuantizedWeight:
    try:
        return quantize_weight(array, recipe.group_size, method=recipe.rounding, scale_dtype=dtype.numpy())
    except ValueError as error:
        raise ModelError(
            f"the weight cannot be rounded: {error}", where=linear.name, hint="leave it out with --exclude"
        ) from error


def _write_qdq(
    model: ir.Model, names: Names, linear: Linear, rounded: QuantizedWeight, dtype: ir.DataType, recipe: Recipe
) -> None:
    node, graph = linear.node, model.graph
    weight = node.inputs[1]
    assert weight is not None
    codes = add_constant(graph, names, f"{weight.name}_int4", int4_tensor(rounded.codes))
    scales = rounded.scales.reshape(-1) if recipe.group_size is None else rounded.scales
    scale = add_constant(graph, names, f"{weight.name}_scale", ir.Tensor(scales, dtype=dtype))
    attributes = {"axis": 1} if recipe.group_size is None else {"axis": 0, "block_size": recipe.group_size}
    output = ir.Value(
        name=names.new(f"{weight.name}_dequantized"),
        type=ir.TensorType(dtype),
        shape=ir.Shape((linear.inputs, linear.outputs)),
    )
    dequantize = ir.node(
        "DequantizeLinear",
        [codes, scale],
        attributes=attributes,
        outputs=[output],
        name=names.new(dequantizer(linear.name)),
    )
    graph.insert_before(node, dequantize)
    node.replace_input_with(1, output)


def int4_tensor(codes: np.ndarray) -> ir.TensorProtocol:
    """Pack codes in [-8, 7] two to a byte; anything outside is refused, because packing would wrap it silently."""
    if codes.size and not (int(codes.min()) >= -8 and int(codes.max()) <= 7):
        raise ValueError(f"codes reach from {codes.min()} to {codes.max()}; int4 holds -8 to 7")
    return ir.PackedTensor(_pack(codes.reshape(-1)), ir.DataType.INT4, shape=ir.Shape(codes.shape))


def _pack(codes: np.ndarray) -> np.ndarray:
    """Pack a flat array two to a byte, the first in the low half."""
    nibbles = codes.astype(np.int8).view(np.uint8) & 0xF
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    packed: np.ndarray = nibbles[::2] | (nibbles[1::2] << 4)
    return packed


def _write_nbits(
    model: ir.Model, names: Names, linear: Linear, rounded: QuantizedWeight, dtype: ir.DataType, recipe: Recipe
) -> None:
    node, graph = linear.node, model.graph
    weight = node.inputs[1]
    assert weight is not None
    block = recipe.group_size or _BLOCK_OF_CHANNEL
    codes, scales = nbits_arrays(rounded, block)
    inputs = [
        node.inputs[0],
        add_constant(graph, names, f"{weight.name}_uint4", codes),
        add_constant(graph, names, f"{weight.name}_scale", ir.Tensor(scales, dtype=dtype)),
    ]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    own_bias = constant_shape(bias) == (linear.outputs,)
    if own_bias:
        inputs += [None, None, bias]
    attributes = {
        "K": linear.inputs,
        "N": linear.outputs,
        "bits": 4,
        "block_size": block,
        "accuracy_level": recipe.accuracy_level,
    }
    product = ir.Node(
        "com.microsoft",
        "MatMulNBits",
        inputs,
        ir.convenience.convert_attributes(attributes),
        num_outputs=1,
        name=node.name,
    )
    added = [] if bias is None or own_bias else _added(graph, names, node, product, bias)
    new = [product, *added]
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, new[-1].outputs)
    graph.opset_imports.setdefault("com.microsoft", 1)


def _added(graph: ir.Graph, names: Names, node: ir.Node, product: ir.Node, bias: ir.Value) -> list[ir.Node]:
    """Return what adds to a product a bias that MatMulNBits does not take: an activation, or another shape than [N]."""
    product.outputs[0].name = names.new(f"{node.name}/product_output")
    beta, new = node.attributes.get_float("beta", 1.0), []
    if beta != 1:
        dtype = constant_type(node.inputs[1])
        factor = add_constant(graph, names, f"{node.name}/beta", ir.Tensor(np.array(beta, dtype.numpy()), dtype=dtype))
        scaled = ir.Value(name=names.new(f"{node.name}/bias_output"), type=bias.type, shape=bias.shape)
        new.append(ir.node("Mul", [bias, factor], outputs=[scaled], name=names.new(f"{node.name}/bias")))
        bias = scaled
    return [*new, ir.node("Add", [product.outputs[0], bias], name=names.new(f"{node.name}/add"))]


def nbits_arrays(rounded: QuantizedWeight, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay codes and scales out as MatMulNBits reads them: per output column, blocks of rows, offset by 8.

    Args:
        rounded: Codes [K, N] and scales [groups, N].
        block: Rows per block; one scale per channel is repeated for each.

    Returns:
        uint8 [N, blocks, block / 2] with the lower row in the low half of a byte, and scales [N * blocks].
    """
    rows, columns = rounded.codes.shape
    blocks = -(-rows // block)
    padded = np.zeros((blocks * block, columns), np.int8)
    padded[:rows] = rounded.codes
    shifted = (padded.T + 8).astype(np.uint8).reshape(columns, blocks, block)
    packed = shifted[..., ::2] | (shifted[..., 1::2] << 4)
    scales = np.broadcast_to(rounded.scales, (blocks, columns)).T.reshape(-1)
    return np.ascontiguousarray(packed), np.ascontiguousarray(scales)


_FORMS = {"qdq": _write_qdq, "nbits": _write_nbits}
"""How 4 bits are written: a new form is a function and a line here."""
