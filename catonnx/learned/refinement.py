"""A small change, learned, of a transform that is good already: CAT's scale or blocks, then a Hadamard matrix.

    scale:      s exp(change)           blocks, Kronecker:  M (I + change)           clip ratio: free

The change begins at zero and is relative, so that one step size serves all sites. Rotations of Hadamard's kind stay as
they are.
"""

from __future__ import annotations

from catonnx.learned.maps import torch_map
from catonnx.learned.site import SiteSample
from catonnx.learned.training import Effort, Learned, learn
from catonnx.math.factors import FactorKind, Transform

TRAINABLE = frozenset({FactorKind.SCALE, FactorKind.BLOCKS, FactorKind.KRONECKER})


def refine(
    sample: SiteSample,
    transform: Transform,
    *,
    kinds: frozenset[FactorKind] = TRAINABLE,
    clip: bool = True,
    effort: Effort | None = None,
    seed: int = 0,
) -> Learned:
    """Refine the factors of a transform, and the clip ratio.

    Args:
        sample: The site. Channels with one label in its ties share the change of their scale; blocks whose channels
            have the same labels in the same order share theirs, so that what was tied stays tied. This holds for
            factors before the first Hadamard matrix, Kronecker product or permutation.
        transform: To begin with; its factors keep their kinds and their order.
        kinds: Kinds of factors that are refined; the others stay.
        clip: Whether the clip ratio is learned too; it then begins as the best of a few, not as the grid's own.
        effort: How long to learn.
        seed: Of the choice of rows and columns.

    Returns:
        The refined transform if the error on held-out rows fell, else the given one with the grid's own clip ratio.

    Raises:
        ValueError: The transform has another width, or there is nothing to refine.
    """
    if transform.width != sample.width:
        raise ValueError(f"the transform covers {transform.width} channels, the site has {sample.width}")
    if not any(factor.kind in kinds & TRAINABLE for factor in transform.factors) and not (clip and sample.grid):
        raise ValueError("the transform has no factor of the kinds to refine, and no clip ratio is to be learned")
    maps = []
    ties = sample.ties
    for factor in transform.factors:
        maps.append(torch_map(factor, ties, trained=factor.kind in kinds))
        if factor.kind not in (FactorKind.SCALE, FactorKind.BLOCKS):
            ties = None  # channels were mixed across blocks or moved; the labels name others now
    return learn(sample, transform, maps, learn_clip=clip, effort=effort, seed=seed)
