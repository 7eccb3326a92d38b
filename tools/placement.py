"""Where ONNX Runtime runs the nodes of a language model, read from its own profile."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from catonnx.ops import library, register
from catonnx.ops.place import has_cuda
from catonnx.runtime.decoding import Decoder
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.sessions import PROVIDER_NAMES, import_onnxruntime

_SHAPE_ELEMENTS = 16
"""Longest vector of whole numbers that counts as shape arithmetic."""


@dataclass(frozen=True)
class Placement:
    """Where nodes ran.

    Attributes:
        nodes: Provider -> number of nodes.
        strangers: Nodes that ran elsewhere than wanted and are no shape arithmetic: "operator name".
        copies: Copies between devices.
    """

    nodes: dict[str, int]
    strangers: tuple[str, ...]
    copies: int


def placement(path: Path, provider: str, tokens: np.ndarray) -> Placement:
    """Run `tokens` int64 [sequence] at once and one token more, and say where each node ran.

    With the library of our operators, if it is built for the provider.

    Args:
        path: A language model with a cache.
        provider: "cpu" or "cuda": where nodes should run. Shape arithmetic (small vectors of whole numbers) belongs on
            the CPU and is not counted.
        tokens: Token ids.
    """
    runtime = import_onnxruntime()
    wanted = PROVIDER_NAMES[provider]
    if provider == "cuda":
        runtime.preload_dlls()
    with tempfile.TemporaryDirectory(prefix="catonnx-") as scratch:
        options = runtime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        options.log_severity_level = 3
        found = library()
        if found is not None and (provider == "cpu" or has_cuda(found)):
            register(options)
        names = list(dict.fromkeys([wanted, PROVIDER_NAMES["cpu"]]))
        session = runtime.InferenceSession(str(path), options, providers=names, enable_fallback=0)
        decoder = Decoder(session, InputSpec.from_session(session))
        decoder.step(tokens[np.newaxis])
        decoder.step(tokens[np.newaxis, :1])
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return summed_up(events, wanted)


def summed_up(events: list[dict[str, Any]], wanted: str) -> Placement:
    """Read a profile of ONNX Runtime; `wanted` is the full name of a provider."""
    nodes: dict[str, dict[str, Any]] = {
        event["name"].removesuffix("_kernel_time"): event["args"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    }
    copies = sum(1 for node in nodes.values() if node["op_name"].startswith("Memcpy"))
    strangers = tuple(
        f"{node['op_name']} {name}"
        for name, node in nodes.items()
        if node["provider"] != wanted and not _is_shape_arithmetic(node)
    )
    return Placement(dict(Counter(node["provider"] for node in nodes.values())), strangers, copies)


def _is_shape_arithmetic(node: dict[str, Any]) -> bool:
    """Whether all outputs, such as [{"int64": [3]}], are short vectors of whole numbers."""
    outputs = [item for output in node.get("output_type_shape", []) for item in output.items()]
    return bool(outputs) and all(
        kind in ("int64", "int32", "bool") and len(shape) < 2 and int(np.prod(shape)) <= _SHAPE_ELEMENTS
        for kind, shape in outputs
    )
