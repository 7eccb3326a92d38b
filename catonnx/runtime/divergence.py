"""How far two sets of values are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_POSITIONS = 16
"""Positions of logits taken to float64 at a time: 6 MB an array at a vocabulary of 49152."""

_ELEMENTS = 1 << 20
"""Elements of other values taken to float64 at a time: 8 MB an array."""


@dataclass
class ValueDifference:
    """Running difference between a reference r and a candidate c over any number of arrays.

    Attributes:
        signal: Sum of r^2.
        noise: Sum of (r - c)^2; not finite as soon as c is not.
    """

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Take in two arrays of one shape."""
        flat_reference, flat_candidate = reference.reshape(-1), candidate.reshape(-1)
        for first in range(0, flat_reference.size, _ELEMENTS):
            expected = flat_reference[first : first + _ELEMENTS].astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                difference = flat_candidate[first : first + _ELEMENTS] - expected
                self.noise += float(difference @ difference)
            self.signal += float(expected @ expected)

    @property
    def finite(self) -> bool:
        """Whether every candidate value was finite."""
        return math.isfinite(self.noise)

    @property
    def relative_l2(self) -> float:
        """|r - c| / |r|; Inf if only r is zero, or c is not finite."""
        if not self.finite:
            return math.inf
        if self.signal == 0.0:
            return 0.0 if self.noise == 0.0 else math.inf
        return math.sqrt(self.noise / self.signal)

    @property
    def sqnr_db(self) -> float:
        """10 log10(|r|^2 / |r - c|^2): Inf if equal, -Inf if c is not finite."""
        error = self.relative_l2
        if error == 0.0:
            return math.inf
        return -20.0 * math.log10(error) if math.isfinite(error) else -math.inf


@dataclass
class LogitDifference:
    """Running divergence between the next-token distributions of two language models.

    Attributes:
        positions: Distributions compared.
        kl_sum: Sum of KL(reference || candidate), nats.
        agreements: Positions with the same most likely token.
    """

    positions: int = 0
    kl_sum: float = 0.0
    agreements: int = 0

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Take in logits [..., vocabulary] of both models."""
        vocabulary = reference.shape[-1]
        expected, actual = reference.reshape(-1, vocabulary), candidate.reshape(-1, vocabulary)
        for first in range(0, len(expected), _POSITIONS):
            log_p = log_softmax(expected[first : first + _POSITIONS])
            log_q = log_softmax(actual[first : first + _POSITIONS])
            self.agreements += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
            self.kl_sum += float(np.vdot(np.exp(log_p), log_p - log_q))
        self.positions += len(expected)

    @property
    def kl_nats(self) -> float:
        """Mean KL(reference || candidate) per position, nats."""
        return self.kl_sum / self.positions

    @property
    def top1_agreement(self) -> float:
        """Share of positions with the same most likely token, 0 to 1."""
        return self.agreements / self.positions


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log probabilities float64 of `logits` [..., vocabulary]."""
    shifted = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted -= shifted.max(axis=-1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def negative_log_likelihood(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Return the summed surprise in nats of `tokens` [n] under `logits` [n, vocabulary] (row i predicts token i)."""
    total = 0.0
    for first in range(0, len(tokens), _POSITIONS):
        targets = tokens[first : first + _POSITIONS]
        total -= float(log_softmax(logits[first : first + _POSITIONS])[np.arange(len(targets)), targets].sum())
    return total


def mean_cosine(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the mean cosine between the vectors along the last axis of two arrays; that of a zero vector is 0."""
    expected, actual = reference.astype(np.float64), candidate.astype(np.float64)
    norms = np.linalg.norm(expected, axis=-1) * np.linalg.norm(actual, axis=-1)
    products = (expected * actual).sum(axis=-1)
    return float(np.mean(np.divide(products, norms, out=np.zeros_like(products), where=norms != 0)))


def json_number(value: float | None) -> float | None:
    """Return `value` if JSON can hold it, else None."""
    return value if value is not None and math.isfinite(value) else None
