"""Outputs of a reference model, kept on disk for its candidates, so that two sessions are never open at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from catonnx.errors import CalibrationError, VerificationError
from catonnx.progress import Progress, silent
from catonnx.runtime.decoding import LOGITS, PRESENT_PREFIXES, present_name
from catonnx.runtime.divergence import LogitDifference, ValueDifference, json_number
from catonnx.runtime.feeds import Feeds, InputSpec
from catonnx.runtime.fusion import OptimizedGraph
from catonnx.runtime.running import Request, Runnable, Running, Unwritten, check_some, opened
from catonnx.runtime.sessions import Optimization
from catonnx.runtime.spool import Spool


@dataclass(frozen=True)
class Comparison:
    """How far a candidate is from the reference.

    Attributes:
        outputs: Output name -> its difference over all samples.
        logits: Divergence of the next-token distributions, if the models give logits.
    """

    outputs: Mapping[str, ValueDifference]
    logits: LogitDifference | None = None

    @property
    def finite(self) -> bool:
        """Whether the candidate gave neither NaN nor Inf."""
        return all(difference.finite for difference in self.outputs.values())

    @property
    def relative_l2(self) -> float:
        """The largest relative difference among the outputs."""
        return max(difference.relative_l2 for difference in self.outputs.values())

    @property
    def kl_nats(self) -> float | None:
        """Mean KL(reference || candidate) per token in nats, or None without logits."""
        return self.logits.kl_nats if self.logits else None

    @property
    def top1_agreement(self) -> float | None:
        """Share of positions with the same most likely token, or None without logits."""
        return self.logits.top1_agreement if self.logits else None

    def to_json(self) -> dict[str, object]:
        """Return the figures in JSON's types; a figure that is not finite becomes None."""
        outputs = {
            name: {"relative_l2": json_number(value.relative_l2), "sqnr_db": json_number(value.sqnr_db)}
            for name, value in self.outputs.items()
        }
        return {
            "outputs": outputs,
            "finite": self.finite,
            "kl_nats": json_number(self.kl_nats),
            "top1_agreement": json_number(self.top1_agreement),
        }


CONTINUED = "logits continued from the cache"
_CONTINUED_TOKENS = 64


class Recording:
    """What a reference model gives for some samples; a context that runs it on entry and forgets it on exit.

    Args:
        reference: The model that is right.
        feeds: Samples that it and the candidates take.
        outputs: What to compare; `compared_outputs` unless given.
        continued: Also feed the beginning of the first sample in two pieces, the second continuing from the cache that
            the first left, and compare the logits: a cache in another basis must fit the model that wrote it.
        provider: "cpu" or "cuda", for the candidates too.
        config: Session configuration entries of the reference.
        threads: Threads of ONNX Runtime; all cores unless given.
        optimization: How far ONNX Runtime may rewrite the reference.
        scratch: Folder for the outputs (100 MB for 512 tokens of a vocabulary of 49152).
        progress: Told of every run.

    Raises:
        CalibrationError: no feeds, feeds that do not fit, or a reference that is not finite.
        ModelError: the reference does not load or run.
        OutputError: the outputs do not fit on the disk.
    """

    def __init__(
        self,
        reference: Runnable,
        feeds: Sequence[Feeds],
        *,
        outputs: Sequence[str] | None = None,
        continued: bool = False,
        provider: str = "cpu",
        config: Mapping[str, str] | None = None,
        threads: int | None = None,
        optimization: Optimization = "all",
        scratch: str | Path | None = None,
        progress: Progress = silent,
    ) -> None:
        self._reference, self._config, self._optimization = reference, config, optimization
        self._feeds, self._outputs, self._continued = feeds, outputs, continued
        self._provider, self._threads, self._progress = provider, threads, progress
        self._scratch = scratch
        self._spool = Spool(scratch)

    def __enter__(self) -> Recording:
        self._spool.__enter__()
        try:
            self._record()
        except BaseException:
            self._spool.__exit__()  # a context that fails on entry is never exited
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.__exit__()

    def _record(self) -> None:
        with opened(
            self._reference,
            provider=self._provider,
            config=self._config,
            threads=self._threads,
            optimization=self._optimization,
            scratch=self._scratch,
        ) as reference:
            names = self._outputs if self._outputs is not None else compared_outputs(reference.outputs)
            check_outputs(names, reference, self._reference)
            self._names = [name for name in names if reference.outputs[name]]
            check_some(self._feeds)
            elements = 0
            values_of = reference.run(self._requests(reference))
            for index, values in enumerate(itertools.islice(values_of, len(self._feeds))):
                check_finite(self._names, values, index)
                self._spool.put(index, values)
                elements += sum(value.size for value in values)
                self._progress("run the reference", index + 1, len(self._feeds))
            if not elements:
                raise CalibrationError(
                    "the model gives no number to compare",
                    where=", ".join(self._names) or "its outputs are neither numbers nor flags",
                    hint="give inputs of more than zero rows",
                )
            if self._continued:
                self._spool.put(len(self._feeds), [_continued_logits(values_of)])

    def compare(
        self,
        candidate: Runnable,
        *,
        config: Mapping[str, str] | None = None,
        optimization: Optimization = "all",
        see: Callable[[OptimizedGraph], None] | None = None,
        prepare: Callable[[Any], None] | None = None,
    ) -> Comparison:
        """Run a candidate on the same samples.

        Args:
            candidate: The model to judge.
            config: Session configuration entries.
            optimization: How far ONNX Runtime may rewrite the candidate.
            see: Told what ONNX Runtime really runs, in one or several parts.
            prepare: As of `open_session`.

        Raises:
            VerificationError: it lacks an output or gives it another shape.
            ModelError: it does not load or run.
        """
        differences = {name: ValueDifference() for name in self._names}
        logits = LogitDifference() if LOGITS in self._names else None
        with opened(
            candidate,
            provider=self._provider,
            config=config,
            threads=self._threads,
            optimization=optimization,
            scratch=self._scratch,
            see=see,
            prepare=prepare,
        ) as judged:
            check_outputs(self._names, judged, candidate)
            values_of = judged.run(self._requests(judged))
            for index, values in enumerate(itertools.islice(values_of, len(self._feeds))):
                for position, name in enumerate(self._names):
                    reference, actual = self._spool.get(index, position), values[position]
                    check_shape(reference, actual, name)
                    differences[name].add(reference, actual)
                    if logits and name == LOGITS:
                        logits.add(reference, actual)
                self._progress("compare", index + 1, len(self._feeds))
            if self._continued:
                differences[CONTINUED] = ValueDifference()
                differences[CONTINUED].add(self._spool.get(len(self._feeds), 0), _continued_logits(values_of))
        return Comparison(differences, logits)

    def _requests(self, model: Running) -> list[Request]:
        """Return what is run: every sample, and the beginning of the first one in two pieces."""
        requests = [Request(sample, self._names) for sample in self._feeds]
        if self._continued:
            spec, tokens = InputSpec.of(tuple(model.inputs)), self._feeds[0]["input_ids"][:1, :_CONTINUED_TOKENS]
            half, outputs = tokens.shape[1] // 2, set(model.outputs)
            caches = {name: present_name(name, outputs) for name in spec.past_names}
            requests.append(Request(spec.first_feeds(tokens[:, :half]), [LOGITS]))
            rest = spec.feeds(tokens[:, half:], half) | spec.zero_past(1, half)
            requests.append(Request(rest, [LOGITS], caches))
        return requests


def _continued_logits(values_of: Iterator[Sequence[np.ndarray]]) -> np.ndarray:
    """Return the logits of both pieces, the second fed from the cache that the first left."""
    [first], [second] = values_of
    return np.concatenate([first, second], axis=1)


def compared_outputs(names: Iterable[str]) -> list[str]:
    """Return the outputs worth comparing: all but a language model's cache, which a transform may rightly change."""
    names = list(names)
    return [name for name in names if not name.startswith(PRESENT_PREFIXES)] or names


def check_finite(names: Sequence[str], values: Sequence[np.ndarray], sample: int) -> None:
    """Refuse a reference that gives NaN or Inf: nothing can be measured against it."""
    for name, value in zip(names, values, strict=True):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise CalibrationError("the reference model gives NaN or Inf", where=f"{name}, sample {sample}")


def check_outputs(names: Sequence[str], model: Running, where: Runnable) -> None:
    """Refuse a model without one of these outputs."""
    missing = [name for name in names if name not in model.outputs]
    if missing:
        where = where.path or where.folder if isinstance(where, Unwritten) else where
        raise VerificationError(f"the model lacks the output {', '.join(missing)}", where=where)


def check_shape(reference: np.ndarray, candidate: np.ndarray, name: str) -> None:
    """Refuse a candidate whose value has another shape."""
    if reference.shape != candidate.shape:
        raise VerificationError(
            f"the value has shape {list(candidate.shape)} where the reference has {list(reference.shape)}", where=name
        )
