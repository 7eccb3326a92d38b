"""Element types: of every value of a model, and of what each input and output of a node may hold.

Operators of standard ONNX are read from its schemas; those of ONNX Runtime that hold activations stand in a table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import onnx
import onnx_ir as ir

from catonnx.graph.bodies import bodies

ElementType: TypeAlias = ir.DataType | None

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

_BY_ATTRIBUTE: Mapping[str, tuple[str, ElementType]] = {
    "Cast": ("to", None),
    "BlackmanWindow": ("output_datatype", FLOAT),
    "HammingWindow": ("output_datatype", FLOAT),
    "HannWindow": ("output_datatype", FLOAT),
    "MelWeightMatrix": ("output_datatype", FLOAT),
    "Multinomial": ("dtype", ir.DataType.INT32),
    "RandomNormal": ("dtype", FLOAT),
    "RandomUniform": ("dtype", FLOAT),
    "Bernoulli": ("dtype", None),
    "EyeLike": ("dtype", None),
    "RandomNormalLike": ("dtype", None),
    "RandomUniformLike": ("dtype", None),
    "SequenceEmpty": ("dtype", FLOAT),
    "DequantizeLinear": ("output_dtype", None),
    "QuantizeLinear": ("output_dtype", None),
}
"""Operators whose output has the type that an attribute names -> that attribute, and what its absence means: a type, or
that of the input that `_LIKE` names."""

SEQUENCES = frozenset(
    "Optional SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceMap SplitToSequence".split()
)
"""Operators that give out what is no tensor but holds some, all of one type."""

_LIKE = {"DequantizeLinear": 1, "QuantizeLinear": 2, "CastLike": 1, "ConcatFromSequence": 0, "OptionalGetElement": 0}
_LIKE |= {"SequenceAt": 0} | dict.fromkeys(SEQUENCES - {"SequenceEmpty"}, 0)
_CONSTANTS = {
    "value_float": FLOAT,
    "value_floats": FLOAT,
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
    "value_string": ir.DataType.STRING,
    "value_strings": ir.DataType.STRING,
}

_OF_ONE_TYPE = frozenset(
    "Attention BiasGelu FastGelu FusedMatMul Gelu GroupQueryAttention MatMulNBits MultiHeadAttention QuickGelu "
    "RotaryEmbedding SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization".split()
)
"""Operators of ONNX Runtime whose floats are all of one type, float32 or float16."""

_STATISTICS = {
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (1, 2),
    "SkipSimplifiedLayerNormalization": (1, 2),
}
"""Outputs of these that are float32 all the same."""


class Slot(NamedTuple):
    """What one input or output of a node may hold.

    Attributes:
        variable: Name of what it shares its type with; empty if it is fixed.
        types: The element types that it takes; empty where it is no tensor.
    """

    variable: str
    types: frozenset[str]


class Signature(NamedTuple):
    """What the inputs and outputs of a node may hold, one slot each."""

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]


_ANY_FLOAT = frozenset({"float", "float16", "bfloat16"})
_ONLY_FLOAT = Slot("", frozenset({"float"}))


def signature(node: ir.Node, opset: int) -> Signature | None:
    """Return what a node may hold; None if its operator is not known.

    Args:
        node: A node of standard ONNX or of ONNX Runtime.
        opset: The opset of the former.
    """
    return _signature(node.domain, node.op_type, opset, len(node.inputs), len(node.outputs))


@functools.cache
def _signature(domain: str, operator: str, opset: int, inputs: int, outputs: int) -> Signature | None:
    schema = _schema(domain, operator, opset)
    if schema is not None:
        return Signature(_slots(schema.inputs, inputs, schema), _slots(schema.outputs, outputs, schema))
    if operator not in _OF_ONE_TYPE or domain not in ("", "com.microsoft"):
        return None
    of_one, held = Slot("T", _ANY_FLOAT), _STATISTICS.get(operator, ())
    return Signature((of_one,) * inputs, tuple(_ONLY_FLOAT if index in held else of_one for index in range(outputs)))


def _schema(domain: str, operator: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return None if domain else onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return None


def _slots(formal: Sequence[Any], count: int, schema: onnx.defs.OpSchema) -> tuple[Slot, ...]:
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    slots = []
    for index in range(count):
        if not formal:
            break
        parameter = formal[min(index, len(formal) - 1)]  # the last may stand for many
        variable = parameter.type_str if parameter.type_str in allowed else ""
        texts = allowed.get(parameter.type_str, [parameter.type_str])
        tensors = frozenset(text[len("tensor(") : -1] for text in texts if text.startswith("tensor("))
        # Of a list that may hold different types, each has its own.
        slots.append(Slot(f"{variable}{index}" if variable and not parameter.is_homogeneous else variable, tensors))
    return tuple(slots)


def type_attribute(node: ir.Node) -> str:
    """Return the attribute that has to name the type of what a node gives out; empty if its inputs tell."""
    name, default = ("", None) if node.domain else _BY_ATTRIBUTE.get(node.op_type, ("", None))
    return name if name in node.attributes or default is not None else ""


def element_types(graph: ir.Graph) -> dict[ir.Value, ElementType]:
    """Return the element type of every value of a graph and its bodies, sequences included; None where it is not known.

    Args:
        graph: Sorted, names of types as declared are taken for true.
    """
    opset = graph.opset_imports.get("", 1)
    known: dict[ir.Value, ElementType] = {}
    for part in (graph, *graph.subgraphs()):
        for value in (*part.inputs, *part.initializers.values()):
            known[value] = _declared(value)
    _visit(graph, opset, known)
    return known


def _visit(graph: ir.Graph, opset: int, known: dict[ir.Value, ElementType]) -> None:
    for node in graph:
        for body in bodies(node):
            _visit(body, opset, known)
        for value, inferred in zip(node.outputs, _inferred(node, opset, known), strict=True):
            declared = _declared(value)
            known[value] = inferred if declared is None else declared


def _declared(value: ir.Value) -> ElementType:
    if value.const_value is not None:
        return value.const_value.dtype
    kind = value.type
    while isinstance(kind, ir.SequenceType | ir.OptionalType):
        kind = kind.elem_type
    return kind.dtype if isinstance(kind, ir.TensorType) else None


def _inferred(node: ir.Node, opset: int, known: Mapping[ir.Value, ElementType]) -> Iterator[ElementType]:
    kinds = [None if value is None else known.get(value) for value in node.inputs]
    if own := list(_returned(node, known)):
        yield from own
        return
    special = None if node.domain else _special(node, kinds)
    slots = signature(node, opset)
    if special is not None or slots is None:
        floats = [kind for kind in kinds if kind is not None and kind.is_floating_point()]
        # Of an operator that nobody knows, the first output is what it is for.
        yield from (special or (next(iter(floats), None) if place == 0 else None) for place in range(len(node.outputs)))
        return
    bound: dict[str, ElementType] = {}
    for slot, kind in zip(slots.inputs, kinds, strict=False):
        if kind is not None:
            bound.setdefault(slot.variable, kind)  # of ONNX Runtime's operators the first, no codes or lengths
    for slot in slots.outputs:
        yield bound.get(slot.variable) or _only(slot.types)


def _returned(node: ir.Node, known: Mapping[ir.Value, ElementType]) -> Iterator[ElementType]:
    """Yield the types of what bodies return, as far as it becomes outputs of their node."""
    body = next(bodies(node), None)
    if body is None:
        return
    skipped = 1 if node.op_type == "Loop" else 0  # whether to go on
    kinds = [known.get(value) for value in body.outputs[skipped:]]
    yield from (kinds[index] if index < len(kinds) else None for index in range(len(node.outputs)))


def _special(node: ir.Node, kinds: Sequence[ElementType]) -> ElementType:
    """Return the type of what an operator gives out that does not follow from what it reads; else None."""
    if node.op_type in ("Constant", "ConstantOfShape"):
        value = node.attributes.get("value")
        if value is not None:
            return value.as_tensor().dtype
        return next((kind for name, kind in _CONSTANTS.items() if name in node.attributes), FLOAT)
    name, default = _BY_ATTRIBUTE.get(node.op_type, ("", None))
    named = node.attributes.get_int(name, 0) if name else 0
    if named:
        return ir.DataType(named)
    place = _LIKE.get(node.op_type, 0)
    if node.op_type in _BY_ATTRIBUTE or node.op_type in _LIKE:
        return default or (kinds[place] if place < len(kinds) else ir.DataType.UINT8)
    return None


def _only(types: frozenset[str]) -> ElementType:
    return ir.DataType[next(iter(types)).upper()] if len(types) == 1 else None
