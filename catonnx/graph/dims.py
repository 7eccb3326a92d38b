"""Lengths of axes as products of symbols: enough algebra to see through the reshapes that exporters write.

A length is an integer times a product of named symbols, `3 * batch * seq`. Sums of different symbols become a symbol of
their own, so that equal sums stay equal. Every symbol stands for an unknown integer >= 0.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from itertools import count

_fresh = count()


@dataclasses.dataclass(frozen=True)
class Dim:
    """`coefficient * symbols[0] * symbols[1] ...`, symbols sorted."""

    coefficient: int
    symbols: tuple[str, ...] = ()

    @property
    def value(self) -> int | None:
        """The length, if it is a known integer."""
        return None if self.symbols else self.coefficient

    def __str__(self) -> str:
        factors = [*self.symbols] if self.coefficient == 1 and self.symbols else [str(self.coefficient), *self.symbols]
        return "*".join(factors)


def unknown() -> Dim:
    """Return a length that equals nothing but itself."""
    return Dim(1, (f"?{next(_fresh)}",))


def symbol(name: str) -> Dim:
    """Return the length called `name`."""
    return Dim(1, (name,))


def multiply(left: Dim, right: Dim) -> Dim:
    """Return left * right."""
    coefficient = left.coefficient * right.coefficient
    return Dim(coefficient, tuple(sorted(left.symbols + right.symbols)) if coefficient else ())


def product(dims: Iterable[Dim]) -> Dim:
    """Return the product of all `dims`, 1 for none."""
    result = Dim(1)
    for dim in dims:
        result = multiply(result, dim)
    return result


def divide(left: Dim, right: Dim) -> Dim | None:
    """Return left / right if it is exact, else None."""
    if right.coefficient == 0 or left.coefficient % right.coefficient:
        return None
    rest = Counter(left.symbols)
    rest.subtract(right.symbols)
    if any(number < 0 for number in rest.values()):
        return None
    return Dim(left.coefficient // right.coefficient, tuple(sorted(rest.elements())))


def add(left: Dim, right: Dim, sign: int = 1) -> Dim:
    """Return left + sign * right; a sum of unlike terms is a new symbol with a canonical name."""
    if left.symbols == right.symbols:
        coefficient = left.coefficient + sign * right.coefficient
        return Dim(coefficient, left.symbols if coefficient else ())
    if right.coefficient == 0:
        return left
    if left.coefficient == 0 and sign == 1:
        return right
    if sign == 1:
        left, right = sorted((left, right), key=str)
    return symbol(f"({left} {'+' if sign == 1 else '-'} {right})")


def broadcast(left: Dim, right: Dim) -> Dim:
    """Return the length of an axis that both broadcast to."""
    if left == right or right.value == 1:
        return left
    if left.value == 1:
        return right
    if left.value is not None or right.value is not None:
        return left if left.value is not None else right
    return unknown()


def groups(left: tuple[Dim, ...], right: tuple[Dim, ...]) -> list[tuple[range, range]]:
    """Cut two shapes of one tensor into runs of axes with equal products, from the last axis on, as short as possible.

    A reshape is row-major, so what lies right of an aligned cut moves only within itself, whatever happens to its left.

    Args:
        left: Shape before a Reshape.
        right: Shape after it.

    Returns:
        Pairs of axis ranges, the last axes first. Axes of one pair are only reshaped among themselves; what cannot be
        told apart from either end stays together in one pair, whose products need not be known to be equal.
    """
    result = _cut(left, right)
    if result and product(left[axis] for axis in result[-1][0]) != product(right[axis] for axis in result[-1][1]):
        # What lies right of it is aligned, so the same holds from the first axis on.
        stops = [span.stop for span in result.pop()]
        front = _cut(*(shape[:stop][::-1] for shape, stop in zip((left, right), stops, strict=True)))
        turned = ([range(stop - s.stop, stop - s.start) for s, stop in zip(p, stops, strict=True)] for p in front)
        result += reversed([(first, second) for first, second in turned])
    return result


def _cut(left: tuple[Dim, ...], right: tuple[Dim, ...]) -> list[tuple[range, range]]:
    """Cut two shapes from the last axis on; the last pair holds what is left over."""
    result: list[tuple[range, range]] = []
    i, j = len(left), len(right)
    while i or j:
        start_i, start_j = i, j
        size_left = size_right = Dim(1)
        while i or j:
            take_left = i and (not j or i == start_i or (j != start_j and divide(size_left, size_right) is None))
            if take_left:
                i -= 1
                size_left = multiply(size_left, left[i])
            else:
                j -= 1
                size_right = multiply(size_right, right[j])
            if size_left == size_right and size_left.coefficient:
                break
        result.append((range(i, start_i), range(j, start_j)))
    return result
