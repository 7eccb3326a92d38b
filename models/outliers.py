"""Plant outlier channels in a random PyTorch model, so that 4-bit rounding hurts it the way it hurts real ones.

A channel between a producer (a norm, a projection) and its consumers is made `factor` times larger, and the consumers
read it `factor` times weaker:

    producer  w[c] <- w[c] * factor        consumers  W[:, c] <- W[:, c] / factor

The function of the model stays what it was. Its rounding does not: the small channels, which carry most of the meaning,
share their step with the large ones. It is the migration of SmoothQuant (arXiv 2211.10438) walked backwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

OUTLIERS = 3
SMALLEST, LARGEST = 20.0, 100.0


def factors(width: int, generator: torch.Generator) -> torch.Tensor:
    """Return a vector (width,) of ones with `OUTLIERS` random entries between `SMALLEST` and `LARGEST`, log-uniform."""
    vector = torch.ones(width)
    channels = torch.randperm(width, generator=generator)[:OUTLIERS]
    span = torch.tensor(LARGEST / SMALLEST).log()
    vector[channels] = SMALLEST * (torch.rand(OUTLIERS, generator=generator) * span).exp()
    return vector


def plant(producer: nn.Module, consumers: Sequence[nn.Module], vector: torch.Tensor, repeat: int = 1) -> None:
    """Scale the output channels of `producer` by `vector` and the input channels of all `consumers` by its inverse.

    Args:
        producer: A norm, `nn.Linear` or `Conv1D` with `len(vector)` outputs, changed in place, bias included.
        consumers: All readers of the producer, `nn.Linear` or `Conv1D`, changed in place.
        vector: One factor per channel (width,), or (KV heads, head width) for a value projection.
        repeat: How many query heads share a KV head: the consumers read each row of `vector` that many times.
    """
    with torch.no_grad():
        outputs = vector.flatten()
        producer.weight.mul_(outputs if isinstance(producer, Conv1D) or producer.weight.ndim == 1 else outputs[:, None])
        if getattr(producer, "bias", None) is not None:
            producer.bias.mul_(outputs)
        inputs = vector.repeat_interleave(repeat, dim=0).flatten()
        for consumer in consumers:
            consumer.weight.div_(inputs[:, None] if isinstance(consumer, Conv1D) else inputs)


def correlate(embedding: nn.Embedding, generator: torch.Generator) -> None:
    """Give the embedding a falling spectrum in a random basis, so that its channels are correlated as real ones are.

    Independent channels would leave nothing to gain for a transform that looks at more than the diagonal.
    """
    width = embedding.weight.shape[1]
    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    spectrum = torch.logspace(0.5, -0.7, width)
    with torch.no_grad():
        embedding.weight.copy_(embedding.weight @ ((basis * spectrum) @ basis.T))


def randomize_vectors(model: nn.Module, generator: torch.Generator) -> None:
    """Replace the ones and zeros that norm weights and biases start with by random numbers near them.

    A rewrite that forgets a bias must be caught, and a zero bias would hide it.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
