"""What is learned rounds held-out rows better than what it began with, and is never worse."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from catonnx.errors import RuntimeUnavailableError
from catonnx.math.activations import ActivationGrid
from catonnx.math.cat import cat_blocks, weight_moment
from catonnx.math.factors import Blocks, FactorKind, Hadamard, Kronecker, Permutation, Scale, Transform
from tests.learned.sites import planted, site

torch = pytest.importorskip("torch", reason="learned methods need PyTorch")

from catonnx.learned import Effort, Learned, learn_affine, learn_rotation, refine, rotation  # noqa: E402

SHORT = Effort(steps=60, rows=128, columns=96)


def aligned(sample: Any, block: int) -> Transform:
    """Return CAT's blocks and a Hadamard matrix."""
    by_block = sample.rows.astype(np.float64).reshape(len(sample.rows), -1, block)
    x_moment = np.einsum("nbi,nbj->bij", by_block, by_block) / len(by_block)
    blocks = cat_blocks(x_moment, weight_moment(sample.weights, block))
    return Transform((Blocks(blocks), Hadamard(sample.width, sample.width)))


def refine_aligned(sample: Any, **options: Any) -> Learned:
    return refine(sample, aligned(sample, 8), **options)


METHODS: dict[str, Callable[..., Learned]] = {
    "rotation": learn_rotation,
    "affine": learn_affine,
    "refine": refine_aligned,
}
REACHED = {"rotation": 0.9, "affine": 0.6, "refine": 0.7}
"""Bound on the error over that of the start. The first two start at a Hadamard matrix."""


@pytest.mark.parametrize(
    "grid", [ActivationGrid(4), ActivationGrid(4, False, 16), None], ids=["token", "group", "none"]
)
@pytest.mark.parametrize("method", METHODS)
def test_the_held_out_error_falls(method: str, grid: ActivationGrid | None) -> None:
    sample = site(96, 64, 160, grid=grid, group_size=16 if grid and grid.group_size else None)
    learned = METHODS[method](sample, effort=SHORT)
    assert learned.kept, learned.why_not
    assert learned.error_after < learned.error_before
    if grid == ActivationGrid(4):
        others = (METHODS[method](site(96, 64, 160, seed=seed), effort=SHORT) for seed in (1, 2))
        ratios = [each.error_after / each.error_before for each in (learned, *others)]
        assert np.prod(ratios) ** (1 / len(ratios)) < REACHED[method]
    assert learned.transform.inverse_error() < 1e-9  # measured 1e-13
    assert (0 < learned.clip < 1) == (grid is not None and method != "rotation")


def test_affine_and_refined_beat_a_hadamard_matrix_and_a_rotation() -> None:
    sample = site(96, 64, 160)
    errors = {name: method(sample, effort=SHORT).error_after for name, method in METHODS.items()}
    assert errors["affine"] < 0.6 * errors["rotation"]
    assert errors["refine"] < 0.6 * errors["rotation"]


def test_a_rotation_is_orthogonal_and_dense_or_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = learn_rotation(site(96, 64, seed=1), effort=SHORT)
    monkeypatch.setattr(rotation, "WIDEST_DENSE", 95)
    pair = learn_rotation(site(96, 64, seed=1), effort=SHORT)
    assert isinstance(dense.transform.factors[0], Blocks)
    assert isinstance(pair.transform.factors[0], Kronecker)
    for learned in (dense, pair):
        assert learned.kept
        matrix = learned.transform.dense()
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(96), atol=1e-13)
    assert dense.error_before == pytest.approx(pair.error_before)  # both begin with the Hadamard matrix of order 96


@pytest.mark.parametrize("widest", [96, 95])
def test_a_rotation_that_gains_nothing_is_a_cheap_hadamard_matrix(widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "WIDEST_DENSE", widest)
    learned = learn_rotation(site(96, 64), effort=Effort(steps=0))
    assert not learned.kept
    assert learned.transform.factors == (Hadamard(96, 96),)


def test_a_rotation_begins_where_it_is_told() -> None:
    start, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((48, 48)))
    learned = learn_rotation(site(48, 64), start=start, effort=Effort(steps=0))
    assert not learned.kept
    np.testing.assert_allclose(learned.transform.dense(), start, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_everything(method: str) -> None:
    effort = Effort(steps=10, rows=64, columns=32)
    first, again, other = (METHODS[method](site(48, 64), effort=effort, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.transform.dense(), again.transform.dense())
    assert (first.clip, first.error_after) == (again.clip, again.error_after)
    assert first.error_after != other.error_after


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    learn_rotation(site(48, 64), effort=Effort(steps=1, threads=before + 1))
    assert torch.get_num_threads() == before


def test_width_without_a_hadamard_matrix() -> None:
    for method in (learn_rotation, learn_affine):
        learned = method(site(66, 40), effort=SHORT)
        assert learned.kept
        assert learned.transform.inverse_error() < 1e-9


def test_one_huge_token_does_not_rule_and_does_not_ruin() -> None:
    rows, weights = planted(96, 64, count=400)
    rows[7] *= 3000
    learned = learn_affine(site(96, 64, rows=rows, weights=weights), effort=SHORT)
    assert learned.kept, learned.why_not


def test_tied_scales_stay_tied() -> None:
    ties = np.arange(96) // 4
    learned = learn_affine(site(96, 64, ties=ties), effort=SHORT)
    scale = learned.transform.factors[0]
    assert isinstance(scale, Scale)
    by_label = scale.vector.reshape(-1, 4)
    np.testing.assert_array_equal(by_label, np.repeat(by_label[:, :1], 4, axis=1))
    assert len(np.unique(by_label)) > 1


def test_tied_blocks_stay_tied_when_refined() -> None:
    sample = site(96, 64, ties=np.arange(96) % 48)
    tied = np.broadcast_to(np.eye(8) + 0.1, (12, 8, 8))
    learned = refine(sample, Transform((Blocks(np.array(tied)), Hadamard(96, 96))), effort=SHORT)
    assert learned.kept
    blocks = learned.transform.factors[0]
    assert isinstance(blocks, Blocks)
    np.testing.assert_array_equal(blocks.matrices[:6], blocks.matrices[6:])
    assert np.abs(blocks.matrices[0] - blocks.matrices[1]).max() > 1e-3


def test_labels_end_where_channels_move() -> None:
    sample = site(96, 64, ties=np.zeros(96))
    order = np.random.default_rng(0).permutation(96)
    learned = refine(sample, Transform((Permutation(order), Scale(np.ones(96)), Hadamard(96, 96))), effort=SHORT)
    assert learned.kept
    scale = learned.transform.factors[1]
    assert isinstance(scale, Scale)
    assert len(np.unique(scale.vector)) == 96


def test_only_the_kinds_asked_for_are_refined() -> None:
    sample = site(96, 64, seed=1)
    start = Transform((Scale(np.full(96, 2.0)), *aligned(sample, 8).factors))
    learned = refine(sample, start, kinds=frozenset({FactorKind.SCALE}), clip=False, effort=SHORT)
    assert learned.kept
    assert learned.clip == 1
    changed = [
        not np.allclose(old.dense(), new.dense(), atol=1e-12)
        for old, new in zip(start.factors, learned.transform.factors, strict=True)
    ]
    assert changed == [True, False, False]


def test_what_gains_nothing_is_not_kept() -> None:
    sample = site(96, 64, grid=ActivationGrid(4, clip=0.9))
    start = aligned(sample, 8)
    learned = refine(sample, start, clip=False, effort=Effort(steps=0))
    assert learned.transform is start
    assert learned.clip == 0.9
    assert "held-out error went from" in learned.why_not


def test_learning_that_diverges_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from catonnx.learned import training

    monkeypatch.setattr(training, "PLAIN_RATE", float("nan"))
    learned = learn_affine(site(48, 64), effort=Effort(steps=2))
    assert "learning failed" in learned.why_not
    np.testing.assert_allclose(learned.transform.dense(), Hadamard(48, 48).dense(), atol=1e-12)


def test_dead_channels_and_a_dead_linear() -> None:
    rows, weights = planted(96, 64, 32)
    rows[:, 5:9], weights[0][9:12], weights[1][:] = 0, 0, 0
    for method in METHODS.values():
        learned = method(site(96, 64, rows=rows, weights=weights), effort=SHORT)
        assert learned.kept, learned.why_not
        assert np.isfinite(learned.error_after)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"rows": np.zeros((320, 96, 1))}, "rows have shape"),
        ({"rows": np.zeros((3, 96))}, "16 rows"),
        ({"weights": []}, "asks for 96 rows"),
        ({"weights": [np.zeros((95, 3))]}, "asks for 96 rows"),
        ({"weights": [np.full((96, 3), np.nan)]}, "NaN"),
        ({"ties": np.zeros(95)}, "one label for each channel"),
        ({"grid": ActivationGrid(4, fixed=(0.1, 0.0))}, "fixed range"),
        ({"grid": ActivationGrid(4, True, 36)}, "groups of 36"),
    ],
)
def test_a_wrong_sample_is_refused(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        site(96, 64, **options)


def test_wrong_wishes_are_refused() -> None:
    sample = site(96, 64)
    with pytest.raises(ValueError, match=r"\(96, 96\)"):
        learn_rotation(sample, start=np.eye(95))
    with pytest.raises(ValueError, match="not orthogonal"):
        learn_rotation(sample, start=2 * np.eye(96))
    with pytest.raises(ValueError, match="covers 48 channels"):
        refine(sample, Transform.identity(48))
    with pytest.raises(ValueError, match="no factor of the kinds"):
        refine(sample, Transform((Hadamard(96, 96),)), clip=False)
    with pytest.raises(ValueError, match="out of range"):
        Effort(rows=0)


def test_without_torch_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "catonnx.learned")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeUnavailableError, match=r"catonnx\[learned\]"):
        importlib.import_module("catonnx.learned")
