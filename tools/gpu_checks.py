"""The measurements of `tools/gpu_check`: each takes the variants of one model and returns rows for its table."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from catonnx import Recipe, Report, optimize
from catonnx.runtime.decoding import Decoder
from catonnx.runtime.divergence import ValueDifference
from catonnx.runtime.evaluate import disk_bytes
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.fusion import fused_ops
from catonnx.runtime.library import open_model
from catonnx.runtime.sessions import open_session
from tools.llama_shape import LlamaShape, random_tokens, write_llama, write_random_feeds
from tools.machine import graphics_memory_used
from tools.placement import placement
from tools.stepping import Runner, Variant, median_ratio, open_runner, take_turns
from tools.tables import Row

FLOAT, PLAIN, CAT, OPERATORS, INTEGER = "fp16", "int4 plain", "int4 catonnx", "int4 operators", "w4a4 integer"

_RECIPES: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {"transform": "none"},
    CAT: {"transform": "cat"},
    OPERATORS: {"transform": "cat", "form": "op", "provider": "cpu"},  # what it writes runs everywhere
    INTEGER: {"scheme": "w4a4", "form": "integer", "group_size": None, "activation_range": "symmetric"},
}

_PRODUCTS = ("MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat")
"""What linears are after ONNX Runtime's optimization."""

_EXACT = {"session.qdq_matmulnbits_accuracy_level": "0"}
"""On the CPU, MatMulNBits rounds activations to int8 unless told not to; on CUDA it never does."""

_CUTLASS = {"ep.cuda.fpa_intb_gemm": "1"}
"""Another kernel for MatMulNBits, which ONNX Runtime takes only on demand."""

_DECODE_BOUND = 0.97
"""Tokens a second with transforms by our operators, over those without transforms: transforms cost next to nothing."""

_TOLERANCE = 2e-2
"""Relative L2 between the logits of two providers in float16. With activations in 4 bits none is demanded: where one
provider's last digit turns a code over, everything behind it differs."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured on one model.

    Attributes:
        name: Of the model, for the table.
        shape: Its sizes.
        rounding: How scales are chosen; `nearest` is many times faster, and speed does not hang on it.
        samples: Calibration texts.
        seq_len: Tokens in each.
        prefill: Tokens taken in at once.
        decoded: Tokens decoded in a round.
        rounds: Timed rounds.
    """

    name: str
    shape: LlamaShape
    rounding: str
    samples: int
    seq_len: int
    prefill: int
    decoded: int
    rounds: int
    integer: bool = False
    """Whether integer products are measured, too."""

    @property
    def rounded(self) -> tuple[str, ...]:
        """Names of the models that are made."""
        return (PLAIN, CAT, OPERATORS, INTEGER) if self.integer else (PLAIN, CAT, OPERATORS)


def make(plan: Plan, provider: str, folder: Path) -> tuple[list[Row], dict[str, Path]]:
    """Write the model and both int4 versions; return rows and the path of each by name."""
    source = folder / "source"
    source.mkdir()
    begin = time.perf_counter()
    paths = {FLOAT: write_llama(plan.shape, source)}
    feeds = folder / "feeds.npz"
    write_random_feeds(plan.shape, feeds, plan.samples, plan.seq_len)
    shown = f"{disk_bytes(paths[FLOAT]) / 1e6:.0f} MB in {time.perf_counter() - begin:.0f} s"
    rows = [Row(plan.name, "model written", shown, values=dataclasses.asdict(plan.shape))]
    for number, name in enumerate(plan.rounded):
        wishes: dict[str, Any] = {
            "rounding": plan.rounding,
            "calibration": str(feeds),
            "samples": plan.samples,
            "provider": provider,
        }
        recipe = Recipe(**{**wishes, **_RECIPES[name]})
        begin = time.perf_counter()
        report = optimize(source, folder / f"rounded-{number}", recipe)
        rows.append(_optimized(plan, name, report, time.perf_counter() - begin))
        paths[name] = folder / f"rounded-{number}" / "model.onnx"
    return rows, paths


def _optimized(plan: Plan, name: str, report: Report, seconds: float) -> Row:
    deployed = report.verification["deployed"]["as deployed"]
    found = sum(len(row.linears) for row in report.sites)
    size = f"{report.size_after / 1e6:.0f} MB in {seconds:.0f} s, SQNR of logits {deployed['sqnr_db']} dB"
    return Row(
        plan.name,
        f"optimized: {name}",
        f"{found} linears, {size}",
        f"{plan.shape.linears} linears",
        found == plan.shape.linears,
        {"seconds": seconds, "verification": report.verification, "steps": dict(report.steps)},
    )


def fusion(plan: Plan, provider: str, paths: Mapping[str, Path], scratch: Path) -> list[Row]:
    """Count the linears that multiply codes, and the copies that ONNX Runtime put between devices."""
    rows = []
    for name in plan.rounded:
        graph = fused_ops(paths[name], provider, folder=scratch)
        count = sum(graph.operators[operator] for operator in _PRODUCTS)
        copies = sum(number for kind, number in graph.operators.items() if kind.startswith("Memcpy"))
        rows.append(
            Row(
                plan.name,
                f"low-bit products: {name}",
                f"{count} of {plan.shape.linears}, {sum(graph.operators.values())} nodes, {copies} copies",
                "all, 0 copies",
                count == plan.shape.linears and copies == 0,
                {"operators": dict(graph.operators), "unfused": list(graph.unfused)},
            )
        )
    return rows


def where(plan: Plan, provider: str, paths: Mapping[str, Path]) -> list[Row]:
    """Say on which provider the nodes ran."""
    rows = []
    tokens = _tokens(plan, 32)
    for name, path in paths.items():
        found = placement(path, provider, tokens)
        nodes = ", ".join(f"{count} {where.removesuffix('ExecutionProvider')}" for where, count in found.nodes.items())
        examples = f"; elsewhere: {', '.join(found.strangers[:3])}" if found.strangers else ""
        rows.append(
            Row(
                plan.name,
                f"nodes: {name}",
                f"{nodes}, {found.copies} copies{examples}",
                f"all on {provider}, 0 copies",
                not found.strangers and found.copies == 0,
                dataclasses.asdict(found),
            )
        )
    return rows


def agreement(plan: Plan, provider: str, paths: Mapping[str, Path]) -> list[Row]:
    """Compare logits of a text and of four tokens decoded after it with those that the CPU computes.

    The CPU computes the functions of our operators, the provider runs our kernels.
    """
    rows = []
    tokens = _tokens(plan, 36)
    for name, path in paths.items():
        difference = ValueDifference()
        expected, actual = (_logits(path, where, tokens) for where in ("cpu", provider))
        difference.add(expected, actual)
        error = difference.relative_l2
        same = float(np.mean(expected.argmax(-1) == actual.argmax(-1)))
        rows.append(
            Row(
                plan.name,
                f"{provider} against cpu: {name}",
                f"relative L2 {error:.1e}, same top token {100 * same:.0f} %",
                "" if name == INTEGER else f"<= {_TOLERANCE:.0e}",
                None if name == INTEGER else error <= _TOLERANCE,
                {"relative_l2": error, "top1_agreement": same},
            )
        )
    return rows


def speed(plan: Plan, provider: str, paths: Mapping[str, Path]) -> list[Row]:
    """Time decode and prefill of all variants in turns, and what each takes of the graphics memory."""
    variants = {name: Variant(path, {}) for name, path in paths.items()}
    if provider == "cuda":
        variants |= {f"{name}, fpA_intB": Variant(paths[name], _CUTLASS) for name in (PLAIN, CAT)}
    tokens = _tokens(plan, plan.prefill)
    runners: dict[str, Runner] = {}
    memory: dict[str, float | None] = {}
    for name, variant in variants.items():
        before = graphics_memory_used() if provider == "cuda" else None
        runners[name] = open_runner(variant, provider)
        runners[name].step(tokens[np.newaxis])
        after = graphics_memory_used() if provider == "cuda" else None
        memory[name] = None if before is None or after is None else after - before
    context = min(128, plan.prefill // 2)
    times = take_turns(runners, tokens, rounds=plan.rounds, context=context, decoded=min(plan.decoded, context - 1))
    rows = []
    for name, own in times.items():
        prefill, decode = statistics.median(own.prefill), statistics.median(own.decode)
        over_float = median_ratio(times[FLOAT].decode, own.decode), median_ratio(times[FLOAT].prefill, own.prefill)
        over_plain = median_ratio(times[PLAIN].decode, own.decode), median_ratio(times[PLAIN].prefill, own.prefill)
        shown = f"decode {1 / decode:.0f} tokens/s, prefill of {plan.prefill} {1e3 * prefill:.1f} ms"
        if name != FLOAT:
            shown += f"; x fp16: {over_float[0]:.2f} and {over_float[1]:.2f}"
        if name not in (FLOAT, PLAIN):
            shown += f"; x plain: {over_plain[0]:.2f} and {over_plain[1]:.2f}"
        taken = memory[name]
        shown += "" if taken is None else f"; {taken:.0f} MiB"
        values = {
            "prefill_seconds": own.prefill,
            "decode_seconds": own.decode,
            "decode_and_prefill_over_fp16": over_float,
            "decode_and_prefill_over_plain": over_plain,
            "memory_mib": taken,
        }
        bounded = provider == "cuda" and name == OPERATORS
        bound, met = (f"decode >= {_DECODE_BOUND} x plain", over_plain[0] >= _DECODE_BOUND) if bounded else ("", None)
        rows.append(Row(plan.name, f"speed: {name}", shown, bound, met, values))
    return rows


def _tokens(plan: Plan, count: int) -> np.ndarray:
    tokens: np.ndarray = random_tokens(plan.shape, count, np.random.default_rng(1))[0]
    return tokens


def _logits(path: Path, provider: str, tokens: np.ndarray) -> np.ndarray:
    """Return float32 [tokens, vocabulary]: all but the last four at once, those one by one."""
    if provider == "cpu":
        session = open_session(path, provider=provider, config=_EXACT)
    else:
        session = open_model(path, provider=provider)
    decoder = Decoder(session, InputSpec.from_session(session))
    parts = [tokens[:-4], *(tokens[at : at + 1] for at in range(len(tokens) - 4, len(tokens)))]
    logits: np.ndarray = np.concatenate([decoder.step(part[np.newaxis])[0].astype(np.float32) for part in parts])
    return logits
