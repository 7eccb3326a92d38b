"""Make a failing case smaller: wishes, samples, outputs and nodes go, one after the other, as long as it fails alike.

Greedy and deterministic. A smaller model is kept only if its failure has the same kind, which includes that ONNX
Runtime still runs the source.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import onnx
from onnx import TensorProto, helper

from models.dressing import graphs_of
from tools.fuzz.cases import Case

KEPT_WISHES = ("samples", "lm_head")


def shrink(case: Case, fails: Callable[[Case], bool], seconds: float = 60) -> Case:
    """Return the smallest case found that still fails.

    Args:
        case: One that fails.
        fails: Whether another one fails in the same way.
        seconds: No more are tried after that.
    """
    end = time.monotonic() + seconds
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(case):
            if time.monotonic() > end:
                return case
            if _size(candidate) < _size(case) and fails(candidate):
                case, smaller = candidate, True
                break
    return case


def _size(case: Case) -> tuple[int, int, int, int, bool]:
    """Return what shrinking makes less of, the most important first."""
    graph = case.model.graph
    return len(graph.node), len(graph.output), len(case.wishes), len(case.feeds), case.external


def _smaller(case: Case) -> Iterator[Case]:
    """Yield cases with less in them, those with much less first."""
    dropped = [name for name in case.wishes if name not in KEPT_WISHES]
    if dropped:
        yield dataclasses.replace(case, wishes={key: case.wishes[key] for key in case.wishes if key in KEPT_WISHES})
    for name in dropped:
        if len(dropped) > 1:
            yield dataclasses.replace(case, wishes={key: case.wishes[key] for key in case.wishes if key != name})
    if case.external:
        yield dataclasses.replace(case, external=False)
    if len(case.feeds) > 1:
        yield dataclasses.replace(case, feeds=case.feeds[:1])
        yield dataclasses.replace(case, feeds=case.feeds[1:])
    for model in _smaller_models(case.model):
        inputs = {value.name for value in model.graph.input}
        outputs = {value.name for value in model.graph.output}
        yield dataclasses.replace(
            case,
            model=model,
            feeds=tuple({name: feeds[name] for name in feeds if name in inputs} for feeds in case.feeds),
            checks=tuple({name: feeds[name] for name in feeds if name in inputs} for feeds in case.checks),
            caches={past: now for past, now in case.caches.items() if past in inputs and now in outputs},
        )


def _smaller_models(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    outputs = [value.name for value in model.graph.output]
    made = [name for node in model.graph.node for name in node.output if name]
    for name in _coarse_first(made):
        if [name] != outputs:
            yield _with_outputs(model, [name])
    for name in outputs if len(outputs) > 1 else ():
        yield _with_outputs(model, [other for other in outputs if other != name])
    for index, node in enumerate(model.graph.node):
        for name in dict.fromkeys(node.input):
            if name and node.output[0] not in outputs:
                yield _without(model, index, name)


def _coarse_first(names: list[str]) -> list[str]:
    """Return names in another order: the middle, the quarters, the eighths, and so on."""
    order: dict[str, None] = {}
    step = len(names)
    while step > 1:
        step = (step + 1) // 2
        order.update(dict.fromkeys(names[step - 1 :: step]))
    return list(order)


def _with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Return a model with other outputs; elements that are not declared are floats."""
    smaller = _copy(model)
    known = {value.name: value for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)}
    kinds = [value.type.tensor_type.elem_type for value in model.graph.input if value.type.tensor_type.elem_type]
    element = TensorProto.FLOAT16 if TensorProto.FLOAT16 in kinds else TensorProto.FLOAT
    del smaller.graph.output[:]
    smaller.graph.output.extend(known.get(name, helper.make_tensor_value_info(name, element, None)) for name in names)
    return _pruned(smaller)


def _without(model: onnx.ModelProto, index: int, value: str) -> onnx.ModelProto:
    """Return a model without one node; what it gave out is one of its inputs from now on."""
    smaller = _copy(model)
    gone = smaller.graph.node[index].output[0]
    del smaller.graph.node[index]
    for graph in graphs_of(smaller.graph):
        for node in graph.node:
            node.input[:] = [value if name == gone else name for name in node.input]
    return _pruned(smaller)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _pruned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what no output needs, in place, and return the model."""
    needed = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
            for attribute in node.attribute:
                for inner in graphs_of(attribute.g) if attribute.HasField("g") else ():
                    needed.update(name for part in inner.node for name in part.input)
                    needed.update(value.name for value in inner.output)
    kept.reverse()
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for items in (model.graph.initializer, model.graph.input):
        left = [type(item).FromString(item.SerializeToString()) for item in items if item.name in needed]
        del items[:]
        items.extend(left)
    used = {node.op_type for node in model.graph.node if node.domain == "local"}
    for index in reversed(range(len(model.functions))):
        if model.functions[index].name not in used:
            del model.functions[index]
    return model
