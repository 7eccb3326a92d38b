"""A part of a model between two cuts, and how it becomes a model of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from catonnx.graph.bodies import bodies
from catonnx.graph.constants import constant_type
from catonnx.graph.edits import Names, add_constant
from catonnx.graph.sites import Linear, Site

RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())
"""Operators that give something else when they run a second time."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tap:
    """A site with the value that its selected linears read now; a transform before them may have moved it.

    Attributes:
        site: The site.
        value: What its selected linears read.
        rows: Name of the input through which a stage feeds these linears, and nothing else.
        last: Number of the last stage that runs one of them; 0 if none does.
    """

    site: Site
    value: ir.Value
    rows: str
    last: int

    @property
    def name(self) -> str:
        """Name of the value."""
        return self.value.name or ""


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """The part of a model between two cuts; made by `graph.segments.cut`.

    Attributes:
        number: 0 for the part before the first site.
        arriving: Sites whose activations the stage before has completed.
        fed: Sites whose selected linears run here: those that arrive, as a rule.
        inputs: Values from earlier stages, or inputs of the graph, that it reads; what only linears of `fed` read is
            not among them.
        outputs: Values for later stages; none behind the last cut, where nothing has to run.
        ending: Names of values from earlier stages that nothing reads after this one.
        nodes: What runs here, in graph order: nodes of `source`.
        source: The whole model.
    """

    number: int
    arriving: tuple[Tap, ...]
    fed: tuple[Tap, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    ending: tuple[str, ...]
    nodes: tuple[ir.Node, ...]
    source: ir.Model

    @property
    def linears(self) -> dict[str, Linear]:
        """The selected linears that run here, by name."""
        here = set(self.nodes)
        return {linear.name: linear for tap in self.fed for linear in tap.site.selected if linear.node in here}

    def model(self, examples: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray] | None = None) -> ir.Model:
        """Return this stage as a model of its own; tensors are shared, not copied, and folds stay lazy.

        Its inputs are `inputs` and, for each of `fed`, `Tap.rows`; its outputs are `outputs`.

        Args:
            examples: Any array for each name among the inputs: it tells type and rank, which graphs often do not.
            weights: Other weights [K, N] for selected linears that run here, by name.

        Raises:
            ValueError: if a weight is for no such linear, or has another shape.
        """
        weights, linears = weights or {}, self.linears
        check_weights(weights, linears, f"stage {self.number}")
        graph = self._view().clone()
        clones = dict(zip(self.nodes, graph, strict=True))
        del graph.inputs[len(self.inputs) :]
        graph.inputs.extend(ir.Value(name=tap.rows) for tap in self.fed)
        for value in graph.inputs:
            example = examples[str(value.name)]
            value.type = ir.TensorType(ir.DataType.from_numpy(example.dtype))
            value.shape = ir.Shape([None] * example.ndim)
        rows_of = {linear: value for tap, value in self._rows(graph) for linear in tap.site.selected}
        for linear in linears.values():
            clones[linear.node].replace_input_with(0, rows_of[linear])
        names = Names(graph)
        for name, array in weights.items():
            _set_weight(graph, names, clones[linears[name].node], array)
        return ir.Model(graph, ir_version=self.source.ir_version, functions=list(self.source.functions.values()))

    def _view(self) -> ir.GraphView:
        """Return the part as it stands in the whole graph; what only linears of `fed` read comes last of its inputs."""
        graph = self.source.graph
        replaced = [tap.value for tap in self.fed if tap.value not in self.inputs]
        return ir.GraphView(
            [*self.inputs, *replaced],
            self.outputs,
            nodes=self.nodes,
            initializers=_initializers(self.nodes, graph),
            opset_imports=dict(graph.opset_imports),
            name=f"{graph.name}_{self.number}",
        )

    def _rows(self, graph: ir.Graph) -> Iterator[tuple[Tap, ir.Value]]:
        return zip(self.fed, graph.inputs[len(self.inputs) :], strict=True)


def check_weights(weights: Mapping[str, np.ndarray], linears: Mapping[str, Linear], place: str) -> None:
    """Check that weights are for linears that there are, and have their shapes [K, N].

    Raises:
        ValueError: they are not; `place` says where the linears are looked for.
    """
    for name, array in weights.items():
        if name not in linears:
            raise ValueError(
                f"a weight is given for {name!r}, which is no selected linear of {place}; "
                f"those are: {', '.join(linears) or 'none'}"
            )
        expected = [linears[name].inputs, linears[name].outputs]
        if list(array.shape) != expected:
            raise ValueError(f"the weight given for {name} has shape {list(array.shape)}; it must be {expected}")


def reads(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the inputs of a node, in order, then what its subgraphs read or return of the graph that holds it."""
    yield from (value for value in node.inputs if value is not None)
    for body in bodies(node):
        read = (value for inner in ir.traversal.RecursiveGraphIterator(body) for value in inner.inputs)
        returned = (value for part in (body, *body.subgraphs()) for value in part.outputs)
        yield from (value for value in (*read, *returned) if value is not None and value.graph is graph)


def _initializers(nodes: Iterable[ir.Node], graph: ir.Graph) -> Sequence[ir.Value]:
    values = (value for node in nodes for value in reads(node, graph))
    return list(dict.fromkeys(value for value in values if value.is_initializer()))


def _set_weight(graph: ir.Graph, names: Names, node: ir.Node, array: np.ndarray) -> None:
    old = node.inputs[1]
    assert old is not None
    dtype = constant_type(old)
    turned = bool(node.attributes.get_int("transB", 0))
    data = np.ascontiguousarray(array.T if turned else array, dtype.numpy())
    node.replace_input_with(1, add_constant(graph, names, f"{node.name}/weight", ir.Tensor(data, dtype=dtype)))
    if old.is_initializer() and not old.uses():
        del graph.initializers[str(old.name)]  # or a pending fold would be computed just to be written
