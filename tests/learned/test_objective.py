"""The loss of a step stands for the loss of all rows and columns, and weighs linears alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from catonnx.math.activations import ActivationGrid
from catonnx.math.factors import Hadamard, Transform
from tests.learned.sites import planted, site

torch = pytest.importorskip("torch", reason="learned methods need PyTorch")

from catonnx.learned.maps import Constant  # noqa: E402
from catonnx.learned.objective import Objective  # noqa: E402

MAPS = (Constant(Hadamard(96, 96)),)


def losses(sample: Any, draws: int, rows: int, columns: int) -> np.ndarray:
    """Return the losses of some steps, each on rows and columns of its own."""
    everything = np.arange(len(sample.rows))
    generator = np.random.default_rng(0)
    objective = Objective(sample, everything, sample.row_counts(), rows=rows, columns=columns, generator=generator)
    return np.array([float(objective(MAPS, sample.clip)) for _ in range(draws)])


def test_a_step_stands_for_all_rows_and_columns() -> None:
    sample = site(96, 64, 160)
    (whole,) = losses(sample, 1, rows=320, columns=10**4)
    some = losses(sample, 300, rows=32, columns=32)
    assert some.mean() == pytest.approx(whole, rel=0.01)  # measured 0.0001
    assert some.std() < 0.2 * whole  # measured 0.11; of rows drawn without regard to their size 0.43


def test_the_whole_loss_is_the_error_of_the_site() -> None:
    sample = site(96, 64, 160)
    (whole,) = losses(sample, 1, rows=320, columns=10**4)
    transform, rows = Transform((Hadamard(96, 96),)), np.arange(320)
    columns = [np.arange(weight.shape[1]) for weight in sample.weights]
    error = sample.output_error(transform, sample.clip, rows, columns, sample.row_counts())
    assert whole == pytest.approx(error, rel=0.02)  # their searches of weight scales differ; measured 0.003


def test_a_loud_linear_counts_no_more_than_a_quiet_one() -> None:
    rows, (first, second) = planted(96, 64, 160)
    even, loud = (
        losses(site(96, rows=rows, weights=[first, factor * second]), 1, rows=320, columns=10**4)
        for factor in (1.0, 1000.0)
    )
    np.testing.assert_allclose(loud, even, rtol=1e-3)


def test_the_best_clip_has_the_smallest_loss() -> None:
    sample = site(96, 64, grid=ActivationGrid(4))
    objective = Objective(
        sample, np.arange(320), sample.row_counts(), rows=320, columns=64, generator=np.random.default_rng(0)
    )
    best = objective.best_clip(MAPS)
    assert losses(site(96, 64, grid=ActivationGrid(4, clip=best)), 1, 320, 64) <= min(
        losses(site(96, 64, grid=ActivationGrid(4, clip=clip)), 1, 320, 64) for clip in (1.0, 0.9, 0.8, 0.7, 0.6)
    )
