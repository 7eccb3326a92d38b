"""Give every linear of the chosen sites one orientation and a weight of its own.

    MatMul(x, Transpose(W))                  MatMul(x, W')
    Gemm(x, W, b, transB=1, alpha, beta) ->  Gemm(x, W', b' [N])
    Gemm(x, W, b, transA=1)              ->  Gemm(Transpose(x), W, b)
    Gemm(x, W, b of another shape)       ->  Add(MatMul(x, W), b)
    MatMul(x, W [1, 1, K, N])            ->  MatMul(x, W'), Unsqueeze if x has fewer axes
    MatMul(W, x)                         ->  Transpose(MatMul(Transpose(x), W'))
    Gemm(W, x, b, alpha, beta)           ->  Add(Transpose(MatMul(Transpose(x), W')), b')

W' [K, N] is an initializer that nobody else reads, so that later passes can change it; only linears in bodies of If,
Loop and Scan that share a weight go on to share W': the branches of a merged decoder do. Constant, Identity, Transpose
and Cast nodes that only spelled a weight are dropped with it. A site whose linears read it transposed becomes the site
behind the Transpose. A Gemm with another bias than [N], or with a Transpose behind, becomes a MatMul because ONNX
Runtime fuses no 4-bit weight of it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from catonnx.graph.bodies import remove_unused_initializers
from catonnx.graph.constants import constant_shape, constant_type
from catonnx.graph.edits import Names, Step, add_constant, float64_of, insert_behind, set_folded
from catonnx.graph.sites import Linear, Selection, find_sites


@dataclasses.dataclass(frozen=True)
class Canonicalize(ir.passes.InPlacePass):
    """See the module's text.

    Attributes:
        selection: Which linears will be rounded; sites without one are left alone.
    """

    selection: Selection = dataclasses.field(default_factory=Selection)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the linears of all sites that hold a selected one."""
        sites = [site for site in find_sites(model.graph, self.selection).sites if site.selected]
        inside = [linear for site in sites if site.inside for linear in site.linears]
        rewriting = _Rewriting(model.graph, Names(model.graph), frozenset(linear.node for linear in inside))
        modified = False
        for site in sites:
            for linear in site.linears:
                # What multiplies a site from the left has no part in its basis, so it may stay as it is.
                if linear.selected or linear.place == 1:
                    modified |= rewriting.rewrite(linear)
        RemoveUnusedNodesPass()(model)
        remove_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified)


@dataclasses.dataclass(frozen=True)
class _Rewriting:
    """The linears of one model.

    Attributes:
        graph: The main graph, which holds all new constants.
        names: Free names in it.
        inside: Linears in bodies.
        shared: Their new weights, by the old one, whether it was turned, and what it was multiplied by.
    """

    graph: ir.Graph
    names: Names
    inside: frozenset[ir.Node]
    shared: dict[tuple[ir.Value, bool, float], ir.Value] = dataclasses.field(default_factory=dict)

    def rewrite(self, linear: Linear) -> bool:
        """Bring one linear into the canonical form; say whether there was anything to do."""
        turned_rows = _is_turned(linear, 1 - linear.place)
        modified = self._own_weight(linear)
        modified |= self._own_bias(linear)
        if turned_rows:
            self._turn_rows(linear)
        modified |= self._restore_output(linear)
        for attribute in ("transA", "transB", "alpha"):
            linear.node.attributes.pop(attribute, None)
        return modified or turned_rows

    def _own_weight(self, linear: Linear) -> bool:
        node = linear.node
        weight, rows = node.inputs[linear.place], node.inputs[1 - linear.place]
        assert weight is not None
        turned, alpha = _is_turned(linear, linear.place), node.attributes.get_float("alpha", 1.0)
        node.replace_input_with(0, rows)
        key = (weight, turned, alpha)
        if node in self.inside and key in self.shared:
            node.replace_input_with(1, self.shared[key])
            return True
        if (linear.place, linear.axes, turned, alpha) == (1, 2, False, 1) and self._is_own(weight, node):
            return False
        original = float64_of(weight)

        def compute() -> np.ndarray:
            array = original()
            matrix = array.reshape(array.shape[-2:])
            return (matrix.T if turned else matrix) * alpha

        shape, dtype = (linear.inputs, linear.outputs), constant_type(weight)
        set_folded(self.graph, self.names, node, 1, compute, shape, dtype, f"{weight.name}_kn")
        if node in self.inside and node.inputs[1] is not None:
            self.shared[key] = node.inputs[1]
        return True

    def _is_own(self, weight: ir.Value, node: ir.Node) -> bool:
        """Whether no other node reads a weight, or only such that go on to share it."""
        if not weight.is_initializer() or weight.is_graph_input():
            return False
        readers = {node} if node not in self.inside else self.inside
        return all(
            reader in readers and index == 1 and not reader.attributes.get_int("transB", 0)
            for reader, index in weight.uses()
        )

    def _own_bias(self, linear: Linear) -> bool:
        """Make the bias of a Gemm a vector [N]; what is none is added behind, by `_restore_output`."""
        node, beta = linear.node, linear.node.attributes.get_float("beta", 1.0)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None or beta == 0:  # it would not even be read: NaN times 0 would be NaN
            node.attributes.pop("beta", None)
            node.resize_inputs(2)
            return bias is not None
        shape = constant_shape(bias)
        if shape is None or (beta == 1 and shape == (linear.outputs,)):
            return False
        original, dtype, wanted = float64_of(bias), constant_type(bias), f"{bias.name}_beta"
        wide = linear.place == 1 and all(length == 1 for length in shape[:-1])
        new = (linear.outputs,) if wide else shape

        def compute() -> np.ndarray:
            array = original() * beta
            return np.broadcast_to(array.reshape(-1), new) if wide else array

        if wide or beta != 1:
            set_folded(self.graph, self.names, node, 2, compute, new, dtype, wanted)
            node.attributes.pop("beta", None)
        return wide or beta != 1

    def _turn_rows(self, linear: Linear) -> None:
        node = linear.node
        value = node.inputs[0]
        assert value is not None
        assert node.graph is not None
        order = _last_two_swapped(linear.rank or 2)
        shape = None if value.shape is None else ir.Shape([value.shape[axis] for axis in order])
        turned = ir.Value(name=self.names.new(f"{value.name}_transposed"), type=value.type, shape=shape)
        name = self.names.new(f"{node.name}/transpose")
        node.graph.insert_before(
            node, ir.node("Transpose", [value], attributes={"perm": order}, outputs=[turned], name=name)
        )
        node.replace_input_with(0, turned)

    def _restore_output(self, linear: Linear) -> bool:
        """Give the output the axes back that the weight had on the left, or brought in, and a bias its orientation."""
        node, steps = linear.node, []
        rank = linear.rank or 2
        if linear.place == 0 and rank > 1:
            order = {"perm": _last_two_swapped(rank)}
            steps.append(Step(f"{node.name}/transpose_back", "Transpose", (None,), order))
        lift = linear.axes - max(rank, 2)
        if lift > 0:
            axes = add_constant(self.graph, self.names, f"{node.name}/axes", np.arange(lift))
            steps.append(Step(f"{node.name}/unsqueeze", "Unsqueeze", (None, axes), {}))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and (linear.place == 0 or constant_shape(bias) != (linear.outputs,)):
            steps.append(Step(f"{node.name}/add", "Add", (None, self._scaled_bias(node)), {}))
            node.resize_inputs(2)
        if steps:
            node.op_type = "MatMul"
            insert_behind(self.names, node, steps)
        return bool(steps)

    def _scaled_bias(self, node: ir.Node) -> ir.Value:
        bias, beta = node.inputs[2], node.attributes.pop("beta", None)
        assert bias is not None
        if beta is None:
            return bias
        assert node.graph is not None
        dtype = constant_type(node.inputs[1])
        number = ir.Tensor(np.array(beta.as_float(), dtype.numpy()), dtype=dtype)
        factor = add_constant(self.graph, self.names, f"{node.name}/beta", number)
        scaled = ir.Value(name=self.names.new(f"{node.name}/bias_output"), type=bias.type, shape=bias.shape)
        name = self.names.new(f"{node.name}/bias")
        node.graph.insert_before(node, ir.node("Mul", [bias, factor], outputs=[scaled], name=name))
        return scaled


def _is_turned(linear: Linear, place: int) -> bool:
    """Whether an operand must be transposed to stand in the canonical form, where all change sides if W is the left."""
    node = linear.node
    if node.op_type == "Gemm":
        return bool(node.attributes.get_int(("transA", "transB")[place], 0)) != (linear.place == 0)
    return linear.place == 0 and (place == linear.place or linear.rank != 1)


def _last_two_swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]
