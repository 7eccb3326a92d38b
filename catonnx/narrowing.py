"""A float32 model as the float16 model that a recipe wants, before anything else is done to it.

    constants beyond float16 bounded  ->  ranges of all values measured  ->  what stays in float32 decided  ->  Casts

The source stays the reference that everything is compared with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from catonnx.analysis import Opened, analyse
from catonnx.graph import load
from catonnx.graph.absorb_walk import PRESENT_VALUES, continued_input
from catonnx.graph.element_types import FLOAT
from catonnx.graph.precision import HEADROOM, LARGEST, Precision
from catonnx.graph.ranges import with_ranges
from catonnx.passes.bound_masks import BoundMasks
from catonnx.passes.narrow import Narrow
from catonnx.progress import Progress
from catonnx.runtime.decoding import is_cache_name
from catonnx.runtime.feeds import Feeds
from catonnx.runtime.running import Request, Unwritten, opened

_MOVING = frozenset(
    "Cast Concat Dropout Expand Flatten Gather Identity Neg Reshape Slice Split Squeeze Transpose Unsqueeze".split()
)
"""Operators whose outputs are no larger than their inputs."""

_SMALL = frozenset({"Cos", "Erf", "HardSigmoid", "Sigmoid", "Sin", "Softmax", "Tanh"})
"""Operators whose outputs are 1 at most."""


def narrowed(source: Opened, reference: Path, feeds: Sequence[Feeds], work: Path, progress: Progress) -> Opened:
    """Return a model as float16, with its sites; the one that was opened is left behind, unless it is mixed already.

    Args:
        source: The model as it was opened.
        reference: The copy that it was read from.
        feeds: Inputs on which the ranges of its values are measured.
        work: An existing folder for files.
        progress: Told of the measurement.

    Raises:
        ModelError: the model does not run.
    """
    model = load.load(reference)
    BoundMasks()(model)
    precision = Precision(model.graph)
    if precision.mixed:
        return dataclasses.replace(source, narrowed=("as it was: the model holds float16 or bfloat16 already",))
    types = precision.types  # without those of sequences, which cannot be measured
    if FLOAT not in types.values():
        return dataclasses.replace(source, narrowed=("as it was: the model holds no float32",))
    progress("measure ranges", 0, 1)
    ranges = _measured(model, types, feeds, work, source.recipe.provider)
    progress("measure ranges", 1, 1)
    caches = _caches(model.graph, ranges)
    inputs = frozenset(value for value in model.graph.inputs if value.name in caches)
    precision = Precision(model.graph, ranges, inputs)
    told = _told(precision, caches)
    Narrow(precision, caches)(model)
    return dataclasses.replace(analyse(model, source.recipe), narrowed=told)


def _measured(
    model: ir.Model, types: Mapping[ir.Value, ir.DataType | None], feeds: Sequence[Feeds], work: Path, provider: str
) -> dict[str, float]:
    """Return the largest magnitude of every value of the main graph that is no constant, by name."""
    values = [value for node in model.graph for value in node.outputs if types.get(value) == FLOAT]
    used = [value for value in values if value.uses() or value.is_graph_output()]
    follows = {value for value in used if _follows(value, types)}
    copy, outputs = with_ranges(model, [str(value.name) for value in used if value not in follows])
    ranges = dict.fromkeys(outputs, 0.0)
    for name, array in (item for sample in feeds for item in sample.items() if item[1].dtype.kind == "f"):
        sizes = np.abs(array[np.isfinite(array)])
        ranges[name] = max(ranges.get(name, 0.0), float(sizes.max(initial=0)))
    with opened(Unwritten(copy, work), provider=provider, optimization="as written", scratch=work) as running:
        for found in running.run([Request(sample, list(outputs.values())) for sample in feeds]):
            for name, array in zip(outputs, found, strict=True):
                ranges[name] = max(ranges[name], float(array.item()))
    for value in used:
        node = value.producer()
        if node is not None and value in follows:
            sources = (ranges.get(str(source.name), 0.0) for source in node.inputs if source is not None)
            ranges[str(value.name)] = max(sources, default=0.0) if node.op_type in _MOVING else 1.0
    return ranges


def _follows(value: ir.Value, types: Mapping[ir.Value, ir.DataType | None]) -> bool:
    """Whether the range of a value is known from those of others."""
    node = value.producer()
    if node is None or node.domain:
        return False
    read = [item for item in node.inputs if item is not None]
    # Constants have no range here, nor have integers that a Cast or what is behind a lookup reads.
    floats = [item for item in read if types.get(item) == FLOAT]
    moved = node.op_type in _MOVING and read[:1] == floats[:1] and not any(item.is_initializer() for item in floats)
    return node.op_type in _SMALL or moved


def _caches(graph: ir.Graph, ranges: Mapping[str, float]) -> frozenset[str]:
    """Return the names of inputs and outputs that are a cache, which callers hand on without looking into it."""
    names = {str(value.name) for value in (*graph.inputs, *graph.outputs) if is_cache_name(str(value.name))}
    for value in graph.outputs:
        names.update(_continuing(value))
    if any(ranges.get(name, 0) * HEADROOM > LARGEST for name in names):
        return frozenset()  # all or none: runtimes make one cache, of one type
    return frozenset(names)


def _continuing(value: ir.Value) -> Iterator[str]:
    """Yield the names of an output and of the input that it continues, of an attention's keys too."""
    node, past = value.producer(), continued_input(value)
    if node is None or past is None:
        return
    others = {reader.op_type for reader, _ in past.uses() if reader is not node}
    if others <= {"Shape"} and (value.uses() or node.op_type != "Concat"):  # else it is no cache, but data
        yield from (str(value.name), str(past.name))
        if node.op_type != "Concat":
            keys = node.inputs[list(node.inputs).index(past) - 1]
            yield from (str(item.name) for item in (keys, node.outputs[PRESENT_VALUES - 1]) if item is not None)


def _told(precision: Precision, caches: frozenset[str]) -> tuple[str, ...]:
    counts = precision.counts()
    kept = ", ".join(f"{count} x {reason}" for reason, count in sorted(counts.items()))
    lines = [f"float16, but for nodes that stay in float32: {kept}" if kept else "float16"]
    if caches:
        lines.append("caches in and out are float16")
    return tuple(lines)
