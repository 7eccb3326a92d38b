"""Round the activation that selected linears read, and multiply back, in standard operators.

    symmetric      x  ->  Div(s), QuantizeLinear(1), DequantizeLinear(1), Mul(s)       s, o as `ActivationGrid` has them
    asymmetric     x  ->  Sub(o), Div(s), QuantizeLinear(1), DequantizeLinear(1), Mul(s), Add(o)
    groups         Reshape [..., d/g, g] before, and back behind
    float16        Cast to float32 before, and back behind
    static         the same with constants s and o

The scale stands beside the pair, not in it, whether it is computed or constant: ONNX Runtime fuses no weight whose
activation comes straight from a DequantizeLinear, CUDA has no blocked QuantizeLinear of 8 bits, and on the CPU this is
faster too (512 x 1536, int4: 1.5 ms, with a blocked pair 1.9; int8: 0.6 and 1.7). The pair has no zero point, so that
no optimizer takes it for one to remove. Readers of x other than the selected linears keep it. A second run
on a site is refused.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from catonnx.graph.edits import Names
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import Site
from catonnx.math.activations import ActivationGrid
from catonnx.passes._protocol import check_linears, check_new, note
from catonnx.passes._rounding_steps import FLOAT, Constants, Nodes, scale_and_offset, widened

_CODE_TYPES = {
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}
"""By bits and symmetry; QuantizeLinear cuts to their ranges."""


@dataclasses.dataclass(frozen=True)
class QuantizeActivations(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        sites: Sites of the model and the numbers that their activations may take.

    Raises:
        ValueError: when it is called, if the groups of a site do not divide its channels.
    """

    sites: tuple[tuple[Site, ActivationGrid], ...]

    def requires(self, model: ir.Model) -> None:
        """Refuse sites of another model, and such as were rounded."""
        for site, _ in self.sites:
            check_linears(model, site.selected)
            check_new(site.value, "rounded", site.value)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Round the activation of every site that has a selected linear."""
        constants, shapes = Constants(model.graph, Names(model.graph)), Shapes(model.graph)
        wanted = [(site, grid) for site, grid in self.sites if site.selected]
        for site, grid in wanted:
            shape = shapes[site.read]
            rounded = _rounded(constants, site, grid, None if shape is None else len(shape))
            for linear in site.selected:
                linear.node.replace_input_with(0, rounded)
            note(site.value, "rounded", site.value)
        return ir.passes.PassResult(model, bool(wanted))


def _rounded(constants: Constants, site: Site, grid: ActivationGrid, rank: int | None) -> ir.Value:
    nodes = Nodes(constants, site.selected[0].node, f"{site.name}/rounded")
    groups = grid.groups(site.width)
    rows = widened(nodes, site.read, site.dtype)
    if groups > 1:
        rows = nodes("split", "Reshape", rows, _split_shape(constants, rank, groups, site.width))
    scale, offset = scale_and_offset(nodes, rows, grid)
    shifted = rows if offset is None else nodes("shift", "Sub", rows, offset, shape=rows.shape)
    steps = nodes("divide", "Div", shifted, scale, shape=rows.shape)
    # The scale of the pair has as many bits as the numbers that come out.
    one, code = constants(1.0, "one"), _CODE_TYPES[grid.bits, grid.symmetric]
    codes = nodes("quantize", "QuantizeLinear", steps, one, dtype=code, shape=rows.shape, output_dtype=code)
    back = nodes("dequantize", "DequantizeLinear", codes, one, shape=rows.shape)
    back = nodes("multiply", "Mul", back, scale, shape=rows.shape)
    if offset is not None:
        back = nodes("shift_back", "Add", back, offset, shape=rows.shape)
    if groups > 1:
        back = nodes("join", "Reshape", back, _joined_shape(nodes, site, rank), shape=site.read.shape)
    if site.dtype != FLOAT:
        back = nodes("narrow", "Cast", back, dtype=site.dtype, shape=site.read.shape, to=site.dtype)
    return back


def _split_shape(constants: Constants, rank: int | None, groups: int, width: int) -> ir.Value:
    """Return what splits channels into groups; rows are joined if their axes are not known."""
    head = [-1] if rank is None else [0] * (rank - 1)
    return constants(np.array([*head, groups, width // groups]), "split_shape")


def _joined_shape(nodes: Nodes, site: Site, rank: int | None) -> ir.Value:
    if rank is None:
        return nodes("shape", "Shape", site.read, dtype=ir.DataType.INT64)
    return nodes.constants(np.array([*[0] * (rank - 1), site.width]), "joined_shape")
