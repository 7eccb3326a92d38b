"""How long work tells that it moves on: a callback, so that no room has to know a terminal."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as ``progress(step, done, total)``; ``done == total`` ends the step."""


def silent(step: str, done: int, total: int) -> None:
    """Report nothing."""
