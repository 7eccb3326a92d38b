"""Make a float32 model a float16 one, but for the nodes that `graph.precision` keeps, with Casts where the two meet.

    Mul(Cast(x) to float32 ...) kept       x float16 -> Cast -> norm in float32 -> Cast -> MatMul in float16
    input float32                          Cast behind it; callers go on to feed float32
    output float32                         Cast before it
    cache in and out                       float16 on both sides: callers hand it on unseen

Constants are read, and rounded to float16, when they are needed; what is folded into them later starts from the numbers
that the source has. A second run is refused; a model that is float16 in parts stays as it is.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from catonnx.graph.bodies import bodies
from catonnx.graph.constants import constant_array
from catonnx.graph.edits import Names, add_constant, retyped
from catonnx.graph.element_types import FLOAT, HALF, type_attribute
from catonnx.graph.precision import Precision
from catonnx.passes._protocol import cleaned


@dataclasses.dataclass(frozen=True)
class Narrow(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        precision: What stays in float32, of the very model that the pass is run on.
        half: Inputs and outputs of the graph that become float16; by name.
    """

    precision: Precision
    half: frozenset[str] = frozenset()

    def requires(self, model: ir.Model) -> None:
        """Refuse a decision about another model, or about this one as it was before."""
        types = self.precision.types
        if any(value not in types for value in (*model.graph.inputs, *model.graph.outputs)):
            raise ir.passes.PreconditionError("what stays in float32 was decided for another model")
        if any(kind == FLOAT and value.dtype == HALF for value, kind in types.items()):
            raise ir.passes.PreconditionError("what stays in float32 was decided before the model became float16")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change the types of values, and put Casts between those that differ."""
        if self.precision.mixed:
            return ir.passes.PassResult(model, modified=False)
        narrowing = _Narrowing(model.graph, self.precision, Names(model.graph))
        narrowing.constants()
        narrowing.nodes()
        narrowing.returned(self.half)
        return cleaned(model, narrowing.modified)


class _Narrowing:
    """One model on its way."""

    def __init__(self, graph: ir.Graph, precision: Precision, names: Names) -> None:
        self._graph, self._precision, self._names = graph, precision, names
        self._nodes = list(ir.traversal.RecursiveGraphIterator(graph))
        # As they were decided: what is asked of `precision` later would see the Casts.
        floats = [value for value, kind in precision.types.items() if kind == FLOAT]
        self._made = {value: precision.made(value) for value in floats if not precision.is_constant(value)}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.modified = False

    def constants(self) -> None:
        """Store constants as their readers want them, twice where these differ."""
        for value in [value for value, kind in self._precision.types.items() if kind == FLOAT]:
            if not self._precision.is_constant(value):
                continue
            uses = [(*use, self._precision.wants(*use)) for use in value.uses()]
            narrow = [(node, index) for node, index, wanted in uses if wanted == HALF]
            if not narrow:
                continue
            self.modified = True
            tensor = retyped(value, HALF)
            if len(narrow) == len(uses) and not value.is_graph_output():
                value.const_value, value.type = tensor, ir.TensorType(HALF)
                continue
            new = add_constant(self._graph, self._names, f"{value.name}_float16", tensor)
            for node, index in narrow:
                node.replace_input_with(index, new)

    def nodes(self) -> None:
        """Let every node read and give out what was decided."""
        for node in self._nodes:
            for index, value in enumerate(node.inputs):
                made = self._made.get(value) if value is not None else None
                wanted = self._precision.wants(node, index) if made is not None else None
                if value is not None and wanted is not None and made != wanted:
                    node.replace_input_with(index, self._cast(value, wanted))
            narrow = [value for value in node.outputs if self._made.get(value) == HALF]
            for value in narrow:
                value.type = ir.TensorType(HALF)
                self.modified = True
            if narrow and next(bodies(node), None) is None:
                self._name_type(node)

    def returned(self, half: frozenset[str]) -> None:
        """Give the graph and its bodies the outputs that they should have."""
        for value in self._graph.inputs:
            if self._made.get(value) == HALF:
                value.type = ir.TensorType(HALF)
                self.modified = True
        for place, value in enumerate(self._graph.outputs):
            made = self._made.get(value)
            wanted = HALF if value.name in half else FLOAT
            if made is not None and made != wanted:
                self._graph.outputs[place] = self._cast_output(value, wanted)
        for node in self._nodes:
            for body in bodies(node):
                for place, value in enumerate(body.outputs):
                    self._return(node, body, place, value)

    def _return(self, node: ir.Node, body: ir.Graph, place: int, value: ir.Value) -> None:
        """Let a body return what its node gives out."""
        if value not in self._made:
            return
        wanted = FLOAT
        if node.op_type == "If":
            wanted = self._made.get(node.outputs[place]) or FLOAT
        if self._made[value] != wanted:
            body.outputs[place] = self._cast(value, wanted, inside=body)

    def _name_type(self, node: ir.Node) -> None:
        """Let the attribute that says what a node gives out say float16."""
        if node.op_type == "ConstantOfShape" and not node.domain:
            attribute = node.attributes.get("value")
            number = 0.0 if attribute is None else float(attribute.as_tensor().numpy().reshape(-1)[0])
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor([number], dtype=HALF))
            return
        if node.op_type == "Constant" and not node.domain:  # one that a body returns
            array = constant_array(node.outputs[0])
            assert array is not None
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array.astype(HALF.numpy())))
            return
        name = type_attribute(node)
        if name:
            node.attributes[name] = ir.AttrInt64(name, HALF)

    def _cast(self, value: ir.Value, dtype: ir.DataType, inside: ir.Graph | None = None) -> ir.Value:
        """Return a value in another type, by one Cast for all that want it."""
        key = (value, dtype)
        if key not in self._casts:
            output = ir.Value(
                name=self._names.new(f"{value.name}_{dtype.name.lower()}"), type=ir.TensorType(dtype), shape=value.shape
            )
            self._insert(value, output, dtype, inside)
            self._casts[key] = output
        return self._casts[key]

    def _cast_output(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return an output of the graph in another type, under its own name."""
        name, made = value.name, self._made[value]
        assert made is not None
        value.name = self._names.new(f"{name}_{made.name.lower()}")
        output = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
        self._insert(value, output, dtype)
        return output

    def _insert(self, value: ir.Value, output: ir.Value, dtype: ir.DataType, inside: ir.Graph | None = None) -> None:
        name = self._names.new(f"{output.name}/cast")
        node = ir.node("Cast", [value], attributes={"to": dtype}, outputs=[output], name=name)
        producer, graph = value.producer(), value.graph or inside or self._graph
        self.modified = True
        if producer is not None and producer.graph is not None:
            producer.graph.insert_after(producer, node)
        elif len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)
