"""Round the weights of selected linears to 4 or 8 bits and write them in the form that ONNX Runtime fuses.

    qdq      MatMul(x, W)  ->  MatMul(x, DequantizeLinear(W_int4 [K, N], scale [K / group, N], axis=0, block_size))
    nbits    MatMul(x, W)  ->  com.microsoft.MatMulNBits(x, W_uint4 [N, K / group, group / 2], scale [N * K / group])
    bodies   qdq with DequantizeLinear(Transpose(W_int4 [N, K]), Transpose(scale), ...)

Weights of 8 bits are int8 [K, N], or uint8 [N, K / group, group]; ONNX Runtime fuses the former to MatMulNBits as well.
The zero point is left out: the scale carries the sign, so -8 to 7 is used whole. Each MatMul has a DequantizeLinear of
its own, because ONNX Runtime does not fuse a shared one; a weight that several have is stored once all the same.

Codes and scales lie in the main graph, those for bodies of If, Loop and Scan too. ONNX Runtime 1.31 refuses to load a
DequantizeLinear in a body that reads them from there and feeds a MatMul; it folds the Transpose between them, so that
they lie in the body before it looks, and fuses the two as anywhere else.

A second run on a linear is refused: its weight is no constant, or it is gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from catonnx.errors import ModelError
from catonnx.graph.constants import constant_shape, constant_type
from catonnx.graph.edits import Names, add_constant, dequantizer, float64_of
from catonnx.graph.save import Spill, held
from catonnx.graph.sites import Linear
from catonnx.graph.ties import TiedTable
from catonnx.math.rounding import QuantizedWeight
from catonnx.passes._lookups import look_up_blocks, look_up_codes
from catonnx.passes._protocol import check_weights, cleaned
from catonnx.passes._rounding_steps import Constants, Nodes
from catonnx.passes._stored import Stored, Tensors, copied
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
        tables: Linears whose weight is the transpose of a table -> who looks up rows of it; they read the codes too.
    """

    linears: tuple[Linear, ...]
    rounder: Rounder
    form: Literal["qdq", "nbits"] = "qdq"
    accuracy_level: int = 0
    observe: Observer | None = None
    spill: Spill = held
    progress: Progress = silent
    tables: Mapping[Linear, TiedTable] = dataclasses.field(default_factory=dict)

    def requires(self, model: ir.Model) -> None:
        """Refuse linears of another model, and such as were rounded."""
        check_weights(model, self.linears)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Round and rewrite every linear."""
        constants = Constants(model.graph, Names(model.graph))
        stored = Stored(constants, self.spill)
        for index, linear in enumerate(self.linears):
            rounded = rounded_weight(linear, self.rounder, constant_type(linear.node.inputs[1]), self.observe)
            table = self.tables.get(linear)
            if self.form == "qdq":
                _write_qdq(stored, linear, rounded, table)
            else:
                _write_nbits(stored, linear, rounded, self.accuracy_level, table)
            self.progress("rounding weights", index + 1, len(self.linears))
        return cleaned(model, bool(self.linears))


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


def _write_qdq(stored: Stored, linear: Linear, rounded: QuantizedWeight, table: TiedTable | None) -> None:
    constants, node, group = stored.constants, linear.node, rounded.group_size
    names, weight, home = constants.names, node.inputs[1], node.graph
    assert weight is not None
    assert home is not None
    dtype, turned = constant_type(weight), home is not constants.graph

    def tensors() -> Tensors:
        scales = rounded.scales.reshape(-1) if group is None else rounded.scales
        scales = np.ascontiguousarray(scales.T) if turned else scales
        return {
            f"int{rounded.bits}": codes_tensor(rounded, turned=turned),
            "scale": ir.Tensor(scales, dtype=dtype),
        }

    values, number = stored(str(weight.name), rounded, tensors, turned=turned)
    if turned:
        codes, scale = (_turned_back(names, node, value) for value in values)
    else:
        codes, scale = (copied(Nodes(constants, node, linear.name), value, number) for value in values)
    attributes = {"axis": 1} if group is None else {"axis": 0, "block_size": group}
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
    home.insert_before(node, dequantize)
    node.replace_input_with(1, output)
    if table is not None:
        look_up_codes(constants, table, codes, scale, group)


def _turned_back(names: Names, node: ir.Node, value: ir.Value) -> ir.Value:
    """Return the transpose of a value of the main graph, computed before a node in a body."""
    assert node.graph is not None
    name = names.new(f"{value.name}_kn")
    shape = None if value.shape is None else ir.Shape(reversed(list(value.shape)))
    result = ir.Value(name=name, type=value.type, shape=shape)
    node.graph.insert_before(node, ir.node("Transpose", [value], outputs=[result], name=names.new(name)))
    return result


def _write_nbits(
    stored: Stored, linear: Linear, rounded: QuantizedWeight, accuracy_level: int, table: TiedTable | None
) -> None:
    constants, node, weight = stored.constants, linear.node, linear.node.inputs[1]
    graph, names = constants.graph, constants.names
    assert weight is not None
    dtype = constant_type(weight)
    block = rounded.group_size or _BLOCK_OF_CHANNEL

    def tensors() -> Tensors:
        codes, scales = nbits_arrays(rounded, block)
        return {f"uint{rounded.bits}": ir.Tensor(codes), "scale": ir.Tensor(scales, dtype=dtype)}

    codes, scale = stored(str(weight.name), rounded, tensors)[0]
    inputs = [node.inputs[0], codes, scale]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    own_bias = constant_shape(bias) == (linear.outputs,)
    if own_bias:
        inputs += [None, None, bias]
    attributes = {
        "K": linear.inputs,
        "N": linear.outputs,
        "bits": rounded.bits,
        "block_size": block,
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
    if table is not None:
        look_up_blocks(constants, table, codes, scale, bits=rounded.bits, block=block, width=linear.inputs)


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
