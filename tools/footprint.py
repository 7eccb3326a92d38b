"""What a session of a language model takes of the memory; measured in a process of its own, see `tools.child`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from catonnx.runtime.probe import why_not
from tools.machine import graphics_memory_used
from tools.stepping import Runner, Variant, open_runner

_STEPS = 8

_EXACT_WEIGHTS = {"session.use_device_allocator_for_initializers": "1"}
"""On CUDA weights are allocated one by one: in the arena, which doubles what it takes, sizes would be powers of two."""


def occupy(model: str, provider: str, tokens: list[int]) -> dict[str, Any]:
    """Open a model, take in a text and decode some tokens more; say how many bytes that took.

    A session of one node runs before that: what the runtime and the device need for themselves does not count.

    Args:
        model: The .onnx file, with a cache.
        provider: "cpu" measures the resident memory of this process, "cuda" what all processes take of the first card.
        tokens: The text; its last token is decoded again and again.

    Returns:
        `loaded` and `after_runs`, in bytes, None if not told here; for the CPU `peak`, `anonymous` and `file`, too: of
        the resident memory after the runs, what is no page of a file, and what is.
    """
    why_not(provider)
    return _on_card(Path(model), tokens) if provider == "cuda" else _here(Path(model), tokens)


def _on_card(model: Path, tokens: list[int]) -> dict[str, Any]:
    before = graphics_memory_used()
    runner = open_runner(Variant(model, _EXACT_WEIGHTS), "cuda")
    loaded = graphics_memory_used()
    _use(runner, tokens)
    after = graphics_memory_used()
    return {
        name: None if before is None or now is None else int((now - before) * 2**20)
        for name, now in (("loaded", loaded), ("after_runs", after))
    }


def _here(model: Path, tokens: list[int]) -> dict[str, Any]:
    before = _status()
    runner = open_runner(Variant(model, {}))
    loaded = _status()
    _use(runner, tokens)
    after = _status()

    def grown(now: dict[str, int], field: str, base: str) -> int | None:
        return now[field] - before[base] if field in now and base in before else None

    return {
        "loaded": grown(loaded, "VmRSS", "VmRSS"),
        "after_runs": grown(after, "VmRSS", "VmRSS"),
        "peak": grown(after, "VmHWM", "VmRSS"),
        "anonymous": grown(after, "RssAnon", "RssAnon"),
        "file": grown(after, "RssFile", "RssFile"),
    }


def _use(runner: Runner, tokens: list[int]) -> None:
    text = np.array([tokens], np.int64)
    runner.step(text)
    for _ in range(_STEPS):
        runner.step(text[:, -1:])


def _status() -> dict[str, int]:
    """Return the fields of /proc/self/status that are sizes, in bytes; none where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in fields}
