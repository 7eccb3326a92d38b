"""A learned affine transform of one site, in the manner of FlatQuant.

    minimize over s, P1, P2, c:  |Q_c(x F) Q(F^-1 W) - x W|^2,     F = diag(s) (P1 kron P2)

P1 and P2 are any invertible matrices of a x a and b x b, a b = d as square as possible; s is a scale per channel, c the
clip ratio of the activation.

Source: Sun et al., "FlatQuant: Flatness matters for LLM quantization", arXiv 2410.09426, from the paper's text. What
differs from the paper: it learns the linears of one transformer block together, from the block's output; here each site
learns from the outputs of its own linears. It starts at random rotations, here at Hadamard matrices. It learns clip
ratios of the weights as well; here the rounding searches the best one for every group, in training and afterwards.
"""

from __future__ import annotations

import numpy as np

from catonnx.learned.maps import TorchKronecker, TorchScale, mixing_pair
from catonnx.learned.site import SiteSample
from catonnx.learned.training import Effort, Learned, learn
from catonnx.math.factors import Kronecker, Scale, Transform


def learn_affine(sample: SiteSample, *, effort: Effort | None = None, seed: int = 0) -> Learned:
    """Learn scale, Kronecker product and clip ratio of a site.

    Args:
        sample: The site; channels with one label in its ties get one scale.
        effort: How long to learn.
        seed: Of the choice of rows and columns.

    Returns:
        Two factors, `Scale` and `Kronecker`, and the clip ratio.
    """
    first, second = mixing_pair(sample.width)
    ones = np.ones(sample.width)
    start = Transform((Scale(ones), Kronecker(first, second)))
    maps = (TorchScale(ones, sample.ties), TorchKronecker(first, second))
    return learn(sample, start, maps, learn_clip=True, effort=effort, seed=seed)
