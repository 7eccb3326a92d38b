"""Add a constant to what linears give out: what makes up for the mean of the error that rounding brings.

It is added to the bias where there is one, of a Gemm, of MatMulNBits, or a constant that an Add behind adds. Where
there is none an Add is inserted, which ONNX Runtime takes into MatMulNBits when it fuses the weight. A second run with
the same shifts is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from catonnx.graph.constants import constant_shape, constant_type
from catonnx.graph.edits import Names, add_constant, float64_of, set_folded
from catonnx.passes._protocol import check_new, note

_BIAS = {("", "Gemm"): 2, ("com.microsoft", "MatMulNBits"): 5}
"""Operator -> which of its inputs is a bias."""


@dataclasses.dataclass(frozen=True)
class ShiftOutputs(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        shifts: Name of a value [..., N] -> what is added to it, shape (N,), of its type.

    Raises:
        ValueError: when it is called, if no node gives out a value of that name.
    """

    shifts: Mapping[str, np.ndarray]

    def requires(self, model: ir.Model) -> None:
        """Refuse shifts that were added before: these very arrays."""
        for value, shift in self._shifted(model):
            check_new(value, "shifted", shift)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add every shift."""
        graph = model.graph
        names = Names(graph)
        producers = {value.name: node for node in graph for value in node.outputs}
        for name, shift in self.shifts.items():
            if name not in producers:
                raise ValueError(f"no node gives out a value {name}")
            if not _added_to_bias(graph, names, producers[name], shift):
                _added_behind(graph, names, producers[name], shift)
        for value, shift in self._shifted(model):
            note(value, "shifted", shift)
        return ir.passes.PassResult(model, bool(self.shifts))

    def _shifted(self, model: ir.Model) -> list[tuple[ir.Value, np.ndarray]]:
        """Return the values that are shifted, by the names they have now, and what is added."""
        values = (value for node in model.graph for value in node.outputs)
        return [(value, self.shifts[value.name]) for value in values if value.name and value.name in self.shifts]


def _added_to_bias(graph: ir.Graph, names: Names, node: ir.Node, shift: np.ndarray) -> bool:
    """Add to a bias that is there; say whether there is one."""
    value, slot = node.outputs[0], _BIAS.get((node.domain, node.op_type))
    if slot is not None and len(node.inputs) > slot and node.attributes.get_float("beta", 1.0) == 1:
        return _added(graph, names, node, slot, shift)
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return False
    reader, place = next(iter(uses))
    return reader.op_type == "Add" and not reader.domain and _added(graph, names, reader, 1 - place, shift)


def _added(graph: ir.Graph, names: Names, node: ir.Node, index: int, shift: np.ndarray) -> bool:
    """Add to one input of a node if it is a constant of the shift's shape; say whether it is."""
    bias = node.inputs[index]
    if bias is None or constant_shape(bias) != shift.shape:
        return False
    old = float64_of(bias)
    wanted = f"{bias.name}_shifted"
    set_folded(graph, names, node, index, lambda: old() + shift, shift.shape, constant_type(bias), wanted)
    return True


def _added_behind(graph: ir.Graph, names: Names, node: ir.Node, shift: np.ndarray) -> None:
    value = node.outputs[0]
    constant = add_constant(graph, names, f"{value.name}_shift", shift)
    name, value.name = value.name, names.new(f"{value.name}_unshifted")
    shifted = ir.Value(name=name, type=value.type, shape=value.shape)
    ir.convenience.replace_all_uses_with(value, shifted, replace_graph_outputs=True)
    graph.insert_after(
        node, ir.node("Add", [value, constant], outputs=[shifted], name=names.new(f"{node.name}/corrected"))
    )
