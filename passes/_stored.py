"""Rounded weights in the main graph: those that are the same in every number are stored once.

Products of form nbits and integer read the same codes. ONNX Runtime fuses no DequantizeLinear whose codes or scale have
a second reader, so in form qdq every further one reads a copy that is made when the model is loaded, not in the file:

    DequantizeLinear(Slice(codes [K, N], 0, K + i), Slice(scale, 0, G + i))   int4: Cast to int8 before, back behind

A Slice that ends i rows behind the end takes everything, and being different in i keeps copies from being merged again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from catonnx.graph.edits import add_constant
from catonnx.graph.save import Spill
from catonnx.math.rounding import QuantizedWeight
from catonnx.passes._rounding_steps import Constants, Nodes

Tensors: TypeAlias = Mapping[str, ir.TensorProtocol]
"""What their names end with -> codes and the like."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Puts rounded weights into a model, and knows where they are.

    Attributes:
        constants: Of the model.
        spill: Takes tensors out of memory.
    """

    constants: Constants
    spill: Spill
    _known: dict[tuple[bytes, bool], tuple[tuple[ir.Value, ...], int]] = dataclasses.field(default_factory=dict)

    def __call__(
        self, name: str, rounded: QuantizedWeight, tensors: Callable[[], Tensors], *, turned: bool = False
    ) -> tuple[tuple[ir.Value, ...], int]:
        """Return the constants that hold a weight, and how many readers they had before.

        Args:
            name: Of the weight; begins those of new constants.
            rounded: The weight.
            tensors: Lays it out, where it is not there yet.
            turned: Whether that is transposed: another layout, which is stored by itself.
        """
        key, (graph, names) = (rounded.digest, turned), (self.constants.graph, self.constants.names)
        if key not in self._known:
            laid_out = tensors().items()
            values = (add_constant(graph, names, f"{name}_{what}", self.spill(tensor)) for what, tensor in laid_out)
            self._known[key] = tuple(values), 0
        found, readers = self._known[key]
        self._known[key] = found, readers + 1
        return found, readers


def copied(nodes: Nodes, value: ir.Value, number: int) -> ir.Value:
    """Return the copy of that number of a constant; 0 is the constant itself."""
    if not number:
        return value
    assert value.shape is not None
    assert value.dtype is not None
    constants, shape, dtype = nodes.constants, value.shape, value.dtype
    ends = (constants(np.array([end]), "span") for end in (0, int(shape.numpy()[0]) + number))
    if dtype != ir.DataType.INT4:
        return nodes("copy", "Slice", value, *ends, dtype=dtype, shape=shape)
    wide = nodes("int8", "Cast", value, dtype=ir.DataType.INT8, shape=shape, to=ir.DataType.INT8)
    wide = nodes("copy", "Slice", wide, *ends, dtype=ir.DataType.INT8, shape=shape)
    return nodes("int4", "Cast", wide, dtype=dtype, shape=shape, to=dtype)
