"""Hadamard matrices: orthogonal, all entries of one size, so that each output mixes every input equally.

Orders come from Sylvester's matrix of order 2, Paley's two constructions over finite fields, two matrices of one order
each, and Kronecker products.

| construction | order | prime power q |
| --- | --- | --- |
| Sylvester | 2 | |
| Paley I | q + 1 | q = 3 mod 4 |
| Paley II | 2 (q + 1) | q = 1 mod 4 |
| Williamson's array of I and J | 12 | |
| Latin square | 36 | |

Sources: Paley, "On orthogonal matrices", 1933; Williamson, "Hadamard's determinant theorem and the sum of four
squares", 1944; for the graph of a Latin square, Bose, "Strongly regular graphs, partial geometries and partially
balanced designs", 1963. The last two stand in for Paley's matrices of their orders because few sums make them up: a
kernel that knows them needs 4.7 and 6.1 additions a channel, instead of 12 and 36 multiply-adds for any other matrix.
Of the multiples of 4 up to 256, which all have a Hadamard matrix, these constructions and products of them leave out
92, 116, 156, 172, 184, 188, 232 and 236.

Where a power of two of at least 16 splits off, Sylvester's matrix of that order is the right factor, the one that mixes
neighbours: a fast Walsh-Hadamard transform needs only log2 of that order additions for each of them.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from math import isqrt
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

_WORTH_A_FAST_TRANSFORM = 16
"""Numbers in the widest vectors of processors."""


def has_hadamard(order: int) -> bool:
    """Say whether `hadamard_matrix` knows a matrix of this order."""
    return order >= 1 and _split(order) is not None


def hadamard_matrix(order: int) -> Array:
    """Return an orthonormal Hadamard matrix, entries plus or minus ``1 / sqrt(order)``.

    It is the Kronecker product of the matrices of `kronecker_pair`. Its inverse is its transpose; it is symmetric only
    for some orders.

    Args:
        order: Number of rows.

    Returns:
        Matrix of shape (order, order), new at each call.

    Raises:
        ValueError: No matrix of this order is known here.
    """
    first, second = kronecker_pair(order)
    if first == 1:
        return _indivisible(second) / math.sqrt(second)
    return np.asarray(np.kron(hadamard_matrix(first), hadamard_matrix(second)), dtype=np.float64)


def kronecker_pair(order: int) -> tuple[int, int]:
    """Split an order into two Hadamard orders, as nearly square as `sylvester_part` allows.

    ``x H`` costs ``order**2`` multiply-adds with the whole matrix and ``order * (first + second)`` with the pair.

    Returns:
        ``(first, second)`` with ``hadamard_matrix(order) == kron(hadamard_matrix(first), hadamard_matrix(second))``;
        ``(1, order)`` if the order does not split.

    Raises:
        ValueError: No matrix of this order is known here.
    """
    return _known_split(order).pair


def largest_hadamard_order(width: int) -> int:
    """Return the largest divisor of a width that has a Hadamard matrix, at least 1.

    Raises:
        ValueError: The width is not positive.
    """
    if width < 1:
        raise ValueError(f"a width of {width} channels has no divisors; it must be at least 1")
    return max(order for order in _divisors(width) if has_hadamard(order))


def _squarest_pair(order: int) -> tuple[int, int] | None:
    """Return the most nearly square pair of Hadamard orders above 1 with this product; None if there is none."""
    divisors = reversed([divisor for divisor in _divisors(order) if 1 < divisor <= isqrt(order)])
    return next(((one, order // one) for one in divisors if has_hadamard(one) and has_hadamard(order // one)), None)


def sylvester_part(order: int) -> int:
    """Return the largest p with ``hadamard_matrix(order) == kron(hadamard_matrix(order // p), S)``, S Sylvester's.

    It is a power of two, 1 where a product of two other matrices is cheaper and p were below 16.

    Raises:
        ValueError: No matrix of this order is known here.
    """
    return _known_split(order).part


class _Split(NamedTuple):
    """How a matrix is made.

    Attributes:
        pair: Orders of its two factors; the first is 1 if it is built directly.
        part: See `sylvester_part`.
    """

    pair: tuple[int, int]
    part: int


def _known_split(order: int) -> _Split:
    split = _split(order) if order >= 1 else None
    if split is None:
        raise ValueError(
            f"no Hadamard matrix of order {order} is known here (orders are 1, 2 and most multiples of 4); "
            f"the largest order that divides {order} is {largest_hadamard_order(order) if order > 0 else 'none'}"
        )
    return split


@lru_cache(maxsize=4096)
def _split(order: int) -> _Split | None:
    if order > 2 and order % 4:
        return None
    squarest = _squarest_pair(order)
    powers = [divisor for divisor in _divisors(order) if divisor & (divisor - 1) == 0]
    part = next((power for power in reversed(powers) if power > 1 and has_hadamard(order // power)), 1)
    if part > 1:
        rest = order // part
        # The left factor has to be made with Sylvester's matrix on its right as well, or the two do not make up `part`.
        fitting = (power for power in powers if power < part and (power == 1 or sylvester_part(rest * power) == power))
        pair = min(((rest * power, part // power) for power in fitting), key=sum)
        if part >= _WORTH_A_FAST_TRANSFORM or squarest is None or sum(pair) <= sum(squarest):
            return _Split(pair, part)
    if squarest is not None:
        return _Split(squarest, 1)
    return _Split((1, order), 1) if order <= 2 or _paley_field(order) else None


def _divisors(number: int) -> list[int]:
    """Return all divisors in ascending order."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def _paley_field(order: int) -> int | None:
    """Return the size of the field over which a Paley construction gives this order."""
    if order % 4 == 0 and _prime_of_power(order - 1):
        return order - 1
    if order % 8 == 4 and _prime_of_power(order // 2 - 1):
        return order // 2 - 1
    return None


def _prime_of_power(number: int) -> int | None:
    """Return the prime of which a number is a power, None if it is not one."""
    if number < 2:
        return None
    prime = next((divisor for divisor in range(2, isqrt(number) + 1) if number % divisor == 0), number)
    while number % prime == 0:
        number //= prime
    return prime if number == 1 else None


def _indivisible(order: int) -> Array:
    """Return the matrix of plus and minus ones of an order that is not a product."""
    if order == 1:
        return np.ones((1, 1))
    sylvester = np.array([[1.0, 1.0], [1.0, -1.0]])
    if order == 2:
        return sylvester
    if order == 12:
        return _of_williamson()
    if order == 36:
        return _of_latin_square()
    size = _paley_field(order)
    assert size is not None, "callers ask only for orders that _split allows"
    if order == size + 1:
        return np.eye(order) + _conference_matrix(size)
    # A symmetric conference matrix C has a zero diagonal: its zeros and its signs become two different 2 x 2 blocks.
    signs = np.kron(_conference_matrix(size), sylvester)
    diagonal = np.kron(np.eye(size + 1), [[1.0, -1.0], [-1.0, -1.0]])
    return np.asarray(signs + diagonal, dtype=np.float64)


def _of_williamson() -> Array:
    """Return the matrix of order 12: blocks of 3 x 3, J on the diagonal, and plus or minus ``J - 2 I`` beside it."""
    # A skew Hadamard matrix: its signs off the diagonal are antisymmetric.
    signs = np.array([[1, 1, 1, 1], [-1, 1, -1, 1], [-1, 1, 1, -1], [-1, -1, 1, 1]], dtype=np.float64)
    beside = np.kron(signs - np.eye(4), np.ones((3, 3)) - 2 * np.eye(3))
    return np.asarray(np.kron(np.eye(4), np.ones((3, 3))) + beside, dtype=np.float64)


def _of_latin_square() -> Array:
    """Return the matrix of order 36, over the cells (i, j) of a square of 6 x 6.

    Two different cells have a minus where they share the row, the column or the letter ``(i + j) mod 6``; they share
    one of these at most. So it is ``J - 2 (R + C + L - 3 I)`` with ones in R, C and L where cells share them.
    """
    rows, columns = np.divmod(np.arange(36), 6)
    shared = [np.equal.outer(label, label) for label in (rows, columns, (rows + columns) % 6)]
    return np.asarray(1.0 - 2 * (np.sum(shared, axis=0) - 3 * np.eye(36)), dtype=np.float64)


def _conference_matrix(size: int) -> Array:
    """Return C of order ``size + 1`` with ``C C^T = size I``; antisymmetric for size = 3 mod 4, else symmetric."""
    prime = _prime_of_power(size)
    assert prime is not None, "Paley's fields have prime power sizes"
    powers = _powers_of_generator(size, prime)
    weights = prime ** np.arange(powers.shape[1])  # an element's number is its digits in base `prime`
    character = np.zeros(size)
    character[powers @ weights] = np.where(np.arange(size - 1) % 2, -1.0, 1.0)  # even powers are the squares
    digits = np.arange(size)[:, None] // weights % prime
    difference = np.zeros((size, size), dtype=np.int64)
    for digit, weight in zip(digits.T, weights, strict=True):
        difference += (digit[:, None] - digit) % prime * weight
    conference = np.zeros((size + 1, size + 1))
    conference[0, 1:] = 1.0
    conference[1:, 0] = -1.0 if size % 4 == 3 else 1.0
    conference[1:, 1:] = character[difference]
    return conference


def _powers_of_generator(size: int, prime: int) -> NDArray[np.int64]:
    """Return ``g^0, g^1, ...``, all nonzero elements of the field, as digits of polynomials, shape (size - 1, degree).

    The field is the integers mod `prime` with g added, where ``g^degree = sum_i tail_i g^i``. Tails are tried until
    the powers of g come back to 1 only after all nonzero elements.
    """
    degree = round(math.log(size, prime))
    one = (1,) + (0,) * (degree - 1)
    for tail in itertools.product(range(prime), repeat=degree):
        element = one
        powers: list[tuple[int, ...]] = []
        while len(powers) < size - 1 and (not powers or element != one):
            powers.append(element)
            shifted = (0, *element[:-1])
            element = tuple((low + element[-1] * fold) % prime for low, fold in zip(shifted, tail, strict=True))
        if len(powers) == size - 1 and element == one:
            return np.array(powers, dtype=np.int64)
    raise AssertionError(f"the field of {size} elements has a generator")
