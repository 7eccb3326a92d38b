"""What the tests of the graph room do with small ONNX graphs made by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from catonnx.graph.absorb import Absorption, trace
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import Selection, Site, find_sites
from models.net import Arrays, Length, Net

__all__ = ["Arrays", "Length", "Net", "absorbable", "relative_error", "run", "site_of"]


def run(model: ir.Model | onnx.ModelProto, feeds: Arrays, *, optimize: bool = False) -> dict[str, np.ndarray]:
    """Run a model in ONNX Runtime, node by node as it is written unless told otherwise."""
    proto = model if isinstance(model, onnx.ModelProto) else _inline(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _inline(model: ir.Model) -> onnx.ModelProto:
    """Return a model with all its tensors inside, wherever they lie."""
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            data = model.graph.initializers[tensor.name].const_value
            assert data is not None
            tensor.CopyFrom(numpy_helper.from_array(data.numpy(), tensor.name))
    return proto


def relative_error(reference: np.ndarray, actual: np.ndarray) -> float:
    """Return |actual - reference| / |reference|, in L2."""
    assert reference.shape == actual.shape
    difference = np.linalg.norm(actual.astype(np.float64) - reference)
    return float(difference / max(float(np.linalg.norm(reference)), 1e-30))


def site_of(model: ir.Model, index: int = -1) -> Site:
    """Return one site of a model, the last one by default; heads count."""
    return find_sites(model.graph, Selection(head=True)).sites[index]


def absorbable(net: Net | ir.Model, index: int = -1, *, change_caches: bool = True) -> Absorption:
    """Return what can be absorbed before a site of a net."""
    model = net.model() if isinstance(net, Net) else net
    site = site_of(model, index)
    readers = frozenset(linear.node for linear in site.linears)
    return trace(site.value, site.width, readers, Shapes(model.graph), change_caches=change_caches)
