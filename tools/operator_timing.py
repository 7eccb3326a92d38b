"""Times of models of one operator, for `bench_ops` and `bench_products`: sessions, instruction sets, turns."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime

from catonnx.errors import RuntimeUnavailableError
from catonnx.ops import register

INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512vnni", "amx", "neon", "neondot")

_ENOUGH_SECONDS = 1e-3
"""Of one timing: what takes less is repeated."""

Runner = Callable[[], None]


def known_instruction_sets() -> list[str]:
    """Return those that this processor and the library have, the best one last.

    Raises:
        RuntimeUnavailableError: there is no library.
    """
    return [name for name in INSTRUCTION_SETS if _has(name)]


def _has(instruction_set: str) -> bool:
    try:
        session_options(instruction_set, 1)
    except RuntimeUnavailableError as error:
        if "this processor has" in str(error):
            return False
        raise
    return True


def session_options(instruction_set: str | None, threads: int) -> onnxruntime.SessionOptions:
    """Return options of a session with our library, which uses an instruction set; without it if that is None."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    if instruction_set is None:
        return made
    before = os.environ.get("CATONNX_ISA")
    os.environ["CATONNX_ISA"] = instruction_set
    try:
        register(made)
    finally:
        if before is None:
            del os.environ["CATONNX_ISA"]
        else:
            os.environ["CATONNX_ISA"] = before
    return made


def opened(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], chosen: onnxruntime.SessionOptions
) -> tuple[Runner, list[np.ndarray]]:
    """Return what runs a model on arrays, and the results of a first run.

    Results have places of their own: nothing is allocated while the clock runs.
    """
    session = onnxruntime.InferenceSession(model.SerializeToString(), chosen, providers=["CPUExecutionProvider"])
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
    binding = session.io_binding()
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    places = binding.get_outputs()
    for output, place in zip(session.get_outputs(), places, strict=True):
        binding.bind_ortvalue_output(output.name, place)

    def run() -> None:
        assert held  # the session reads from them
        session.run_with_iobinding(binding)

    return run, [place.numpy() for place in places]


def take_turns(runners: Mapping[str, Runner], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of one run in each round, by name."""
    repeats = {name: max(1, round(_ENOUGH_SECONDS / _seconds(runner, 3))) for name, runner in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            times[name].append(_seconds(runner, repeats[name]))
    return times


def _seconds(runner: Runner, repeats: int) -> float:
    begun = time.perf_counter()
    for _ in range(repeats):
        runner()
    return (time.perf_counter() - begun) / repeats


def ratios(own: list[float], other: list[float], share: float = 1.0) -> tuple[float, float, float]:
    """Return the median of own / (share other) over the rounds, the least and the most."""
    each = [time / (share * floor) for time, floor in zip(own, other, strict=True)]
    return statistics.median(each), min(each), max(each)
