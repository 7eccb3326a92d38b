"""The factors in torch are the factors in numpy, and stay invertible, orthogonal and tied while they are trained."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learned methods need PyTorch")

from catonnx.learned import maps  # noqa: E402
from catonnx.learned.cayley import CayleyAdam  # noqa: E402
from catonnx.math.factors import Blocks, Factor, Hadamard, Kronecker, Permutation, Scale  # noqa: E402
from catonnx.math.hadamard import has_hadamard  # noqa: E402

RNG = np.random.default_rng(0)
WIDTH = 24


def invertible(count: int, order: int) -> np.ndarray:
    return np.eye(order) + 0.2 * RNG.standard_normal((count, order, order))


FACTORS: tuple[Factor, ...] = (
    Scale(np.exp(RNG.standard_normal(WIDTH)) * RNG.choice([-1, 1], WIDTH)),
    Blocks(invertible(3, 8)),
    Hadamard(WIDTH, 12),
    Kronecker(invertible(1, 4)[0], invertible(1, 6)[0]),
    Permutation(RNG.permutation(WIDTH)),
)
ROWS, WEIGHT = RNG.standard_normal((10, WIDTH)), RNG.standard_normal((WIDTH, 7))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep torch from waiting for other cores, as `learn` does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mapped(part: maps.TorchMap) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = part(torch.tensor(ROWS, dtype=torch.float32), torch.tensor(WEIGHT.T, dtype=torch.float32))
    return rows.detach().numpy(), columns.detach().numpy().T


def shaken(part: maps.TorchMap) -> maps.TorchMap:
    """Change every parameter a little."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in part.trained:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return part


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("factor", FACTORS, ids=lambda factor: factor.kind.value)
def test_a_map_begins_as_its_factor(factor: Factor, trained: bool) -> None:
    part = maps.torch_map(factor, None, trained=trained)
    rows, weight = mapped(part)
    np.testing.assert_allclose(rows, factor.apply(ROWS), atol=2e-5)
    np.testing.assert_allclose(weight, factor.solve(WEIGHT), atol=2e-5)
    np.testing.assert_allclose(part.factor().dense(), factor.dense(), atol=1e-12)


@pytest.mark.parametrize("factor", FACTORS, ids=lambda factor: factor.kind.value)
def test_a_changed_map_is_the_factor_that_it_returns(factor: Factor) -> None:
    part = shaken(maps.torch_map(factor, None, trained=True))
    rows, weight = mapped(part)
    np.testing.assert_allclose(rows, part.factor().apply(ROWS), atol=5e-5)
    np.testing.assert_allclose(weight, part.factor().solve(WEIGHT), atol=5e-5)
    assert bool(part.trained) != np.allclose(part.factor().dense(), factor.dense(), atol=1e-3)


@pytest.mark.parametrize(
    "part", [maps.TorchRotation(Hadamard(24, 24).dense()), maps.TorchRotationPair(*maps.mixing_pair(24))]
)
def test_rotations_move_and_stay_orthogonal(part: maps.TorchMap, one_thread: None) -> None:
    before = part.factor().dense()
    optimizer = CayleyAdam(part.orthogonal)
    target = torch.tensor(WEIGHT.T, dtype=torch.float32)
    for _ in range(100):
        rows, _ = part(torch.tensor(ROWS, dtype=torch.float32), target)
        rows[:, :5].square().sum().backward()  # turn the rows out of the first channels
        optimizer.step(0.02)
    for matrix in part.orthogonal:
        drift = (matrix @ matrix.T - torch.eye(len(matrix))).detach().abs().max()
        assert float(drift) < 5e-5  # measured 2e-5; what is returned is exact
        assert matrix.grad is None
    after = part.factor().dense()
    np.testing.assert_allclose(after @ after.T, np.eye(24), atol=1e-13)
    assert np.square((ROWS @ after)[:, :5]).sum() < 0.6 * np.square((ROWS @ before)[:, :5]).sum()


def test_tied_channels_share_their_change() -> None:
    ties = np.array([7, 7, 3, 3, 3, 5] * 4)
    change = shaken(maps.TorchScale(np.arange(1.0, 25), ties)).factor().dense().diagonal() / np.arange(1.0, 25)
    for label in (3, 5, 7):
        np.testing.assert_allclose(change[ties == label], change[ties == label][0], rtol=1e-12)
    assert len(np.unique(change.round(9))) == 3


def test_tied_blocks_share_their_change() -> None:
    same = np.broadcast_to(invertible(1, 8), (3, 8, 8))
    ties = np.concatenate([np.arange(8), np.arange(8, 16), np.arange(8)])  # the first and the last block are tied
    factor = shaken(maps.TorchBlocks(np.array(same), ties)).factor()
    assert isinstance(factor, Blocks)
    np.testing.assert_array_equal(factor.matrices[0], factor.matrices[2])
    assert np.abs(factor.matrices[0] - factor.matrices[1]).max() > 1e-3


@pytest.mark.parametrize(("width", "expected"), [(576, (36, 16)), (1536, (48, 32)), (66, (6, 11)), (7, (1, 7))])
def test_a_mixing_pair_is_nearly_square_and_orthogonal(width: int, expected: tuple[int, int]) -> None:
    pair = maps.mixing_pair(width)
    assert tuple(len(matrix) for matrix in pair) == expected
    for matrix in pair:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-13)
    if has_hadamard(width):  # what is learned from, and what stands where learning gains nothing, are one
        np.testing.assert_allclose(np.kron(*pair), Hadamard(width, width).dense(), atol=1e-13)
