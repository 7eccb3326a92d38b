"""Multiply codes of activations by codes of weights in integers: real 4-bit and 8-bit products, 4 bits on disk.

    once per site    s (and o) of each token as `ActivationGrid` has them, codes q = QuantizeLinear(x - o, s)
    per linear       y = Mul(Cast(MatMulInteger(q, Cast(W_int4 [K, N], int8))), weight scale [N]), Mul(s)
    asymmetric       + o * (sum of the dequantized weight over K) [N]
    static           s is multiplied into the weight scale, and o into the sum

ONNX Runtime casts the weight when it loads, so it is int8 in memory; float16 activations are cast to float32 before and
back behind. A linear's scales must be one per output channel and an activation's one per token: others do not factor
out of a sum over K.

On the CPU codes are uint8 with the zero point 2^(b-1): int8 was 12 times slower. On CUDA they are int8: the kernel for
uint8 is missing there, and so is that for blocked QuantizeLinear, hence Div. Chosen by measurement, one AVX512-VNNI
core, 512 tokens: scale and codes of 576 / 1536 channels 0.10 / 0.23 ms with a blocked QuantizeLinear, 0.18 / 0.40 with
Div, 0.24 / 0.63 in plain operators. 576 x 3072: MatMulInteger 4.55 ms, with Cast, Mul, Mul 5.14, and 4.82 where ONNX
Runtime fuses the first two (see `_live_one`); fp32 16.5. The products of one site in one MatMulInteger and a Split
behind it were slower by a tenth. With both weights and activations in 8 bits, processors without VNNI may saturate.

A second run on a site is refused: its linears are gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from catonnx.graph.edits import Names, add_constant
from catonnx.graph.save import Spill, held
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import Linear, Site
from catonnx.graph.ties import TiedTable
from catonnx.math.activations import ActivationGrid
from catonnx.math.rounding import QuantizedWeight
from catonnx.passes._lookups import look_up_codes
from catonnx.passes._protocol import check_weights, cleaned
from catonnx.passes._rounding_steps import FLOAT, Constants, Nodes, scale_and_offset, widened
from catonnx.passes._stored import Stored, Tensors
from catonnx.passes._weight_codes import codes_tensor
from catonnx.passes.quantize_weights import Observer, Rounder, added_bias, rounded_weight
from catonnx.progress import Progress, silent

Provider: TypeAlias = Literal["cpu", "cuda"]


@dataclasses.dataclass(frozen=True)
class IntegerProducts(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        sites: Sites of the model and the numbers that their activations may take, one scale per token or fixed.
        rounder: Rounds weights, with one scale per output channel.
        provider: Where the model is meant to run.
        observe: Called for each linear with the weight in float64 and what it was rounded to.
        spill: Takes codes out of memory.
        progress: Told after each linear.
        tables: Linears whose weight is the transpose of a table -> who looks up rows of it; they read the codes too.

    Raises:
        ValueError: when it is called, if scales of a weight or an activation are per group.
    """

    sites: tuple[tuple[Site, ActivationGrid], ...]
    rounder: Rounder
    provider: Provider = "cpu"
    observe: Observer | None = None
    spill: Spill = held
    progress: Progress = silent
    tables: Mapping[Linear, TiedTable] = dataclasses.field(default_factory=dict)

    def requires(self, model: ir.Model) -> None:
        """Refuse linears of another model, and such as were rounded."""
        check_weights(model, (linear for site, _ in self.sites for linear in site.selected))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Round activations and weights of every site that has a selected linear."""
        graph, done = model.graph, 0
        constants, shapes = Constants(graph, Names(graph)), Shapes(graph)
        wanted = [(site, grid) for site, grid in self.sites if site.selected]
        total = sum(len(site.selected) for site, _ in wanted)
        for site, grid in wanted:
            _refuse_groups("activations", grid.group_size, "per token", site.name)
        stored = Stored(constants, self.spill)
        one = _live_one(constants) if self.provider == "cpu" and wanted else None
        for site, grid in wanted:
            shape = shapes[site.read]
            nodes = Nodes(constants, site.selected[0].node, f"{site.name}/rounded")
            codes = _codes(nodes, site, grid, self.provider, None if shape is None else len(shape))
            for linear in site.selected:
                rounded = rounded_weight(linear, self.rounder, FLOAT, self.observe)
                _refuse_groups("weights", rounded.group_size, "per output channel", linear.name)
                _write_product(stored, linear, rounded, codes, one, self.tables.get(linear))
                done += 1
                self.progress("rounding weights", done, total)
        return cleaned(model, bool(wanted))


def _refuse_groups(what: str, group_size: int | None, instead: str, name: str) -> None:
    if group_size is not None:
        raise ValueError(
            f"an integer product cannot take {what} with a scale per group of {group_size}: it does not factor out of "
            f"the sum over channels; use one scale {instead}, or form qdq ({name})"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Codes:
    """A rounded activation: scale * (codes - zero_point) + offset.

    Attributes:
        values: uint8 or int8, of the activation's shape.
        zero_point: One number of their type; None for zero.
        scale: [..., 1], or [] if fixed.
        offset: Likewise; None for zero.
        fixed: Scale and offset as numbers, if they are fixed.
    """

    values: ir.Value
    zero_point: ir.Value | None
    scale: ir.Value
    offset: ir.Value | None
    fixed: tuple[float, float] | None


def _codes(nodes: Nodes, site: Site, grid: ActivationGrid, provider: Provider, rank: int | None) -> _Codes:
    rows, half = widened(nodes, site.read, site.dtype), 1 << grid.bits - 1
    # One scale per token inside of QuantizeLinear: not on CUDA, and not for a single vector.
    blocked = provider == "cpu" and grid.fixed is None and rank is not None and rank > 1
    scale, offset = scale_and_offset(nodes, rows, grid, axis=rank - 1 if blocked and rank else -1)
    fixed, zero = grid.fixed, None
    if provider == "cpu":
        kind, ends = ir.DataType.UINT8, np.array([0, 2 * half - 1], np.uint8)
        zero = nodes.constants(np.uint8(half), "zero_point") if grid.symmetric else None
    else:
        kind, ends = ir.DataType.INT8, np.array([-half, half - 1], np.int8)
        if not grid.symmetric:
            offset, fixed = _middle(nodes, scale, offset, half, fixed)
    shifted = rows if offset is None else nodes("shift", "Sub", rows, offset, shape=rows.shape)
    codes = _quantized(nodes, shifted, scale, zero, kind, blocked=site.width if blocked else 0)
    if grid.bits == 4 and (grid.clip < 1 or fixed):  # else no number is larger than the range
        low, high = (nodes.constants(end, "code_range") for end in ends)
        codes = nodes("clip", "Clip", codes, low, high, dtype=kind, shape=rows.shape)
    return _Codes(codes, zero, scale, offset, fixed)


def _middle(
    nodes: Nodes, scale: ir.Value, offset: ir.Value | None, half: int, fixed: tuple[float, float] | None
) -> tuple[ir.Value, tuple[float, float] | None]:
    """Return the offset for codes that are lower by half their number."""
    if fixed:
        return nodes.constants(fixed[1] + fixed[0] * half, "offset"), (fixed[0], fixed[1] + fixed[0] * half)
    assert offset is not None
    to_middle = nodes("half_range", "Mul", scale, nodes.constants(float(half), "half"), shape=scale.shape)
    return nodes("middle", "Add", offset, to_middle, shape=scale.shape), None


def _quantized(
    nodes: Nodes, rows: ir.Value, scale: ir.Value, zero: ir.Value | None, kind: ir.DataType, *, blocked: int
) -> ir.Value:
    """Return codes of rows; `blocked` is the number of channels if QuantizeLinear takes the scale of each token."""
    attributes: dict[str, Any] = {"output_dtype": kind}
    if blocked:
        attributes |= {"axis": -1, "block_size": blocked}
        if zero is not None:
            shape = nodes("scale_shape", "Shape", scale, dtype=ir.DataType.INT64)
            zero = nodes("zero_points", "Expand", zero, shape, dtype=kind, shape=scale.shape)
    elif not scale.is_initializer():
        rows, scale = nodes("divide", "Div", rows, scale, shape=rows.shape), nodes.constants(1.0, "one")
    inputs = [rows, scale] if zero is None else [rows, scale, zero]
    return nodes("quantize", "QuantizeLinear", *inputs, dtype=kind, shape=rows.shape, **attributes)


def _live_one(constants: Constants) -> ir.Value | None:
    """Return a 1 that ONNX Runtime does not know before it runs, None if there is no input to take it from.

    It fuses Mul(Cast(MatMulInteger), Mul(a, b)) to MatMulIntegerToFloat where a is one number, meant for activations
    with one scale for all tokens. Were the 1 a constant, 1 * weight scale would be folded before that.
    """
    graph = constants.graph
    if not graph.inputs or not len(graph):
        return None
    nodes = Nodes(constants, graph[0], "catonnx/one")
    size = nodes("size", "Size", graph.inputs[0], dtype=ir.DataType.INT64, shape=ir.Shape([]))
    number = nodes("cast", "Cast", size, shape=ir.Shape([]), to=FLOAT)
    return nodes("power", "Pow", number, constants(0.0, "zero"), shape=ir.Shape([]))


def _write_product(
    stored: Stored,
    linear: Linear,
    rounded: QuantizedWeight,
    codes: _Codes,
    one: ir.Value | None,
    table: TiedTable | None,
) -> None:
    constants, node = stored.constants, linear.node
    graph, names = constants.graph, constants.names
    nodes, weight = Nodes(constants, node, linear.name), node.inputs[1]
    assert weight is not None

    def tensors() -> Tensors:
        return {f"int{rounded.bits}": codes_tensor(rounded)}

    ((numbers,), _) = stored(str(weight.name), rounded, tensors)
    if table is not None:
        scales = ir.Tensor(rounded.scales[0].astype(linear.dtype.numpy()), dtype=linear.dtype)
        row_scale = add_constant(graph, names, f"{weight.name}_row_scale", stored.spill(scales))
        look_up_codes(constants, table, numbers, row_scale, None)
    if rounded.bits == 4:
        numbers = nodes("weight", "Cast", numbers, dtype=ir.DataType.INT8, shape=numbers.shape, to=ir.DataType.INT8)
    inputs = [codes.values, numbers] if codes.zero_point is None else [codes.values, numbers, codes.zero_point]
    product = nodes("product", "MatMulInteger", *inputs, dtype=ir.DataType.INT32)
    result = nodes("cast", "Cast", product, to=FLOAT)

    weight_scale = rounded.scales[0].astype(np.float64) * (codes.fixed[0] if codes.fixed else 1)
    scale = add_constant(graph, names, f"{weight.name}_scale", weight_scale.astype(np.float32))
    if one is not None:
        scale = nodes("weight_scale", "Mul", one, scale, shape=scale.shape)
    result = nodes("scale_columns", "Mul", result, scale)
    if codes.fixed is None:
        result = nodes("scale_tokens", "Mul", result, codes.scale)
    if codes.offset is not None:
        sums = rounded.dequantize().sum(axis=0) * (codes.fixed[1] if codes.fixed else 1)
        shift = add_constant(graph, names, f"{weight.name}_sums", sums.astype(np.float32))
        if codes.fixed is None:
            shift = nodes("shift", "Mul", codes.offset, shift)
        result = nodes("shifted", "Add", result, shift)
    if linear.dtype != FLOAT:
        result = nodes("narrow", "Cast", result, dtype=linear.dtype, to=linear.dtype)

    last = result.producer()
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert last is not None
    added = [] if bias is None else added_bias(graph, names, node, last, bias)
    outputs = added[-1].outputs if added else last.outputs
    ir.convenience.replace_nodes_and_values(graph, node, [node], added, node.outputs, outputs)
