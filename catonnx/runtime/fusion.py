"""What ONNX Runtime makes of a model: which operators it really runs, and which 4-bit weights it failed to fuse."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from catonnx.graph.load import read
from catonnx.runtime.library import open_model
from catonnx.runtime.sessions import PROVIDER_NAMES

PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm"})
TRANSPARENT = frozenset({"Transpose", "Cast", "Reshape", "Identity"})


WRITE_OPTIMIZED = {"session.optimized_model_external_initializers_file_name": "weights.bin"}
"""Session configuration for `optimized_path`: weights go to a second file, because one protobuf could pass 2 GB."""


@dataclass(frozen=True)
class OptimizedGraph:
    """The graph that ONNX Runtime runs.

    Attributes:
        operators: Operator type -> number of nodes, subgraphs included.
        unfused: Names of the DequantizeLinear nodes that still expand a constant weight for a MatMul or Gemm at every
            run; 15 to 25 times slower than the fused product, and the weight stands in memory in full.
    """

    operators: Counter[str]
    unfused: tuple[str, ...]


def fused_ops(
    model_path: str | Path,
    provider: str = "cpu",
    *,
    config: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
) -> OptimizedGraph:
    """Load a model with ONNX Runtime's default optimization and read the graph that comes out.

    Args:
        model_path: The model.
        provider: "cpu" or "cuda"; on CUDA the copies between devices show as MemcpyToHost and MemcpyFromHost.
        config: Session configuration entries.
        folder: Where the optimized model is written for a moment (as large as the model); the system's temporary folder
            unless given.

    Raises:
        ModelError: the model does not load.
        RuntimeUnavailableError: ONNX Runtime or the provider is not there.
    """
    with optimized(model_path, provider, config=config, folder=folder) as (path, _):
        return read_optimized(path)


@contextlib.contextmanager
def optimized(
    model_path: str | Path,
    provider: str = "cpu",
    *,
    config: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
) -> Iterator[tuple[Path, bool]]:
    """Give the file of what ONNX Runtime really runs, for as long, and whether that is on CUDA; see `fused_ops`."""
    with tempfile.TemporaryDirectory(prefix="catonnx-", dir=folder) as scratch:
        path = Path(scratch) / "optimized.onnx"
        session = open_model(
            model_path,
            provider=provider,
            config=WRITE_OPTIMIZED | dict(config or {}),
            optimized_path=path,
            scratch=scratch,
        )
        on_cuda = PROVIDER_NAMES["cuda"] in session.get_providers()
        del session
        yield path, on_cuda


def read_optimized(path: Path) -> OptimizedGraph:
    """Read the graph that a session opened with `WRITE_OPTIMIZED` and `optimized_path` wrote."""
    nodes = list(ir.traversal.RecursiveGraphIterator(read(path).graph))
    unfused = (node for node in nodes if node.op_type == "DequantizeLinear" and _is_unfused_weight(node))
    names = tuple(node.name or node.outputs[0].name or "" for node in unfused)
    return OptimizedGraph(Counter(node.op_type for node in nodes), names)


def _is_unfused_weight(node: ir.Node) -> bool:
    weight = node.inputs[0]
    return weight is not None and weight.is_initializer() and _feeds_product(node.outputs[0])


def _feeds_product(value: ir.Value) -> bool:
    consumers = [use.node for use in value.uses()]
    return any(
        node.op_type in PRODUCTS or (node.op_type in TRANSPARENT and _feeds_product(node.outputs[0]))
        for node in consumers
    )
