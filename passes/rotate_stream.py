"""Turn the residual stream of a model by one orthogonal matrix Q, so that no channel of it stands out.

    Gather(E) ... + MatMul(W_o) -> x -> RMSNorm(gamma) -> MatMul(W)
    Gather(E Q) ... + MatMul(W_o Q) -> x Q -> RMSNorm(1) -> MatMul(Q^T diag(gamma) W)

    ... -> LayerNormalization(gamma, beta) -> Gemm(W, b)
    ... -> LayerNormalization(1) -> Gemm(Q^T diag(gamma) W, b + beta W)        1 Q = 1

The function of the model does not change, and no node is added but for an Add behind a linear without a bias, where the
norm before it has an offset. The scale of a norm stays as ones, where a scaling of its channels can be taken up again.
An embedding table whose transpose is the output head is stored twice afterwards: the head takes the last norm's scale.

A second run on the same streams is refused: their constants are no longer those that were found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from catonnx.graph.constants import constant_array, constant_type
from catonnx.graph.edits import Names, add_constant, float64_of, set_folded, set_mapped, weighted_sum
from catonnx.graph.residual_parts import Shift, Stream, Turn
from catonnx.math.stream_rotation import StreamRotation
from catonnx.passes._protocol import cleaned
from catonnx.passes.shift_outputs import ShiftOutputs

_PACKED_BIAS = 2
"""The input of ONNX Runtime's Attention that is added to its projections."""


@dataclasses.dataclass(frozen=True)
class RotateStream(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        streams: Streams of the model that can be turned, and how.
    """

    streams: tuple[tuple[Stream, StreamRotation], ...]

    def requires(self, model: ir.Model) -> None:
        """Refuse streams of another model, and streams that were turned or otherwise changed since they were found.

        Raises:
            PreconditionError: naming the node.
        """
        for stream, rotation in self.streams:
            if stream.reason:
                raise ir.passes.PreconditionError(f"the stream at {stream.name} cannot be turned: {stream.reason}")
            if rotation.width != stream.width:
                raise ir.passes.PreconditionError(f"the stream at {stream.name} is {stream.width} wide")
            for turn in stream.turns:
                if turn.node.graph is not model.graph or turn.node.inputs[turn.index] is not turn.constant:
                    raise ir.passes.PreconditionError(f"{turn.node.name} was changed since the stream was found")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Turn every stream."""
        names = Names(model.graph)
        shifts = self._shifts()  # of the weights as they are
        for stream, rotation in self.streams:
            for turn in stream.turns:
                _turn(model.graph, names, turn, rotation)
            for node, index in stream.scales:
                _set_ones(model.graph, names, node, index)
            for node, index in stream.offsets:
                _take_out(node, index)
        _add_shifts(model, names, shifts)
        return cleaned(model, bool(self.streams))

    def _shifts(self) -> dict[ir.Node, np.ndarray]:
        """Return what the offsets of norms become behind each linear that reads them."""
        weights = ((turn, rotation) for stream, rotation in self.streams for turn in stream.turns if turn.index == 1)
        turned = {(turn.node, turn.axis): rotation for turn, rotation in weights}
        shifts = {}
        for stream, _ in self.streams:
            for shift in stream.shifts:
                moved = _moved_offset(shift)
                # The linear may write into a stream at the same time.
                written = turned.get((shift.linear, 1 - shift.axis))
                shifts[shift.linear] = moved if written is None else written.apply(moved)
        return shifts


def _turn(graph: ir.Graph, names: Names, turn: Turn, rotation: StreamRotation) -> None:
    scale = None if turn.scale is None else float64_of(turn.scale)

    def rows(array: np.ndarray) -> np.ndarray:
        return rotation.apply(array if scale is None else array * scale().reshape(-1))

    set_mapped(graph, names, turn.node, turn.index, turn.axis, rows, f"{turn.constant.name}_turned")


def _set_ones(graph: ir.Graph, names: Names, node: ir.Node, index: int) -> None:
    value = node.inputs[index]
    array = constant_array(value)
    assert value is not None
    assert array is not None
    ones = ir.Tensor(np.ones_like(array), dtype=constant_type(value))
    node.replace_input_with(index, add_constant(graph, names, f"{value.name}_ones", ones))


def _take_out(node: ir.Node, index: int) -> None:
    """Take an offset off a norm: an input of its own, or the constant of an Add."""
    if node.op_type == "Add":
        value = node.inputs[1 - index]
        assert value is not None
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
    else:
        node.replace_input_with(index, None)


def _moved_offset(shift: Shift) -> np.ndarray:
    """Return beta W (N,)."""
    node, weight = shift.linear, shift.linear.inputs[1]
    assert weight is not None
    moved = weighted_sum(weight, shift.axis, float64_of(shift.offset)().reshape(-1))
    return moved * node.attributes.get_float("alpha", 1.0)


def _add_shifts(model: ir.Model, names: Names, shifts: Mapping[ir.Node, np.ndarray]) -> None:
    behind = {}
    for node, shift in shifts.items():
        if node.op_type == "Attention":  # its projections are no output
            _add_to_constant(model.graph, names, node, _PACKED_BIAS, shift)
        else:
            behind[str(node.outputs[0].name)] = shift.astype(constant_type(node.inputs[1]).numpy())
    ShiftOutputs(behind)(model)


def _add_to_constant(graph: ir.Graph, names: Names, node: ir.Node, index: int, added: np.ndarray) -> None:
    value = node.inputs[index]
    assert value is not None
    old = float64_of(value)
    set_folded(
        graph, names, node, index, lambda: old() + added, added.shape, constant_type(value), f"{value.name}_shifted"
    )
