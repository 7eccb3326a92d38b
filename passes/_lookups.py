"""Look up rows of a rounded table: what an embedding reads where it shares the codes of the output head.

    qdq, integer    codes [d, V], scale [G, V]    Cast, Transpose, Gather, Cast  times  Transpose, Gather, spread over g
    nbits           codes uint8 [V, G, g bits/8]  com.microsoft.GatherBlockQuantized, Reshape; Slice if G g > d

What stands before the Gather depends on constants alone, and ONNX Runtime computes it when it loads: a copy of int8 in
memory, none in the file. The copies matter besides: it fuses no weight whose codes or scales have a second reader.
Measured, 49152 x 576 in 4 bits, one thread: 3.7 ms a token for lookup and head, a table in float 16.6.

There is no DequantizeLinear in it, because CUDA has none for blocks of 8 bits; and the blocks have an axis of their
own, because GatherBlockQuantized on CUDA takes wrong scales where they do not tile a row (microsoft/onnxruntime#32663).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from catonnx.graph.ties import TiedTable
from catonnx.passes._rounding_steps import Constants, Nodes

_INT8 = ir.DataType.INT8


def look_up_codes(constants: Constants, table: TiedTable, codes: ir.Value, scale: ir.Value, group: int | None) -> None:
    """Let lookups read codes [d, V] of INT4 or INT8, by scales [G, V], or [V] without groups, of the table's type."""
    nodes = _first(constants, table)
    if codes.dtype != _INT8:
        codes = nodes("int8", "Cast", codes, dtype=_INT8, shape=codes.shape, to=_INT8)
    assert codes.shape is not None
    assert scale.dtype is not None
    width, count = codes.shape.numpy()
    dtype = scale.dtype
    rows = nodes("rows", "Transpose", codes, dtype=_INT8, shape=ir.Shape([count, width]), perm=[1, 0])
    last = constants(np.array([-1]), "last_axis")
    if group is None:
        scales = nodes("scales", "Unsqueeze", scale, last, dtype=dtype, shape=ir.Shape([count, 1]))
    else:
        scales = nodes("scales", "Transpose", scale, dtype=dtype, perm=[1, 0])
    for node, rank in zip(table.lookups, table.ranks, strict=True):
        nodes, indices = Nodes(constants, node, f"{node.name}/shared"), node.inputs[1]
        assert indices is not None
        taken = nodes("codes", "Gather", rows, indices, dtype=_INT8)
        numbers = nodes("numbers", "Cast", taken, dtype=dtype, to=dtype)
        spread = nodes("scale", "Gather", scales, indices, dtype=dtype)
        if group is not None:
            spread = nodes("scale_column", "Unsqueeze", spread, last, dtype=dtype)
            spread = nodes("scale_block", "Mul", spread, constants(np.ones(group, dtype.numpy()), "ones"), dtype=dtype)
            spread = _joined(nodes, spread, rank, -(-width // group) * group, width, dtype)
        _replace(constants, node, nodes("embedding", "Mul", numbers, spread, dtype=dtype))


def look_up_blocks(
    constants: Constants, table: TiedTable, codes: ir.Value, scale: ir.Value, *, bits: int, block: int, width: int
) -> None:
    """Let lookups read codes [V, G, block * bits / 8] and scales [V * G] of MatMulNBits."""
    nodes = _first(constants, table)
    assert codes.shape is not None
    assert scale.dtype is not None
    count, groups, _ = codes.shape.numpy()
    dtype, shape = scale.dtype, [count, groups, 1]
    scales = nodes("scales", "Reshape", scale, constants(np.array(shape), "shape"), dtype=dtype, shape=ir.Shape(shape))
    attributes: dict[str, Any] = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 2}
    for node, rank in zip(table.lookups, table.ranks, strict=True):
        nodes, indices = Nodes(constants, node, f"{node.name}/shared"), node.inputs[1]
        assert indices is not None
        inputs = [codes, indices, scales]
        blocks = nodes("blocks", "GatherBlockQuantized", *inputs, dtype=dtype, domain="com.microsoft", **attributes)
        _replace(constants, node, _joined(nodes, blocks, rank, groups * block, width, dtype))
    constants.graph.opset_imports.setdefault("com.microsoft", 1)


def _first(constants: Constants, table: TiedTable) -> Nodes:
    return Nodes(constants, table.lookups[0], f"{table.lookups[0].name}/table")


def _joined(nodes: Nodes, blocks: ir.Value, rank: int, padded: int, width: int, dtype: ir.DataType) -> ir.Value:
    """Return blocks [..., G, g] as rows [..., width], what pads the last one cut off."""
    lengths: Sequence[int] = [*(0,) * rank, padded]
    rows = nodes("join", "Reshape", blocks, nodes.constants(np.array(lengths), "shape"), dtype=dtype)
    if padded == width:
        return rows
    start, end, axis = (nodes.constants(np.array([number]), "span") for number in (0, width, -1))
    return nodes("cut", "Slice", rows, start, end, axis, dtype=dtype)


def _replace(constants: Constants, node: ir.Node, rows: ir.Value) -> None:
    """Put rows in the place of what a lookup gave out."""
    value, producer = node.outputs[0], rows.producer()
    assert producer is not None
    rows.shape = value.shape
    ir.convenience.replace_nodes_and_values(constants.graph, node, [node], [], [value], [rows])
