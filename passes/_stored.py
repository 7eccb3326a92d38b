"""Rounded weights that several linears have: stored once.

Products of form nbits and integer read the same codes. ONNX Runtime fuses no DequantizeLinear whose codes or scale have
a second reader, so in form qdq every further one reads a copy that is made when the model is loaded, not in the file:

    DequantizeLinear(Slice(codes [K, N], 0, K + i), Slice(scale, 0, G + i))   int4: Cast to int8 before, back behind

A Slice that ends i rows behind the end takes everything, and being different in i keeps copies from being merged again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from catonnx.math.rounding import QuantizedWeight
from catonnx.passes._rounding_steps import Nodes

Values: TypeAlias = tuple[ir.Value, ...]


class Stored:
    """Knows where rounded weights of a model are; those that nobody else holds any more are forgotten."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[QuantizedWeight, tuple[Values, int]] = WeakKeyDictionary()

    def __call__(self, rounded: QuantizedWeight, store: Callable[[], Values]) -> tuple[Values, int]:
        """Return the constants that hold a weight, and how many readers they had before; `store` makes them once."""
        values, readers = self._known[rounded] if rounded in self._known else (store(), 0)
        self._known[rounded] = values, readers + 1
        return values, readers


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
