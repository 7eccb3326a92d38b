"""Bring constants that stand for infinity into float16's range, in a model that is float32 still.

    Where(seen, 0, -3.4e38)          ->  Where(seen, 0, -10000)
    Mul(Sub(1, mask), -3.4e38)       ->  Mul(Sub(1, mask), -10000)
    Mul(Sub(mask, 1), 1e9)           ->  Mul(Sub(mask, 1), 10000)
    Clip(x, -3.4e38, 3.4e38)         ->  Clip(x, -65504, 65504)

What is added to the scores of an attention becomes -10000, not float16's lowest number: a score below zero would take
that to -Inf, and a row in which every position is masked, as padding is, to NaN. Behind Softmax both are zero. Infinity
itself stays, and so does every number that is no bound and no mask: see `graph.precision`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from catonnx.graph.edits import Names, add_constant
from catonnx.graph.element_types import FLOAT
from catonnx.graph.precision import BOUNDS, LARGEST, Precision, small_constant
from catonnx.passes._protocol import cleaned

MASKED = -1e4
"""What a masked score becomes, in ONNX Runtime's own conversion to float16, too."""


@dataclasses.dataclass(frozen=True)
class BoundMasks(ir.passes.InPlacePass):
    """See the module's text; constants in nodes become initializers on the way."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every such constant for the nodes that use it so."""
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        graph = model.graph
        precision, names = Precision(graph), Names(graph)
        modified = False
        for node in ir.traversal.RecursiveGraphIterator(graph):
            lowest = -LARGEST if node.op_type in BOUNDS else MASKED
            for index, array in _beyond(node, precision):
                value = node.inputs[index]
                new = add_constant(graph, names, f"{value.name}_bounded", _bounded(array, lowest))  # type: ignore[union-attr]
                node.replace_input_with(index, new)
                modified = True
            modified |= _bound_attribute(node, precision)
        return cleaned(model, modified)


def _beyond(node: ir.Node, precision: Precision) -> Iterator[tuple[int, np.ndarray]]:
    for index, value in enumerate(node.inputs):
        if value is None or precision.types.get(value) != FLOAT or not precision.is_constant(value):
            continue
        array = small_constant(value)
        if (np.abs(array[np.isfinite(array)]) > LARGEST).any() and precision.may_bound(node, array):
            yield index, array


def _bound_attribute(node: ir.Node, precision: Precision) -> bool:
    attribute = node.attributes.get("value") if node.op_type == "ConstantOfShape" else None
    if attribute is None or attribute.as_tensor().dtype != FLOAT:
        return False
    array = attribute.as_tensor().numpy()
    if not precision.may_bound(node, array):
        return False
    bounded = _bounded(array, MASKED)
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(bounded))
    return not np.array_equal(array, bounded)


def _bounded(array: np.ndarray, lowest: float) -> np.ndarray:
    low, high = np.isfinite(array) & (array < -LARGEST), np.isfinite(array) & (array > LARGEST)
    return np.where(low, np.float32(lowest), np.where(high, np.float32(-lowest), array)).astype(np.float32)
