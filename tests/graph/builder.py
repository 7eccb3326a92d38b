"""Small ONNX graphs by hand, and what the tests of the graph room do with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from catonnx.graph.absorb import Absorption, trace
from catonnx.graph.shapes import Shapes
from catonnx.graph.sites import Selection, Site, find_sites

Arrays = Mapping[str, np.ndarray]
Length = int | str | None


class Net:
    """A graph under construction; values are their names.

    Args:
        seed: Of the numbers in its constants.
        opset: Of the default domain.
    """

    def __init__(self, seed: int = 0, opset: int = 21) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []
        self.initializers: dict[str, np.ndarray] = {}
        self._domains: set[str] = set()
        self._count = 0

    def name(self, hint: str) -> str:
        """Return a new name."""
        self._count += 1
        return f"{hint}_{self._count}"

    def input(self, name: str, shape: Sequence[Length] | None, dtype: int = TensorProto.FLOAT) -> str:
        """Add a graph input."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, array: np.ndarray | float | Sequence[int], hint: str = "c") -> str:
        """Add an initializer; numbers without a type become float32, whole ones int64."""
        data = np.asarray(array)
        if data.dtype == np.float64:
            data = data.astype(np.float32)
        name = self.name(hint)
        self.initializers[name] = data
        return name

    def constant_node(self, array: np.ndarray) -> str:
        """Add a Constant node."""
        tensor = numpy_helper.from_array(np.asarray(array).astype(np.float32), "")
        return self.op("Constant", value=tensor)

    def normal(self, *shape: int, hint: str = "w") -> str:
        """Add a random initializer whose products keep their size."""
        return self.constant(self.random.normal(size=shape) / np.sqrt(shape[0]) if shape else 0.7, hint)

    def vector(self, *shape: int, hint: str = "v") -> str:
        """Add an initializer of numbers between 1/2 and 2, none near zero."""
        return self.constant(self.random.uniform(0.5, 2, size=shape), hint)

    def op(self, operator: str, *inputs: str, result: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Add a node and return its first output."""
        return self.ops(
            operator, *inputs, results=[result or self.name(operator.lower())], domain=domain, **attributes
        )[0]

    def ops(
        self, operator: str, *inputs: str, results: Sequence[str], domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs."""
        node = helper.make_node(operator, inputs, list(results), name=self.name("node"), domain=domain, **attributes)
        self.nodes.append(node)
        self._domains |= {domain} if domain else set()
        return list(results)

    def output(self, value: str) -> str:
        """Make a value an output of the graph, and return it."""
        if value not in self.outputs:
            self.outputs.append(value)
        return value

    def proto(self) -> onnx.ModelProto:
        """Return the model."""
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.initializers.items()]
        graph = helper.make_graph(self.nodes, "small", self.inputs, outputs, tensors)
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in sorted(self._domains))]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    def model(self) -> ir.Model:
        """Return the model as the passes see it."""
        return ir.from_proto(self.proto())


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
