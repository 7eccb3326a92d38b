"""Run two models on the same inputs and say how far their outputs, or the values inside them, are apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catonnx.progress import Progress, silent
from catonnx.runtime.divergence import ValueDifference
from catonnx.runtime.feeds import Feeds
from catonnx.runtime.recording import Comparison, Recording, check_finite, check_outputs, check_shape
from catonnx.runtime.running import Request, Runnable, opened
from catonnx.runtime.spool import Spool

__all__ = ["Comparison", "SiteDifference", "SitePair", "compare_models", "first_difference"]


@dataclass(frozen=True)
class SitePair:
    """A value of the reference and the value of the candidate that it should have become.

    Attributes:
        name: The site.
        reference: Output of the reference model.
        candidate: Output of the candidate.
        expected: From the reference's value to what the candidate's should be, such as the site's transform.
    """

    name: str
    reference: str
    candidate: str
    expected: Callable[[np.ndarray], np.ndarray] = lambda value: value


@dataclass(frozen=True)
class SiteDifference:
    """A site and how far its value is from what it should be."""

    name: str
    relative_l2: float


def compare_models(
    reference_path: str | Path,
    candidate_path: str | Path,
    feeds: Sequence[Feeds],
    *,
    provider: str = "cpu",
    reference_config: Mapping[str, str] | None = None,
    candidate_config: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    threads: int | None = None,
    scratch: str | Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Compare the outputs of two models; `Recording` compares one reference with several.

    Args:
        reference_path: The model that is right.
        candidate_path: The model to judge.
        feeds: Samples that both take.
        provider: "cpu" or "cuda".
        reference_config: Session configuration entries of the reference.
        candidate_config: Those of the candidate.
        outputs: What to compare. Unless given: all outputs but the cache of a language model (``present.*``), which a
            transform may rightly change.
        threads: Threads of ONNX Runtime; all cores unless given.
        scratch: Folder for the reference's outputs (100 MB for 512 tokens of a vocabulary of 49152).
        progress: Told of every run.

    Raises:
        CalibrationError: no feeds, feeds that do not fit, or a reference that is not finite.
        VerificationError: the candidate lacks an output or gives it another shape.
        ModelError: a model does not load or run.
        OutputError: the reference's outputs do not fit on the disk.
    """
    recording = Recording(
        reference_path,
        feeds,
        outputs=outputs,
        provider=provider,
        config=reference_config,
        threads=threads,
        scratch=scratch,
        progress=progress,
    )
    with recording:
        return recording.compare(candidate_path, config=candidate_config)


def first_difference(
    reference: Runnable,
    candidate: Runnable,
    pairs: Sequence[SitePair],
    feeds: Sequence[Feeds],
    tolerance: float,
    *,
    provider: str = "cpu",
    reference_config: Mapping[str, str] | None = None,
    candidate_config: Mapping[str, str] | None = None,
    scratch: str | Path | None = None,
) -> SiteDifference | None:
    """Return the first site, in the order of `pairs`, whose relative L2 difference over all feeds exceeds `tolerance`.

    Both models must have the values of `pairs` among their outputs. A difference that is not a number exceeds too.

    Raises:
        CalibrationError, VerificationError, ModelError, OutputError: as `compare_models`.
    """
    if not pairs:  # all that was changed lies in bodies
        return None
    with Spool(scratch) as spool:
        names = [pair.reference for pair in pairs]
        with opened(reference, provider=provider, config=reference_config, scratch=scratch) as model:
            check_outputs(names, model, reference)
            for index, values in enumerate(model.run([Request(sample, names) for sample in feeds])):
                check_finite(names, values, index)
                spool.put(index, [pair.expected(value) for pair, value in zip(pairs, values, strict=True)])

        names = [pair.candidate for pair in pairs]
        differences = [ValueDifference() for _ in pairs]
        with opened(candidate, provider=provider, config=candidate_config, scratch=scratch) as model:
            check_outputs(names, model, candidate)
            for index, values in enumerate(model.run([Request(sample, names) for sample in feeds])):
                for position, pair in enumerate(pairs):
                    expected = spool.get(index, position)
                    check_shape(expected, values[position], pair.name)
                    differences[position].add(expected, values[position])
    for pair, difference in zip(pairs, differences, strict=True):
        if not difference.relative_l2 <= tolerance:
            return SiteDifference(pair.name, difference.relative_l2)
    return None
