"""Round the weights of selected linears to 4 or 8 bits and write them in the form that ONNX Runtime fuses.

    qdq      MatMul(x, W)  ->  MatMul(x, DequantizeLinear(W_int4 [K, N], scale [K / group, N], axis=0, block_size))
    nbits    MatMul(x, W)  ->  com.microsoft.MatMulNBits(x, W_uint4 [N, K / group, group / 2], scale [N * K / group])
    bodies   qdq with DequantizeLinear(Transpose(W_int4 [N, K]), Transpose(scale), ...)

Weights of 8 bits are int8 [K, N], or uint8 [N, K / group, group]; ONNX Runtime fuses the former to MatMulNBits as well.
The zero point is left out: the scale carries the sign, so -8 to 7 is used whole. Each MatMul has a DequantizeLinear of
its own, because ONNX Runtime does not fuse a shared one.

Codes and scales lie in the main graph, once for all linears in bodies of If, Loop and Scan whose rounded weight is the
same. ONNX Runtime 1.31 refuses to load a DequantizeLinear in a body that reads them from there and feeds a MatMul; it
folds the Transpose between them, so that they lie in the body before it looks, and fuses the two as anywhere else.

A second run on a linear is refused: its weight is no constant, or it is gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from catonnx.errors import ModelError
from catonnx.graph.constants import constant_shape, constant_type
from catonnx.graph.edits import Names, add_constant, dequantizer, float64_of
from catonnx.graph.save import Spill, held
from catonnx.graph.sites import Linear
from catonnx.math.rounding import QuantizedWeight
from catonnx.passes._protocol import check_weights, cleaned
from catonnx.passes._weight_codes import codes_tensor, nbits_arrays
from catonnx.progress import Progress, silent

Rounder: TypeAlias = Callable[[Linear, np.ndarray, ir.DataType], QuantizedWeight]
"""Rounds the weight [K, N] (float64) of a linear; the type is the one that its scales will be stored in."""

Observer: TypeAlias = Callable[[Linear, np.ndarray, QuantizedWeight], None]
"""Is told the weight [K, N] (float64) of a linear and what it was rounded to."""

_BLOCK_OF_CHANNEL = 128
"""MatMulNBits has no scale per output channel: it is repeated for blocks of this many rows."""


@dataclasses.dataclass(frozen=True)
class QuantizeWeights(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        linears: Linears of the model with an initializer [K, N] of their own.
        rounder: Chooses bits, groups, scales and codes.
        form: `qdq` or `nbits`.
        accuracy_level: Written into MatMulNBits (form nbits).
        observe: Called for each linear with the weight in float64 and what it was rounded to.
        spill: Takes codes and scales out of memory.
        progress: Told after each linear.
    """

    linears: tuple[Linear, ...]
    rounder: Rounder
    form: Literal["qdq", "nbits"] = "qdq"
    accuracy_level: int = 0
    observe: Observer | None = None
    spill: Spill = held
    progress: Progress = silent

    def requires(self, model: ir.Model) -> None:
        """Refuse linears of another model, and such as were rounded."""
        check_weights(model, self.linears)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Round and rewrite every linear."""
        names = Names(model.graph)
        kept: dict[ir.Value, _Stored] = {}
        for index, linear in enumerate(self.linears):
            weight = linear.node.inputs[1]
            assert weight is not None
            rounded = rounded_weight(linear, self.rounder, constant_type(weight), self.observe)
            stored = kept.pop(weight, None)
            if stored is None or not _alike(stored.rounded, rounded):
                write = _stored_qdq if self.form == "qdq" else _stored_nbits
                stored = write(model.graph, names, linear, rounded, self.spill)
            if self.form == "qdq":
                _write_qdq(names, linear, stored)
            else:
                _write_nbits(model.graph, names, linear, stored, self.accuracy_level)
            if weight.uses():
                kept[weight] = stored
            self.progress("rounding weights", index + 1, len(self.linears))
        return cleaned(model, bool(self.linears))


@dataclasses.dataclass(frozen=True, eq=False)
class _Stored:
    """A rounded weight as it lies in the main graph.

    Attributes:
        rounded: The numbers.
        codes: As the form wants them; [N, K] in form qdq if the linear stands in a body.
        scale: Likewise.
        turned: Whether they are transposed.
    """

    rounded: QuantizedWeight
    codes: ir.Value
    scale: ir.Value
    turned: bool = False


def rounded_weight(linear: Linear, rounder: Rounder, dtype: ir.DataType, observe: Observer | None) -> QuantizedWeight:
    """Round the weight of a linear, with scales of a type, and tell the observer.

    Raises:
        ModelError: if it cannot be rounded.
    """
    weight = linear.node.inputs[1]
    assert weight is not None
    array = float64_of(weight)()
    try:
        rounded = rounder(linear, array, dtype)
    except ValueError as error:
        raise ModelError(
            f"the weight cannot be rounded: {error}", where=linear.name, hint="leave it out with --exclude"
        ) from error
    if observe is not None:
        observe(linear, array, rounded)
    return rounded


def _alike(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    return one.bits == other.bits and all(
        np.array_equal(a, b) for a, b in ((one.codes, other.codes), (one.scales, other.scales))
    )


def _stored_qdq(graph: ir.Graph, names: Names, linear: Linear, rounded: QuantizedWeight, spill: Spill) -> _Stored:
    weight = linear.node.inputs[1]
    assert weight is not None
    dtype, turned = constant_type(weight), linear.node.graph is not graph
    scales = rounded.scales.reshape(-1) if rounded.group_size is None else rounded.scales
    if turned:
        scales = np.ascontiguousarray(scales.T)
    tensors = spill(codes_tensor(rounded, turned=turned)), spill(ir.Tensor(scales, dtype=dtype))
    codes = add_constant(graph, names, f"{weight.name}_int{rounded.bits}", tensors[0])
    scale = add_constant(graph, names, f"{weight.name}_scale", tensors[1])
    return _Stored(rounded, codes, scale, turned)


def _write_qdq(names: Names, linear: Linear, stored: _Stored) -> None:
    node, group = linear.node, stored.rounded.group_size
    weight, home = node.inputs[1], node.graph
    assert weight is not None
    assert home is not None
    inputs = [stored.codes, stored.scale]
    if stored.turned:
        for index, value in enumerate(inputs):
            name = names.new(f"{value.name}_kn")
            shape = None if value.shape is None else ir.Shape(reversed(list(value.shape)))
            inputs[index] = ir.Value(name=name, type=value.type, shape=shape)
            home.insert_before(node, ir.node("Transpose", [value], outputs=[inputs[index]], name=names.new(name)))
    attributes = {"axis": 1} if group is None else {"axis": 0, "block_size": group}
    output = ir.Value(
        name=names.new(f"{weight.name}_dequantized"),
        type=ir.TensorType(constant_type(weight)),
        shape=ir.Shape((linear.inputs, linear.outputs)),
    )
    dequantize = ir.node(
        "DequantizeLinear",
        inputs,
        attributes=attributes,
        outputs=[output],
        name=names.new(dequantizer(linear.name)),
    )
    home.insert_before(node, dequantize)
    node.replace_input_with(1, output)


def _stored_nbits(graph: ir.Graph, names: Names, linear: Linear, rounded: QuantizedWeight, spill: Spill) -> _Stored:
    weight = linear.node.inputs[1]
    assert weight is not None
    arrays = nbits_arrays(rounded, rounded.group_size or _BLOCK_OF_CHANNEL)
    tensors = spill(ir.Tensor(arrays[0])), spill(ir.Tensor(arrays[1], dtype=constant_type(weight)))
    codes = add_constant(graph, names, f"{weight.name}_uint{rounded.bits}", tensors[0])
    scale = add_constant(graph, names, f"{weight.name}_scale", tensors[1])
    return _Stored(rounded, codes, scale)


def _write_nbits(graph: ir.Graph, names: Names, linear: Linear, stored: _Stored, accuracy_level: int) -> None:
    node = linear.node
    inputs = [node.inputs[0], stored.codes, stored.scale]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    own_bias = constant_shape(bias) == (linear.outputs,)
    if own_bias:
        inputs += [None, None, bias]
    attributes = {
        "K": linear.inputs,
        "N": linear.outputs,
        "bits": stored.rounded.bits,
        "block_size": stored.rounded.group_size or _BLOCK_OF_CHANNEL,
        "accuracy_level": accuracy_level,
    }
    product = ir.Node(
        "com.microsoft",
        "MatMulNBits",
        inputs,
        ir.convenience.convert_attributes(attributes),
        num_outputs=1,
        name=node.name,
    )
    added = [] if bias is None or own_bias else added_bias(graph, names, node, product, bias)
    new = [product, *added]
    assert node.graph is not None
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], new, node.outputs, new[-1].outputs)
    graph.opset_imports.setdefault("com.microsoft", 1)


def added_bias(graph: ir.Graph, names: Names, node: ir.Node, product: ir.Node, bias: ir.Value) -> list[ir.Node]:
    """Return what adds the bias of a Gemm to the product that replaces it: an activation, or whatever shape it has."""
    product.outputs[0].name = names.new(f"{node.name}/product_output")
    beta, new = node.attributes.get_float("beta", 1.0), []
    if beta != 1:
        dtype = constant_type(node.inputs[1])
        factor = add_constant(graph, names, f"{node.name}/beta", ir.Tensor(np.array(beta, dtype.numpy()), dtype=dtype))
        scaled = ir.Value(name=names.new(f"{node.name}/bias_output"), type=bias.type, shape=bias.shape)
        new.append(ir.node("Mul", [bias, factor], outputs=[scaled], name=names.new(f"{node.name}/bias")))
        bias = scaled
    return [*new, ir.node("Add", [product.outputs[0], bias], name=names.new(f"{node.name}/add"))]
