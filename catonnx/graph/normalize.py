"""The one form that the passes work on: opset 21 or newer, no functions, every node and value named once, sorted."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as common_passes
from onnxscript import version_converter

from catonnx.errors import ModelError, root_cause
from catonnx.graph.bodies import make_names_unique
from catonnx.graph.save import OPSET

NEWEST_OPSET = 26
"""The newest opset that ONNX Runtime 1.31 loads."""


def normalize(model: ir.Model, path: Path) -> None:
    """Bring a model into that form, in place.

    Args:
        model: As it was read.
        path: Where from.

    Raises:
        ModelError: its opset is unknown, too new or cannot be converted, or its functions or order are not sound.
    """
    imports = model.graph.opset_imports
    if "ai.onnx" in imports:
        imports.setdefault("", imports.pop("ai.onnx"))  # two spellings of one domain
    opset = imports.get("")
    if opset is None:
        raise ModelError(
            "the model does not say which opset its operators are of", where=path, hint="export it with opset 18 to 21"
        )
    if opset > NEWEST_OPSET:
        raise ModelError(
            f"the model's opset is {opset}; ONNX Runtime runs opsets up to {NEWEST_OPSET}",
            where=path,
            hint="export it with opset 18 to 21",
        )
    try:
        common_passes.InlinePass()(model)
    except (ir.passes.PassError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(
            f"its functions cannot be put into the graph: {root_cause(error)}",
            where=path,
            hint="export it without functions",
        ) from error
    if opset < OPSET:
        _convert(model, opset, path)
    _lift_external_attributes(model)
    common_passes.RemoveInitializersFromInputsPass()(model)
    common_passes.RemoveUnusedNodesPass()(model)
    common_passes.NameFixPass()(model)
    make_names_unique(model.graph)
    for index, node in enumerate(model.graph):
        if not node.name:
            node.name = f"{node.op_type}_{index}"
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError(f"the graph is not sound: {error}", where=path, hint="export it again") from error


def _lift_external_attributes(model: ir.Model) -> None:
    """Bring tensors that attributes keep in files to where they are saved with the model: initializers, or memory."""
    common_passes.LiftConstantsToInitializersPass()(model)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for name, attribute in list(node.attributes.items()):
            if isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy()))


def _convert(model: ir.Model, opset: int, path: Path) -> None:
    try:
        with quiet("onnxscript"):
            version_converter.convert_version(model, target_version=OPSET, fallback=True)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"opset {opset} cannot be converted to {OPSET}: {error}", where=path, hint=f"export it with opset {OPSET}"
        ) from error
    reached = model.graph.opset_imports.get("")
    if reached != OPSET:
        raise ModelError(
            f"opset {opset} cannot be converted to {OPSET}", where=path, hint=f"export it with opset 18 or {OPSET}"
        )


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let a library's logger tell of errors only, and Python of no warning."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
