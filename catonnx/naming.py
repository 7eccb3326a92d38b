"""Short names for many layers that are alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_APPENDED = re.compile(r"_\d+$")
_WORD = re.compile(r"[A-Za-z]\d+$")
_OPERATORS = ("Gemm", "MatMul")
_SEPARATORS = re.compile(r"([/.])")


def without_numbers(text: str) -> str:
    """Return a name or a reason with its numbers left out: what repeats from layer to layer."""
    return re.sub(r"\d+", "*", text)


def kind_of(names: Sequence[str]) -> str:
    """Return one name for linears of one site: numbers left out, `a/q/M` and `a/k/M` joined to `a/{q,k}/M`.

    A number that some exporters append to make a name unique says nothing at all: `linear` and `linear_7` are one kind.
    One that is part of the last word tells linears of one layer apart: `fc1` and `fc2` are two kinds.
    """
    kinds = list(dict.fromkeys(map(_kind, names)))
    if len(kinds) < 2:
        return "".join(kinds)
    split = [_SEPARATORS.split(kind) for kind in kinds]
    if len({len(parts) for parts in split}) > 1:
        return ", ".join(kinds)
    columns = (tuple(dict.fromkeys(column)) for column in zip(*split, strict=True))
    return "".join(column[0] if len(column) == 1 else "{" + ",".join(column) + "}" for column in columns)


def _kind(name: str) -> str:
    parts = _SEPARATORS.split(_APPENDED.sub("", name))
    own = max((index for index, part in enumerate(parts[::2]) if part not in _OPERATORS), default=0) * 2
    kept = parts[own] if _WORD.search(parts[own]) else without_numbers(parts[own])
    return "".join([*map(without_numbers, parts[:own]), kept, *parts[own + 1 :]])


def shortened(names: Sequence[str]) -> list[str]:
    """Return names without the path components that all of them begin or end with; at least one component is left."""
    if len(set(names)) < 2:
        return list(names)
    split = [name.strip("/").split("/") for name in names]
    shortest = min((len(parts) for parts in split), default=0)
    first = _shared([parts[: shortest - 1] for parts in split])
    last = _shared([parts[first:][::-1][: shortest - first - 1] for parts in split])
    return ["/".join(parts[first : len(parts) - last]) for parts in split]


def summed_up(texts: Iterable[str]) -> list[tuple[str, int]]:
    """Return texts and how often each occurs, the most frequent first; what differs in numbers only counts as one."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(without_numbers(text), []).append(text)
    largest_first = sorted(groups.values(), key=len, reverse=True)
    return [(in_common(group), len(group)) for group in largest_first]


def in_common(texts: Sequence[str]) -> str:
    """Return what texts say that differ in numbers at most: numbers are left out where they differ."""
    return texts[0] if len(set(texts)) == 1 else without_numbers(texts[0])


def _shared(lists: Sequence[Sequence[str]]) -> int:
    """Return how many leading elements are the same in all lists."""
    count = 0
    for column in zip(*lists, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count
