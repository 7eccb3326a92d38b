"""The measurements of `tools/gpu_check`: each takes the versions of one model and returns rows for its table."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

import catonnx
from catonnx.runtime.decoding import Decoder
from catonnx.runtime.divergence import ValueDifference
from catonnx.runtime.evaluate import disk_bytes
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.fusion import fused_ops
from catonnx.runtime.library import open_model
from catonnx.runtime.sessions import open_session
from tools import runtime_models
from tools.bench_runtime import Sizes
from tools.llama_shape import LlamaShape, write_llama, write_random_feeds
from tools.placement import placement
from tools.runtime_models import Subject
from tools.tables import Row, attempt

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_PRODUCTS = ("MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat", "QuantizedMatMul")
"""What linears are after ONNX Runtime's optimization."""

_EXACT = {"session.qdq_matmulnbits_accuracy_level": "0"}
"""On the CPU, MatMulNBits rounds activations to int8 unless told not to; on CUDA it never does."""

_TOLERANCE = 2e-2
"""Relative L2 between the logits of two providers in float16. With rounded activations none is demanded: where one
provider's last digit turns a code over, everything behind it differs."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured on one model.

    Attributes:
        name: Of the model, for the table.
        shape: Its sizes.
        versions: What is made of it, beside onnxruntime's own int4 and int8; see `runtime_models.recipes`.
        prefill: Tokens taken in at once.
        sizes: How much is timed.
        rounding: How scales are chosen.
        samples: Calibration texts.
        seq_len: Tokens in each.
    """

    name: str
    shape: LlamaShape
    versions: tuple[str, ...]
    prefill: int
    sizes: Sizes
    rounding: str = "nearest"
    samples: int = 2
    seq_len: int = 64


def make(plan: Plan, provider: str, folder: Path) -> tuple[list[Row], Subject, dict[str, Path]]:
    """Write the model and its versions; return rows, the model, and the path of each by name."""
    begin = time.perf_counter()
    subject = runtime_models.random_subject(
        plan.name,
        plan.shape,
        folder,
        tokens=plan.prefill,
        samples=plan.samples,
        seq_len=plan.seq_len,
        rounding=plan.rounding,
        provider=provider,
    )
    shown = f"{disk_bytes(subject.folder / 'model.onnx') / 1e6:.0f} MB in {time.perf_counter() - begin:.0f} s"
    rows = [Row(plan.name, "model written", shown, values=dataclasses.asdict(plan.shape))]
    paths = runtime_models.make(subject, folder / "made", runtime_models.recipes(plan.versions))
    return rows + [_optimized(plan, name, paths[name]) for name in plan.versions], subject, paths


def narrowed(plan: Plan, provider: str, folder: Path) -> list[Row]:
    """Write the model in float32, let it become float16 and 4-bit, and see that it computes the same, in one place."""
    source, feeds, out = folder / "float32", folder / "feeds.npz", folder / "narrowed"
    source.mkdir(parents=True)
    write_llama(plan.shape, source, dtype=ir.DataType.FLOAT)
    write_random_feeds(plan.shape, feeds, plan.samples, plan.seq_len, dtype=ir.DataType.FLOAT)
    recipe = catonnx.Recipe(
        form="nbits",
        dtype="float16",
        calibration=str(feeds),
        samples=plan.samples,
        rounding=plan.rounding,  # type: ignore[arg-type]
        provider=provider,  # type: ignore[arg-type]
    )
    report = catonnx.optimize(source, out, recipe)
    difference = report.verification["transform_relative_l2"]
    graph = fused_ops(out / "model.onnx", provider, folder=folder)
    copies = sum(number for kind, number in graph.operators.items() if kind.startswith("Memcpy"))
    casts = f"{graph.operators['Cast']} Casts, {sum(graph.operators.values())} nodes, {copies} copies"
    shown = f"relative L2 {difference:.1e}; {'; '.join(report.narrowed)}"
    operators = {"operators": dict(graph.operators)}
    return [
        Row(plan.name, "float32 to float16", shown, f"<= {_TOLERANCE:.0e}", difference <= _TOLERANCE),
        Row(plan.name, "float32 to float16: graph", casts, "0 copies", copies == 0, operators),
    ]


def _optimized(plan: Plan, name: str, path: Path) -> Row:
    report = runtime_models.report_of(path)
    deployed = report["verification"]["deployed"]["as deployed"]
    found, seconds = sum(len(row["linears"]) for row in report["sites"]), sum(report["steps"].values())
    size = f"{report['size_after'] / 1e6:.0f} MB in {seconds:.0f} s, SQNR of logits {deployed['sqnr_db']} dB"
    return Row(
        plan.name,
        f"optimized: {name}",
        f"{found} linears, {size}",
        f"{plan.shape.linears} linears",
        found == plan.shape.linears,
        {"seconds": seconds, "verification": report["verification"], "steps": report["steps"]},
    )


def fusion(plan: Plan, provider: str, paths: Mapping[str, Path], scratch: Path) -> list[Row]:
    """Count the linears that multiply codes, and the copies that ONNX Runtime put between devices."""
    rows = []
    for name in plan.versions:
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


def where(plan: Plan, provider: str, subject: Subject, paths: Mapping[str, Path]) -> list[Row]:
    """Say on which provider the nodes ran; a model that does not run is a row, too."""
    return _each(plan, "nodes: {}", subject, lambda name: _placed(plan, provider, subject, name, paths[name]))


def _placed(plan: Plan, provider: str, subject: Subject, name: str, path: Path) -> Row:
    found = placement(path, provider, subject.tokens[:32])
    nodes = ", ".join(f"{count} {where.removesuffix('ExecutionProvider')}" for where, count in found.nodes.items())
    examples = f"; elsewhere: {', '.join(found.strangers[:3])}" if found.strangers else ""
    return Row(
        plan.name,
        f"nodes: {name}",
        f"{nodes}, {found.copies} copies{examples}",
        f"all on {provider}, 0 copies",
        not found.strangers and found.copies == 0,
        dataclasses.asdict(found),
    )


def agreement(plan: Plan, provider: str, subject: Subject, paths: Mapping[str, Path]) -> list[Row]:
    """Compare logits of a text and of four tokens decoded after it with those that the CPU computes.

    The CPU computes the functions of our operators, the provider runs our kernels.
    """
    what = f"{provider} against cpu: {{}}"
    return _each(plan, what, subject, lambda name: _compared(plan, provider, subject, name, paths[name]))


def _compared(plan: Plan, provider: str, subject: Subject, name: str, path: Path) -> Row:
    bounded = name == subject.dtype or "w4a16" in name
    difference = ValueDifference()
    sessions = (
        open_session(path, provider="cpu", config=_EXACT),
        open_model(path, provider=provider, config=_EXACT),
    )
    expected, actual = (_logits(session, subject.tokens[:36]) for session in sessions)
    difference.add(expected, actual)
    error = difference.relative_l2
    same = float(np.mean(expected.argmax(-1) == actual.argmax(-1)))
    return Row(
        plan.name,
        f"{provider} against cpu: {name}",
        f"relative L2 {error:.1e}, same top token {100 * same:.0f} %",
        f"<= {_TOLERANCE:.0e}" if bounded else "",
        error <= _TOLERANCE if bounded else None,
        {"relative_l2": error, "top1_agreement": same},
    )


def _each(plan: Plan, what: str, subject: Subject, measure: Callable[[str], Row]) -> list[Row]:
    """Measure the model and its versions; what fails is a row named `what` of it."""
    rows = []
    for name in (subject.dtype, *plan.versions):
        rows += attempt(plan.name, what.format(name), lambda name=name: [measure(name)])  # type: ignore[misc]
    return rows


def _logits(session: InferenceSession, tokens: np.ndarray) -> np.ndarray:
    """Return float32 [tokens, vocabulary]: all but the last four at once, those one by one."""
    decoder = Decoder(session, InputSpec.from_session(session))
    parts = [tokens[:-4], *(tokens[at : at + 1] for at in range(len(tokens) - 4, len(tokens)))]
    logits: np.ndarray = np.concatenate([decoder.step(part[np.newaxis])[0].astype(np.float32) for part in parts])
    return logits
