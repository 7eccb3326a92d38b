"""How far rounded models are from one float model, whose logits are computed once and wait on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catonnx.runtime.decoding import LOGITS
from catonnx.runtime.divergence import LogitDifference, negative_log_likelihood
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.sessions import open_session, run
from catonnx.runtime.spool import Spool
from tools.bench_subjects import EXACT


@dataclass(frozen=True)
class Judgement:
    """How a rounded model fares.

    Attributes:
        perplexity: Of every token of a row after the first.
        kl_nats: Mean KL(float || rounded) per position.
        top1_agreement: Share of positions where both find the same token most likely.
    """

    perplexity: float
    kl_nats: float
    top1_agreement: float

    def gap(self, perplexity: float) -> float:
        """Return ln(perplexity / that of the float model)."""
        return math.log(self.perplexity / perplexity)


class Judge:
    """Compares models with one float model on rows of tokens; `catonnx evaluate` would run it for each of them again.

    Args:
        source: The float model.
        rows: int64 [rows, tokens].
        spool: Where its logits wait: 100 MB for 512 tokens of a vocabulary of 49152.
    """

    def __init__(self, source: Path, rows: np.ndarray, spool: Spool) -> None:
        self._rows, self._spool = rows, spool
        surprise = 0.0
        for index, logits in enumerate(_logits(source, rows)):
            spool.put(index, [logits])
            surprise += negative_log_likelihood(logits[:-1], rows[index, 1:])
        self.perplexity = _perplexity(surprise, rows)

    def judge(self, model: Path) -> Judgement:
        """Run a model, activations as exact as its graph says, on all rows."""
        difference, surprise = LogitDifference(), 0.0
        for index, logits in enumerate(_logits(model, self._rows)):
            difference.add(self._spool.get(index, 0), logits)
            surprise += negative_log_likelihood(logits[:-1], self._rows[index, 1:])
        return Judgement(_perplexity(surprise, self._rows), difference.kl_nats, difference.top1_agreement)


@contextmanager
def judging(source: Path, rows: np.ndarray, scratch: Path) -> Iterator[Judge]:
    """Yield a judge whose files go with the block."""
    with Spool(scratch) as spool:
        yield Judge(source, rows, spool)


def _logits(model: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the logits [tokens, vocabulary] of each row."""
    session = open_session(model, config=EXACT)
    spec = InputSpec.from_session(session)
    for row in rows:
        yield run(session, [LOGITS], spec.first_feeds(row[np.newaxis]))[0][0]


def _perplexity(surprise: float, rows: np.ndarray) -> float:
    # The bound keeps a broken model from ending in an OverflowError.
    return math.exp(min(surprise / (len(rows) * (rows.shape[1] - 1)), 700.0))
