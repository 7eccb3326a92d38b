"""A learned rotation of one site, in the manner of SpinQuant.

    minimize over orthogonal R:  |Q(x R) Q(R^T W) - x W|^2

Source: Liu et al., "SpinQuant: LLM quantization with learned rotations", arXiv 2405.16406, from the paper's text alone.
What differs from the paper: it learns one rotation for the whole residual stream and one per layer's value heads, all
together, from the loss of the network; here every site learns its own from its own output error. The paper's inputs of
down projections get a Hadamard matrix that is not learned; here they learn too.
"""

from __future__ import annotations

import numpy as np

from catonnx.learned.maps import TorchMap, TorchRotation, TorchRotationPair, mixing_pair, spreading
from catonnx.learned.site import Array, SiteSample
from catonnx.learned.training import Effort, Learned, learn
from catonnx.math.factors import Blocks, Factor, Hadamard, Kronecker, Transform
from catonnx.math.hadamard import has_hadamard

WIDEST_DENSE = 1024
"""Channels up to which the rotation is dense: d^3 multiplications a step take 20 ms at 576, and 0.4 s at 1536."""


def learn_rotation(
    sample: SiteSample, *, start: Array | None = None, effort: Effort | None = None, seed: int = 0
) -> Learned:
    """Learn a rotation of a site, with the clip ratio of its grid as it is.

    Args:
        sample: The site. Its ties play no part: a rotation mixes all channels.
        start: Orthogonal matrix (d, d) to begin with; None takes a Hadamard matrix if one is known. If given, the
            rotation is dense.
        effort: How long to learn.
        seed: Of the choice of rows and columns.

    Returns:
        One factor: `Blocks` of one block, or above `WIDEST_DENSE` channels the `Kronecker` product of two rotations.
        If nothing was gained, the start: `Hadamard` if there is a matrix of that order.

    Raises:
        ValueError: The start is not an orthogonal matrix (d, d).
    """
    factor, part = _given(start, sample.width) if start is not None else _spreading(sample.width)
    return learn(sample, Transform((factor,)), (part,), learn_clip=False, effort=effort, seed=seed)


def _given(start: Array, width: int) -> tuple[Factor, TorchMap]:
    start = np.asarray(start, dtype=np.float64)
    if start.shape != (width, width):
        raise ValueError(f"the start has shape {start.shape}; a rotation of {width} channels is ({width}, {width})")
    drift = np.abs(start @ start.T - np.eye(width)).max()
    if not drift < 1e-5:
        raise ValueError(f"the start is not orthogonal: R R^T differs from the identity by {drift:.2g}")
    return Blocks(start[None]), TorchRotation(start)


def _spreading(width: int) -> tuple[Factor, TorchMap]:
    hadamard = Hadamard(width, width) if has_hadamard(width) else None  # cheaper than the same matrix written out
    if width <= WIDEST_DENSE:
        start = spreading(width)
        return hadamard or Blocks(start[None]), TorchRotation(start)
    first, second = mixing_pair(width)
    return hadamard or Kronecker(first, second), TorchRotationPair(first, second)
