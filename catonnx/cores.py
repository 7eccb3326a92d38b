"""How many threads are worth starting."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return the number of cores that this process may run on; a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
