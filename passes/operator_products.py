"""Multiply codes of activations by codes of weights in operators of our own: 4 bits on disk and in memory.

    once per site    q, s = catonnx.DynamicQuantize(x)                         as a symmetric `ActivationGrid` per token
      if it alone reads a transform: catonnx.SharedTransformQuantize(x, scale, matrix), and the like
    per linear       y = catonnx.QuantizedMatMul(q, s, W_uint4 [N, K / group, group / 2], scale [N * K / group])

Weights may have a scale per group of rows, as `integer_products` cannot; their layout is that of MatMulNBits, which is
what a product becomes where the library of `catonnx.ops` is not registered (with activations as they were rounded, and
no further rounding). A weight with one scale per output channel has it repeated for blocks that tile its rows.

A second run on a site is refused: its linears are gone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import onnx_ir as ir

from catonnx.graph.constants import constant_type
from catonnx.graph.edits import Names
from catonnx.graph.operators import DOMAIN, FUSED, declare
from catonnx.graph.save import Spill, held
from catonnx.graph.sites import Linear, Site
from catonnx.graph.ties import TiedTable
from catonnx.math.activations import ActivationGrid
from catonnx.math.rounding import QuantizedWeight
from catonnx.passes._lookups import look_up_blocks
from catonnx.passes._protocol import check_weights, cleaned
from catonnx.passes._rounding_steps import FLOAT, Constants
from catonnx.passes._stored import Stored, Tensors
from catonnx.passes._weight_codes import nbits_arrays
from catonnx.passes.quantize_weights import Observer, Rounder, added_bias, rounded_weight
from catonnx.progress import Progress, silent

_WIDEST_BLOCK = 256
"""MatMulNBits takes blocks of 16 to this many rows."""


@dataclasses.dataclass(frozen=True)
class OperatorProducts(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        sites: Sites of the model and the numbers that their activations may take: symmetric, one scale per token.
        rounder: Rounds weights to 4 bits.
        observe: Called for each linear with the weight in float64 and what it was rounded to.
        spill: Takes codes out of memory.
        progress: Told after each linear.
        tables: Linears whose weight is the transpose of a table -> who looks up rows of it; they read the codes too.

    Raises:
        ValueError: when it is called, if a grid is not such a one, or a weight has 8 bits.
    """

    sites: tuple[tuple[Site, ActivationGrid], ...]
    rounder: Rounder
    observe: Observer | None = None
    spill: Spill = held
    progress: Progress = silent
    tables: Mapping[Linear, TiedTable] = dataclasses.field(default_factory=dict)

    def requires(self, model: ir.Model) -> None:
        """Refuse linears of another model, and such as were rounded."""
        check_weights(model, (linear for site, _ in self.sites for linear in site.selected))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Round activations and weights of every site that has a selected linear."""
        wanted = [(site, grid) for site, grid in self.sites if site.selected]
        for site, grid in wanted:
            if not grid.symmetric or grid.fixed or grid.group_size is not None:
                raise ValueError(f"DynamicQuantize has one symmetric scale per token, and {site.name} wants {grid}")
        constants = Constants(model.graph, Names(model.graph))
        stored, done, total = Stored(constants, self.spill), 0, sum(len(site.selected) for site, _ in wanted)
        for site, grid in wanted:
            codes = _codes(model, constants, site, grid)
            for linear in site.selected:
                rounded = rounded_weight(linear, self.rounder, constant_type(linear.node.inputs[1]), self.observe)
                _write_product(stored, linear, rounded, codes, self.tables.get(linear))
                done += 1
                self.progress("rounding weights", done, total)
        if wanted:
            declare(model, "QuantizedMatMul")
        return cleaned(model, bool(wanted))


def _codes(model: ir.Model, constants: Constants, site: Site, grid: ActivationGrid) -> tuple[ir.Value, ir.Value]:
    """Write what rounds an activation, in one node with its transform where that has no other reader."""
    name = constants.names.new(f"{site.name}/rounded/quantize")
    values = [
        ir.Value(name=constants.names.new(f"{name}_{what}"), type=ir.TensorType(dtype), shape=shape)
        for what, dtype, shape in (("codes", ir.DataType.INT8, site.read.shape), ("scale", FLOAT, None))
    ]
    attributes = {"bits": grid.bits, "clip": float(grid.clip)}
    transform = _own_transform(site)
    operator = "DynamicQuantize" if transform is None else FUSED[transform.op_type]
    inputs = [site.read] if transform is None else transform.inputs
    node = ir.node(operator, inputs, attributes=attributes, domain=DOMAIN, outputs=values, name=name)
    constants.graph.insert_before(site.selected[0].node, node)
    declare(model, operator)
    return values[0], values[1]


def _own_transform(site: Site) -> ir.Node | None:
    """Return the transform of ours that writes what a site's linears read, if they are to be rounded, all of them."""
    node = site.read.producer()
    if node is None or node.domain != DOMAIN or node.op_type not in FUSED or site.read.is_graph_output():
        return None
    rounded = {linear.node for linear in site.selected}
    return node if all(reader in rounded for reader, _ in site.read.uses()) else None


def _write_product(
    stored: Stored,
    linear: Linear,
    rounded: QuantizedWeight,
    activation: tuple[ir.Value, ir.Value],
    table: TiedTable | None,
) -> None:
    constants, node, weight = stored.constants, linear.node, linear.node.inputs[1]
    assert weight is not None
    if rounded.bits != 4:
        raise ValueError(f"QuantizedMatMul has weights of 4 bits, not {rounded.bits} ({linear.name})")
    dtype, block = constant_type(weight), rounded.group_size or _tiling(linear.inputs)

    def tensors() -> Tensors:
        codes, scales = nbits_arrays(rounded, block)
        return {"uint4": ir.Tensor(codes), "scale": ir.Tensor(scales, dtype=dtype)}

    codes, scale = stored(str(weight.name), rounded, tensors)[0]
    attributes = {"K": linear.inputs, "N": linear.outputs, "block_size": block}
    product = ir.Node(
        DOMAIN,
        "QuantizedMatMul",
        [*activation, codes, scale],
        ir.convenience.convert_attributes(attributes),
        num_outputs=1,
        name=node.name,
    )
    product.outputs[0].type = ir.TensorType(dtype)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    added = [] if bias is None else added_bias(constants.graph, constants.names, node, product, bias)
    new = [product, *added]
    ir.convenience.replace_nodes_and_values(constants.graph, node, [node], new, node.outputs, new[-1].outputs)
    if table is not None:
        look_up_blocks(constants, table, codes, scale, bits=4, block=block, width=linear.inputs)


def _tiling(rows: int) -> int:
    """Return the widest block that tiles the rows of a weight, filled up to a multiple of 16."""
    return math.gcd(-(-rows // 16) * 16, _WIDEST_BLOCK)
