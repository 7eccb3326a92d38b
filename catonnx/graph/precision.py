"""Which nodes of a float32 model go on in float32 when the model becomes float16, and why.

Products and activations are at home in float16: its 11 bits are finer than any 4-bit weight. What is not:

| what | why |
| --- | --- |
| sums and means, what follows from them number by number, and what they scale or shift | squares overflow at 256 |
| squares and other functions that nothing else reads | the same |
| epsilons below float16's normal numbers, what they guard; logarithms | Log and Div of what has become zero |
| angles and positions before Cos and Sin, indices computed in float | from 2048 on, float16 skips whole numbers |
| values near float16's largest number, as far as they were measured | Inf |
| operators without float16 | |

What remains is an ordinary float16 export: norms look as exporters of float16 models write them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from catonnx.graph.bodies import bodies
from catonnx.graph.constants import constant_array, constant_shape
from catonnx.graph.element_types import FLOAT, HALF, SEQUENCES, ElementType, Signature, Slot, element_types, signature

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_normal)

HEADROOM = 2
"""How many times larger than what was measured a value may become before it overflows.

The largest by far are those of a text's first token, and hardly depend on the text (Sun et al., "Massive Activations in
Large Language Models", 2024): 20,500 in SmolLM2-135M."""

_SEARCHED = 1 << 22
"""Numbers of a constant that is looked through for such as float16 does not hold; larger ones are weights."""

_INFINITE = 1e8
"""From where on a number in a float32 model stands for infinity, rather than for a frequency or an offset."""

_SENSITIVE = frozenset(
    "Acos Acosh Asin Asinh Atan Atanh Cos Cosh CumSum Det GridSample Log NonMaxSuppression ReduceL1 ReduceL2 "
    "ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare RoiAlign Sin Sinh Tan".split()
)
_STATISTICS = frozenset(operator for operator in _SENSITIVE if operator.startswith("Reduce") or operator == "Log")
_BY_NUMBER = frozenset(
    "Abs Add Cast Clip Div Exp Identity Log Max Min Mul Neg Pow Reciprocal Sqrt Squeeze Sub Unsqueeze".split()
)
"""Operators that make another statistic of statistics."""

_APPLYING = frozenset({"Add", "Div", "Mul", "Sub"})
_FUNCTIONS = frozenset({"Abs", "Clip", "Exp", "Log", "Neg", "Pow", "Sigmoid", "Softmax", "Sqrt"})
_LOOKUPS = frozenset({"Gather", "GatherElements", "GatherND"})
BOUNDS = frozenset({"Clip", "Max", "Min"})
_MASKING = frozenset({"Add", "Sub", "Where"})
"""Operators that take in a number beyond float16's range as what stands for minus infinity."""

_CALCULATING = frozenset({"Div", "Gemm", "MatMul", "Mod", "Pow"})
"""Operators that make another number of such as masks and angles come from: their constants are what they are."""

_CODING = frozenset({"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"})
_CODING |= {"QuantizeLinear"}
"""Operators that give out activations as integers."""

_SCALING = frozenset({"DequantizeLinear", "QuantizeLinear"})

_AGNOSTIC = frozenset({"Cast", "IsInf", "IsNaN", "Shape", "Size"})
"""Operators whose first input may be of either type, and that give out the same."""

_SIZES = frozenset({"Shape", "Size"})
_LOOPS = frozenset({"Loop", "Scan"})
"""Operators whose bodies take and give float32, whatever they compute in."""

BEYOND, SUM, POSITION, NO_KERNEL = "beyond float16", "sums and norms", "positions and angles", "no float16 operator"


class Precision:
    """Which nodes of a model stay in float32, and of which type each value is then.

    Args:
        graph: The main graph, sorted; it must not change while this is in use.
        ranges: The largest magnitude of values of the main graph, by name, as far as they are known.
        half_inputs: Inputs of the graph that become float16.
    """

    def __init__(
        self, graph: ir.Graph, ranges: Mapping[str, float] | None = None, half_inputs: frozenset[ir.Value] = frozenset()
    ) -> None:
        self._half_inputs = half_inputs
        self._opset = graph.opset_imports.get("", 1)
        self._nodes = list(_inner_first(graph))
        types, sequences = element_types(graph), set(_sequences(graph, self._nodes))
        self.types = {value: None if value in sequences else kind for value, kind in types.items()}
        # What goes into a sequence, or comes out of one, has the type that the sequence was made with.
        self._bound = {node for node in self._nodes if not sequences.isdisjoint((*node.inputs, *node.outputs))}
        self._signatures = {node: self._signature(node) for node in self._nodes}
        self._ranges = self._find_ranges(ranges or {})
        self._numbers = self._find_numbers()
        self.kept: dict[ir.Node, str] = {}
        self._keep_forward()
        self._keep_backward()

    @property
    def mixed(self) -> bool:
        """Whether some of the model is float16 or bfloat16 already: whoever made it chose what is float32."""
        kinds = {kind for value, kind in self.types.items() if value.producer() is not None}
        return bool(kinds & {HALF, ir.DataType.BFLOAT16})

    def counts(self) -> Counter[str]:
        """Return how many nodes stay in float32 for each reason."""
        return Counter(self.kept.values())

    def is_constant(self, value: ir.Value) -> bool:
        """Whether a value is an initializer that no caller replaces."""
        return value.is_initializer() and not value.is_graph_input()

    def is_number(self, value: ir.Value) -> bool:
        """Whether a float follows from shapes, positions and constants alone, as masks and angles do."""
        return value in self._numbers

    def may_bound(self, node: ir.Node, array: np.ndarray) -> bool:
        """Whether the numbers of a constant that are beyond float16's range may be brought into it at a node."""
        if node.domain or any(value.is_graph_output() for value in node.outputs):
            return False  # the caller is told that number
        if node.op_type in BOUNDS:
            return self.kept.get(node) != POSITION
        beyond = np.unique(np.abs(array[np.isfinite(array) & (np.abs(array) > LARGEST)]))
        if len(beyond) > 1 or (beyond < _INFINITE).any():
            return False
        if array.size == 1 and node.op_type == "Mul":
            return True  # of a mask that the caller gives
        numbers = bool(node.outputs) and self.is_number(node.outputs[0]) and node.op_type not in _CALCULATING
        return node.op_type in _MASKING or numbers

    def made(self, value: ir.Value) -> ElementType:
        """Return the type in which a value is computed."""
        kind = self.types.get(value)
        if kind != FLOAT:
            return kind
        node = value.producer()
        if node is None:
            return HALF if value in self._half_inputs else FLOAT
        if node.op_type == "If" and not node.domain:
            place = list(node.outputs).index(value)
            returned = [body.outputs[place] for body in bodies(node)]
            return HALF if all(self.made(item) == HALF for item in returned) else FLOAT
        return HALF if self._narrows(node, self._slot(node, list(node.outputs).index(value), output=True)) else FLOAT

    def wants(self, node: ir.Node, index: int) -> ElementType:
        """Return the float type that a node wants for an input that is float32 now; None if either will do."""
        if not node.domain and node.op_type in _AGNOSTIC and index == 0 and node not in self.kept:
            return None
        return HALF if self._narrows(node, self._slot(node, index)) else FLOAT

    def _narrows(self, node: ir.Node, slot: Slot | None) -> bool:
        return slot is not None and "float16" in slot.types and node not in self.kept and not _is_loop(node)

    def _slot(self, node: ir.Node, index: int, *, output: bool = False) -> Slot | None:
        slots = self._signatures[node]
        chosen = () if slots is None else slots[output]
        return chosen[index] if index < len(chosen) else None

    def _signature(self, node: ir.Node) -> Signature | None:
        return None if node in self._bound else signature(node, self._opset)

    def _floats(self, node: ir.Node) -> list[ir.Value]:
        """Return the float32 inputs of a node that are no constants."""
        values = [value for value in node.inputs if value is not None and self.types.get(value) == FLOAT]
        return [value for value in values if not self.is_constant(value)]

    def _find_numbers(self) -> set[ir.Value]:
        found: set[ir.Value] = set()
        codes: set[ir.Value] = set()
        for node in self._nodes:
            inner = list(bodies(node))
            coded = node.op_type in _CODING or not codes.isdisjoint(node.inputs)
            for place, value in enumerate(node.outputs):
                if not _is_float(self.types.get(value)):
                    codes.update([value] if coded and node.op_type not in _SIZES else [])
                    continue
                if coded or node.op_type in _LOOKUPS or _is_loop(node):
                    continue
                sources = [body.outputs[place] for body in inner] if inner else node.inputs
                floats = [item for item in sources if item is not None and _is_float(self.types.get(item))]
                if all(source in found or self.is_constant(source) for source in floats):
                    found.add(value)
        return found

    def _find_ranges(self, measured: Mapping[str, float]) -> dict[str, float]:
        """Return how large values become, with what bodies return that becomes a value that was measured."""
        found = dict(measured)
        for node in reversed(self._nodes):
            skipped = 1 if node.op_type == "Loop" else 0  # whether to go on
            for body in bodies(node):
                for value, returned in zip(node.outputs, body.outputs[skipped:], strict=False):
                    name = str(returned.name)
                    found[name] = max(found.get(name, 0.0), found.get(str(value.name), 0.0))
        return found

    def _keep_forward(self) -> None:
        """Keep what adds up, what follows from it, what goes beyond float16, and what has no float16."""
        statistics: set[ir.Value] = set()
        for node in self._nodes:
            read, plain = self._floats(node), not node.domain
            floats = [value for value in node.outputs if self.types.get(value) == FLOAT]
            if not floats and not read:
                continue
            why, guards = "", False
            if plain and node.op_type in _SENSITIVE:
                why = SUM if node.op_type in _STATISTICS else POSITION
            elif plain and node.op_type in _BY_NUMBER and read and statistics.issuperset(read):
                why = SUM
            elif plain and node.op_type in _APPLYING and not statistics.isdisjoint(read):
                why = SUM
                floats = []  # a number for each activation again
            elif read and not floats and all(self.is_number(value) for value in read) and node.op_type not in _SIZES:
                why = POSITION  # an index or a mask
            elif plain and node.op_type == "Sub" and len(read) == 2 and all(self.is_number(value) for value in read):
                why = POSITION  # a distance
            elif self._goes_beyond(node):
                why = BEYOND
            elif self._is_too_fine(node):
                why, guards = BEYOND, node.op_type not in _SCALING
            elif not self._has_half(node):
                why = NO_KERNEL
            if why:
                self.kept[node] = why
            if why == SUM or guards:
                statistics.update(floats)

    def _has_half(self, node: ir.Node) -> bool:
        if next(bodies(node), None) is not None:
            return True  # decided inside
        ends = [(value, self._slot(node, place)) for place, value in enumerate(node.inputs) if value is not None]
        ends += [(value, self._slot(node, place, output=True)) for place, value in enumerate(node.outputs)]
        return any(
            slot is not None and "float16" in slot.types and self.types.get(value) == FLOAT for value, slot in ends
        )

    def _goes_beyond(self, node: ir.Node) -> bool:
        """Whether a node meets numbers that float16 may not hold."""
        for value in (*node.inputs, *node.outputs):
            size = 0.0 if value is None else self._ranges.get(str(value.name), 0.0)
            # Masks do not grow: what stands for infinity is as large as it was made.
            if value is not None and size * (1 if self.is_number(value) else HEADROOM) > LARGEST:
                return True
        arrays = self._constants(node)
        return any(
            np.abs(array[np.isfinite(array)]).max(initial=0) > LARGEST and not self.may_bound(node, array)
            for array in arrays
        )

    def _is_too_fine(self, node: ir.Node) -> bool:
        """Whether a node reads an epsilon, which as zero would guard against nothing, or scales that float16 rounds."""
        for sizes in map(np.abs, self._constants(node)):
            fine = (sizes > 0) & (sizes < SMALLEST)
            if fine.any() and (sizes.size == 1 or (node.op_type in _SCALING and not node.domain)):
                return True
        return False

    def _constants(self, node: ir.Node) -> list[np.ndarray]:
        values = [value for value in node.inputs if value is not None and self.types.get(value) == FLOAT]
        return [small_constant(value) for value in values if self.is_constant(value)]

    def _keep_backward(self) -> None:
        """Keep positions that something kept reads, and functions that nothing else reads."""
        returned: set[ir.Value] = set()  # by branches, and wanted in float32 behind their If
        for node in reversed(self._nodes):
            wanted = [value for value in node.outputs if value in returned or self._is_wanted_in_float(value)]
            for body in bodies(node):
                if node.op_type == "If" and not node.domain:
                    places = [place for place, value in enumerate(node.outputs) if value in wanted]
                    returned.update(body.outputs[place] for place in places)
            if self.kept.get(node, BEYOND) != BEYOND or not wanted or node.domain:
                continue
            if all(self.is_number(value) for value in wanted):
                self.kept[node] = POSITION
            elif self._is_function(node) and all(reader in self.kept for reader, _ in node.outputs[0].uses()):
                self.kept[node] = SUM

    def _is_wanted_in_float(self, value: ir.Value) -> bool:
        return self.types.get(value) == FLOAT and any(self.wants(*use) == FLOAT for use in value.uses())

    def _is_function(self, node: ir.Node) -> bool:
        if node.outputs[0].is_graph_output():
            return False
        return node.op_type in _FUNCTIONS or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1])


def small_constant(value: ir.Value) -> np.ndarray:
    """Return the numbers of a constant, none of one that is too large to be anything but a weight."""
    shape = constant_shape(value)
    array = constant_array(value) if shape is not None and math.prod(shape) <= _SEARCHED else None
    return np.empty(0, np.float32) if array is None else array


def _is_float(kind: ElementType) -> bool:
    return kind is not None and kind.is_floating_point()


def _is_loop(node: ir.Node) -> bool:
    return node.op_type in _LOOPS and not node.domain


def _sequences(graph: ir.Graph, nodes: Iterable[ir.Node]) -> Iterator[ir.Value]:
    """Yield the values that are no tensors."""
    found = {value for part in (graph, *graph.subgraphs()) for value in part.inputs if not _may_be_tensor(value)}
    for node in nodes:
        returned = (value for body in bodies(node) for value in body.outputs)
        passed = (*returned, *(node.inputs if node.op_type == "Identity" else ()))
        if (node.op_type in SEQUENCES and not node.domain) or any(value in found for value in passed):
            found.update(node.outputs)
    yield from found


def _may_be_tensor(value: ir.Value) -> bool:
    return value.type is None or isinstance(value.type, ir.TensorType)


def _inner_first(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield all nodes in order, those of bodies before what holds them."""
    for node in graph:
        for body in bodies(node):
            yield from _inner_first(body)
        yield node
