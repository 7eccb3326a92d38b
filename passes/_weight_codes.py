"""Codes of rounded weights as tensors: two to a byte in 4 bits, as they are in 8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from catonnx.math.rounding import QuantizedWeight


def codes_tensor(rounded: QuantizedWeight, *, turned: bool = False) -> ir.TensorProtocol:
    """Return codes [K, N], or [N, K] if turned, as INT4 or INT8."""
    codes = np.ascontiguousarray(rounded.codes.T) if turned else rounded.codes
    return int4_tensor(codes) if rounded.bits == 4 else ir.Tensor(codes, dtype=ir.DataType.INT8)


def int4_tensor(codes: np.ndarray) -> ir.TensorProtocol:
    """Pack codes in [-8, 7] two to a byte; anything outside is refused, because packing would wrap it silently."""
    if codes.size and not (int(codes.min()) >= -8 and int(codes.max()) <= 7):
        raise ValueError(f"codes reach from {codes.min()} to {codes.max()}; int4 holds -8 to 7")
    return ir.PackedTensor(_pack(codes.reshape(-1)), ir.DataType.INT4, shape=ir.Shape(codes.shape))


def _pack(codes: np.ndarray) -> np.ndarray:
    """Pack a flat array two to a byte, the first in the low half."""
    nibbles = codes.astype(np.int8).view(np.uint8) & 0xF
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    packed: np.ndarray = nibbles[::2] | (nibbles[1::2] << 4)
    return packed


def nbits_arrays(rounded: QuantizedWeight, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay codes and scales out as MatMulNBits reads them: per output column, blocks of rows, offset by 2^(bits-1).

    Args:
        rounded: Codes [K, N] and scales [groups, N].
        block: Rows per block; one scale per channel is repeated for each.

    Returns:
        uint8 [N, blocks, block * bits / 8], in 4 bits with the lower row in the low half of a byte, and scales
        [N * blocks].
    """
    rows, columns = rounded.codes.shape
    blocks = -(-rows // block)
    padded = np.zeros((blocks * block, columns), np.int16)
    padded[:rows] = rounded.codes
    shifted = (padded.T + (1 << rounded.bits - 1)).astype(np.uint8).reshape(columns, blocks, block)
    stored = shifted[..., ::2] | (shifted[..., 1::2] << 4) if rounded.bits == 4 else shifted
    scales = np.broadcast_to(rounded.scales, (blocks, columns)).T.reshape(-1)
    return np.ascontiguousarray(stored), np.ascontiguousarray(scales)
