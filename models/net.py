"""Small ONNX graphs by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

Arrays = Mapping[str, np.ndarray]
Length = int | str | None


class Net:
    """A graph under construction; values are their names.

    Args:
        seed: Of the numbers in its constants.
        opset: Of the default domain.
        counter: Where numbers in names come from, if they must differ from those of another net.
    """

    def __init__(self, seed: int = 0, opset: int = 21, counter: Iterator[int] | None = None) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []
        self.initializers: dict[str, np.ndarray] = {}
        self._domains: set[str] = set()
        self._counter = itertools.count(1) if counter is None else counter

    def name(self, hint: str) -> str:
        """Return a new name."""
        return f"{hint}_{next(self._counter)}"

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

    def body(self) -> Net:
        """Return an empty net for the body of a node in this one: its values have other names, and may read ours."""
        body = Net(int(self.random.integers(1 << 30)), self.opset, self._counter)
        body._domains = self._domains
        return body

    def graph(self, name: str = "small") -> onnx.GraphProto:
        """Return the graph alone."""
        known = {value.name: value for value in self.inputs}
        unknown = {output: helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in self.outputs}
        outputs = [known.get(output, unknown[output]) for output in self.outputs]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.initializers.items()]
        return helper.make_graph(self.nodes, name, self.inputs, outputs, tensors)

    def proto(self) -> onnx.ModelProto:
        """Return the model."""
        graph = self.graph()
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in sorted(self._domains))]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    def model(self) -> ir.Model:
        """Return the model as the passes see it."""
        return ir.from_proto(self.proto())
