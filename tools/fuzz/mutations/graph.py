"""The graph: what reads what, bodies and functions, types, names."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper

from models.dressing import STRANGE, graphs_of
from tools.fuzz.mutations.mutation import HUGE, Mutation, edited


def _node(model: onnx.ModelProto, choose: random.Random) -> onnx.NodeProto:
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    return choose.choice(nodes) if nodes else onnx.NodeProto()


def _values(model: onnx.ModelProto) -> list[str]:
    made = [name for node in model.graph.node for name in node.output]
    return [*made, *(item.name for item in (*model.graph.input, *model.graph.initializer)), "nobody", ""]


def _rewired(model: onnx.ModelProto, choose: random.Random) -> None:
    """A node reads something else: nothing, too little, too much, what it makes itself, what comes later."""
    node = _node(model, choose)
    if not node.input:
        return
    match choose.randrange(4):
        case 0:
            node.input[choose.randrange(len(node.input))] = choose.choice(_values(model))
        case 1:
            node.input.append(choose.choice(_values(model)))
        case 2:
            del node.input[-1]
        case _:
            node.input[0] = node.output[0]


def _renamed(model: onnx.ModelProto, choose: random.Random) -> None:
    """Two values of one name, or a value without one."""
    node = _node(model, choose)
    if node.output:
        node.output[0] = choose.choice(_values(model))


def _cycle(model: onnx.ModelProto, choose: random.Random) -> None:
    nodes = [node for node in model.graph.node if node.input and node.output]
    nodes[0].input[0] = choose.choice(nodes).output[0]


def _operator(model: onnx.ModelProto, choose: random.Random) -> None:
    node = _node(model, choose)
    node.op_type = choose.choice(("MatMul", "Gemm", "Add", "Reshape", "If", "Loop", "Constant", "", "Nothing", "a\x1b"))
    if choose.random() < 0.2:
        node.domain = choose.choice(("com.microsoft", "nobody.knows", "ai.onnx", "ai.onnx.ml", "\x1b[1m"))


def _attribute(model: onnx.ModelProto, choose: random.Random) -> None:
    """An attribute of another type, without a value, or one that the operator does not know."""
    node = _node(model, choose)
    names = [attribute.name for attribute in node.attribute] or ["axis", "transB", "alpha", "perm", "value"]
    name = choose.choice(names)
    kept = [AttributeProto.FromString(item.SerializeToString()) for item in node.attribute if item.name != name]
    value: Any = choose.choice((1, -5, 2**62, 0.5, float("nan"), "text\x1b", [1, 2], [2**60], [-1], [0.5], ["a"]))
    new = helper.make_attribute(name, value)
    if choose.random() < 0.2:
        new.type = choose.choice(range(15))  # type: ignore[assignment]
    if choose.random() < 0.1:
        new.ref_attr_name = "nothing"
    del node.attribute[:]
    node.attribute.extend([*kept, new])


def _nested(model: onnx.ModelProto, choose: random.Random) -> None:
    """An If in an If in an If; the output of the model comes out of the innermost."""
    value = model.graph.output[0].name if model.graph.output else "x"
    model.graph.initializer.append(helper.make_tensor("always", TensorProto.BOOL, [], [True]))
    inner = helper.make_graph(
        [helper.make_node("Identity", [value], ["deep_0"])],
        "deep_0",
        [],
        [helper.make_empty_tensor_value_info("deep_0")],
    )
    for depth in range(1, choose.choice((2, 5, 15, 26))):
        name = f"deep_{depth}"
        node = helper.make_node(
            "If", ["always"], [name], name, then_branch=inner, else_branch=inner if depth < 4 else _leaf(value)
        )
        inner = helper.make_graph([node], name, [], [helper.make_empty_tensor_value_info(name)])
    last = helper.make_node("If", ["always"], ["deepest"], "deepest", then_branch=inner, else_branch=_leaf(value))
    model.graph.node.append(last)
    model.graph.output.append(helper.make_tensor_value_info("deepest", TensorProto.FLOAT, None))


def _too_deep(folder: Path, choose: random.Random) -> bool:
    """Thousands of bodies in each other, written as bytes: no library would build such a message."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2, *length, size]) + content

    graph = field(2, b"deep")
    for _ in range(choose.choice((40, 200, 3000))):
        attribute = field(1, b"then_branch") + field(6, graph) + bytes([20 << 3 & 127 | 128, 1, 5])
        graph = field(1, field(4, b"If") + field(5, attribute))
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes() + field(7, graph))
    return True


def _leaf(value: str) -> onnx.GraphProto:
    node = helper.make_node("Identity", [value], ["leaf"])
    return helper.make_graph([node], "leaf", [], [helper.make_empty_tensor_value_info("leaf")])


def _chain(model: onnx.ModelProto, choose: random.Random) -> None:
    """A long row of nodes before the first one."""
    node = next((node for node in model.graph.node if node.input and node.input[0]), None)
    if node is None:
        return
    value = node.input[0]
    count, operator = choose.choice((100, 1500)), choose.choice(("Identity", "Relu"))
    links = [
        helper.make_node(operator, [f"link_{index - 1}" if index else value], [f"link_{index}"])
        for index in range(count)
    ]
    node.input[0] = f"link_{count - 1}"
    nodes = [*links, *(onnx.NodeProto.FromString(item.SerializeToString()) for item in model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _recursive_function(model: onnx.ModelProto, choose: random.Random) -> None:
    """A function that calls itself, or two that call each other."""
    names = ["Self"] if choose.random() < 0.5 else ["Ping", "Pong"]
    for index, name in enumerate(names):
        callee = names[(index + 1) % len(names)]
        node = helper.make_node(callee, ["a"], ["b"], domain="local")
        imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
        model.functions.append(helper.make_function("local", name, ["a"], ["b"], [node], imports))
    _call(model, names[0])


def _bomb(model: onnx.ModelProto, choose: random.Random) -> None:
    """Functions that call the next one twice each: a few of them are more nodes than there is memory."""
    depth = choose.choice((24, 40, 64))
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    for level in range(depth):
        callee, domain = (f"Level{level + 1}", "local") if level < depth - 1 else ("Relu", "")
        nodes = [
            helper.make_node(callee, ["a"], ["m"], domain=domain),
            helper.make_node(callee, ["m"], ["b"], domain=domain),
        ]
        model.functions.append(helper.make_function("local", f"Level{level}", ["a"], ["b"], nodes, imports))
    _call(model, "Level0")


def _call(model: onnx.ModelProto, function: str) -> None:
    if all(entry.domain != "local" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("local", 1))
    outputs = model.graph.output or model.graph.input  # another mutation may have taken them away
    value = outputs[0].name if outputs else "nothing"
    model.graph.node.append(helper.make_node(function, [value], ["called"], "called", domain="local"))
    model.graph.output.append(helper.make_tensor_value_info("called", TensorProto.FLOAT, None))


def _huge_value(model: onnx.ModelProto, choose: random.Random) -> None:
    """A value that ONNX Runtime would have to allocate: terabytes, or more than a number can count."""
    shape = choose.choice(([2**60], [2**20, 2**22], [2**31, 2**31], [2**62, 4], [-1], [2**40]))
    model.graph.initializer.append(helper.make_tensor("huge_shape", TensorProto.INT64, [len(shape)], shape))
    if choose.random() < 0.5:
        node = helper.make_node("ConstantOfShape", ["huge_shape"], ["huge"], "huge")
    else:
        model.graph.initializer.append(helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
        node = helper.make_node("Expand", ["one", "huge_shape"], ["huge"], "huge")
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info("huge", TensorProto.FLOAT, None))


def _opset(model: onnx.ModelProto, choose: random.Random) -> None:
    entry = choose.choice(model.opset_import)
    entry.version = choose.choice((-1, 0, 1, 2, 5, 7, 12, 22, 27, 1000, 2**31, 2**63 - 1))
    if choose.random() < 0.2:
        model.opset_import.append(
            helper.make_opsetid(choose.choice(("", "nobody.knows", "ai.onnx")), choose.choice((1, 13, 99)))
        )


def _interface(model: onnx.ModelProto, choose: random.Random) -> None:
    """Inputs and outputs of other types and shapes, too many or too few of them."""
    items = choose.choice((model.graph.input, model.graph.output))
    if not items or choose.random() < 0.1:
        items.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
        return
    item = choose.choice(items)
    match choose.randrange(6):
        case 0:
            item.ClearField("type")
        case 1:
            item.type.tensor_type.elem_type = choose.choice((0, 2, 7, 8, 9, 10, 16, 22, 99, -1))
        case 2:
            item.type.tensor_type.shape.dim.add().dim_value = choose.choice(HUGE)
        case 3:
            for dim in item.type.tensor_type.shape.dim:
                dim.dim_value = choose.choice(HUGE)
        case 4:
            items.append(item)
        case _:
            item.CopyFrom(helper.make_tensor_sequence_value_info(item.name, TensorProto.FLOAT, None))


def _names(model: onnx.ModelProto, choose: random.Random) -> None:
    for graph in graphs_of(model.graph):
        for node in graph.node:
            node.name = choose.choice((*STRANGE, node.name, "\0", "\r\n\x07", "\x9b31m", "\u2028", "y" * 100_000))
    for entry in model.metadata_props:
        entry.value = "\x1b]0;title\x07"


GRAPH: Mapping[str, Mutation] = {
    "rewired": Mutation(edited(_rewired)),
    "renamed": Mutation(edited(_renamed)),
    "cycle": Mutation(edited(_cycle)),
    "operator": Mutation(edited(_operator)),
    "attribute": Mutation(edited(_attribute)),
    "nested": Mutation(edited(_nested)),
    "nested too deep": Mutation(_too_deep, refused=True),
    "chain": Mutation(edited(_chain)),
    "recursive function": Mutation(edited(_recursive_function), refused=True),
    "functions without end": Mutation(edited(_bomb), refused=True),
    "huge value": Mutation(edited(_huge_value)),
    "opset": Mutation(edited(_opset)),
    "interface": Mutation(edited(_interface)),
    "names": Mutation(edited(_names)),
}
"""Name -> how a model is broken."""
