"""The files of all tiny models: what to calibrate each on, and what there is to round, counted without catonnx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from models.cache import path
from models.recipes import RECIPES

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 20
"""What those are calibrated on that come without inputs of their own and write no text."""


def names() -> list[str]:
    """Return the names of all files, made if need be: the model's, and the file's where it is not `model.onnx`."""
    found = []
    for model in RECIPES:
        if model.startswith("tiny-"):
            stems = sorted(file.stem for file in path(model).glob("*.onnx"))
            found += [model if stem == "model" else f"{model}/{stem}" for stem in stems]
    return found


def file_of(name: str) -> Path:
    """Return the file called `name`."""
    model, _, stem = name.partition("/")
    return path(model) / f"{stem or 'model'}.onnx"


def calibration(file: Path, text: Path) -> str:
    """Return the inputs made for a file, or else text: its own where it is a decoder with a cache."""
    made = next((feeds for feeds in (file.with_suffix(".npz"), file.parent / "feeds.npz") if feeds.exists()), None)
    own = (file.parent / "generation_config.json").exists()
    return str(made) if made else "self" if own else str(text)


def constant_matrices(file: Path) -> int:
    """Return by how many constant matrices nodes multiply what flows in, whatever spells the constant."""
    return _constant_matrices(onnx.load(file).graph, {})


def _constant_matrices(graph: onnx.GraphProto, outer: Mapping[str, list[int]]) -> int:
    shapes = {**outer, **{tensor.name: list(tensor.dims) for tensor in graph.initializer}}
    count = 0
    for node in graph.node:
        if node.op_type == "Constant":
            shapes[node.output[0]] = list(node.attribute[0].t.dims)
        elif node.op_type in ("Cast", "Identity", "Transpose") and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
        if node.op_type in ("Gemm", "MatMul"):
            weight = shapes.get(node.input[1], [])
            count += (1 if len(weight) == 2 else weight[0]) if len(weight) in (2, 3) else 0
        count += sum(_constant_matrices(body, shapes) for body in _bodies(node))
    return count


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def signature(file: Path) -> list[tuple[str, int]]:
    """Return the names and element types of all inputs, then of all outputs."""
    graph = onnx.load(file, load_external_data=False).graph
    return [(value.name, value.type.tensor_type.elem_type) for value in (*graph.input, *graph.output)]
