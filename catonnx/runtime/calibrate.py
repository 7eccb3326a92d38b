"""Run a model on calibration inputs and sum up what flows into its linear layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catonnx.errors import CalibrationError, ModelError
from catonnx.math.moments import Moments
from catonnx.progress import Progress, silent
from catonnx.runtime.feeds import Feeds, check_feeds, model_inputs
from catonnx.runtime.sessions import open_session, run

FEWEST_KEPT = 16
"""Rows that are kept of an input, if any: the first is always among them, and must not make up a large part."""


@dataclass(frozen=True)
class MomentRequest:
    """What to measure of one site.

    Attributes:
        value: Name of the activation, which must be an output of the graph; its last axis holds the channels.
        width: Channels (d).
        block: Width of the diagonal blocks of x x^T that are kept: 1 for the diagonal, d for all of it.
        rows: About how many rows of the activation are kept as they are.
    """

    value: str
    width: int
    block: int
    rows: int = 0


def measure(
    model_path: str | Path,
    requests: Mapping[str, MomentRequest],
    feeds: Iterable[Feeds],
    *,
    provider: str = "cpu",
    config: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> dict[str, Moments]:
    """Return the moments of every requested activation over all `feeds`.

    Activations are summed up and dropped after each feed, so memory does not grow with the number of feeds: the model,
    the moments, and the activations of one feed. Feeds of about 512 tokens are the fastest.

    Args:
        model_path: An ONNX file that has every requested value among its graph outputs.
        requests: Site name -> what to measure there.
        feeds: Inputs by name, one mapping per run.
        provider: "cpu" or "cuda".
        config: Session configuration entries.
        threads: Threads of ONNX Runtime; all cores unless given.
        progress: Told of every feed.

    Raises:
        CalibrationError: no feeds; feeds that do not fit the inputs; a value of another width than requested; NaN or
            Inf in an activation; fewer than two rows at a site.
        ModelError: the model does not load or run, or lacks a requested value.
    """
    if not requests:
        return {}
    batches = list(feeds)
    if not batches:
        raise CalibrationError("there is nothing to calibrate on", hint="give text, or inputs in an .npz file")
    # Basic optimization: fusions would not make one pass faster, and take longer to find.
    session = open_session(model_path, provider=provider, config=config, optimization="basic", threads=threads)
    _check_outputs({node.name for node in session.get_outputs()}, requests, model_path)
    inputs = model_inputs(session)
    for index, batch in enumerate(batches):
        check_feeds(batch, inputs, where=f"calibration sample {index}")

    wanted = max(request.rows for request in requests.values())
    stride = max(1, len(batches) * FEWEST_KEPT // wanted) if wanted else 1
    keeping = -(-len(batches) // stride)
    moments = {
        site: Moments(request.width, request.block, kept_rows=-(-request.rows // keeping))
        for site, request in requests.items()
    }
    sites_of: dict[str, list[str]] = {}
    for site, request in requests.items():
        sites_of.setdefault(request.value, []).append(site)
    for index, batch in enumerate(batches):
        values = run(session, list(sites_of), batch)
        for sites in sites_of.values():
            value = values.pop(0)  # the list lets go of it, so that each activation is freed as soon as it is summed up
            for site in sites:
                _check_value(value, requests[site], site, index)
                moments[site].update(value, keep=index % stride == 0)
        progress("calibrate", index + 1, len(batches))
    for site, total in moments.items():
        if total.count < 2:
            raise CalibrationError(
                f"calibration saw {total.count} row(s), and statistics need many",
                where=f"site {site}",
                hint="give more or longer samples",
            )
    return moments


def _check_outputs(outputs: set[str], requests: Mapping[str, MomentRequest], model_path: str | Path) -> None:
    for site, request in requests.items():
        if request.value not in outputs:
            raise ModelError(f"the value {request.value} of site {site} is no graph output", where=model_path)


def _check_value(value: np.ndarray, request: MomentRequest, site: str, sample: int) -> None:
    where = f"site {site}, value {request.value}, calibration sample {sample}"
    if value.ndim == 0 or value.shape[-1] != request.width:
        raise CalibrationError(
            f"the activation has shape {list(value.shape)} where {request.width} channels were planned", where=where
        )
    finite = np.isfinite(value)
    if not finite.all():
        bad = np.argwhere(~finite)[0]
        raise CalibrationError(
            f"the activation holds {value[tuple(bad)]} at index {bad.tolist()}",
            where=where,
            hint="the model overflows on this input, or holds NaN: check both, or use float32 instead of float16",
        )
