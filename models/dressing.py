"""The same graph in other clothes: names, places of constants, types, functions. What it computes stays as it is."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

import onnx
from onnx import TensorProto, helper, numpy_helper

NO_FUNCTIONS = ("If", "Loop", "Constant", "SimplifiedLayerNormalization")
"""Operators that stay outside of functions; of the last one there ONNX Runtime 1.31 dies."""

STRANGE = (
    "重み/µ",
    "a b\tc",
    "x/weight",
    "x/weight_scale",
    "x/transpose",
    "x_cat",
    "\x1b[31mred\x1b[0m",
    "\u202egnp.exe",
    "line\nbreak",
    "[bold]rich[/bold]",
    "%s{0}\\",
    "n" * 300,
    "../../up",
    "node_MatMul_0",
)


def graphs_of(graph: onnx.GraphProto) -> Iterable[onnx.GraphProto]:
    """Yield a graph and all graphs in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from graphs_of(inner)


def tensors_of(model: onnx.ModelProto) -> Iterable[onnx.TensorProto]:
    """Yield initializers and the values of Constant nodes, those in bodies and functions too."""
    graphs = list(graphs_of(model.graph))
    for graph in graphs:
        yield from graph.initializer
    for node in (*(node for graph in graphs for node in graph.node), *(n for f in model.functions for n in f.node)):
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def rename_nodes(model: onnx.ModelProto, choose: random.Random) -> None:
    """Give nodes no names, all the same one, strange ones, or such as our own nodes have."""
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    style = choose.choice(("empty", "strange", "strange", "ours", "ours", "same"))
    for index, node in enumerate(nodes):
        match style:
            case "empty":
                node.name = ""
            case "same":
                node.name = "same"
            case "strange":
                node.name = f"{choose.choice(STRANGE)}{index}"
            case _:
                ending = choose.choice(("_cat", "/weight", "/transpose", "_inverse", "/corrected", ""))
                node.name = f"{nodes[index - 1].output[0]}{ending}"


def rename_values(model: onnx.ModelProto, choose: random.Random) -> dict[str, str]:
    """Give every value another name, some such as our own have; return old name -> new name of those of the graph."""
    style = choose.choice(("numbers", "strange", "ours"))
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    endings = ("_cat", "/weight", "/transpose", "/weight_scale", "_inverse", "_quantized", "/bias", "/corrected")
    new: dict[str, str] = {}

    def named(old: str) -> str:
        if not old:
            return old
        if old not in new:
            wanted = {
                "numbers": str(len(new)),
                "strange": f"{choose.choice(STRANGE)}{len(new)}",
                "ours": f"{choose.choice(nodes).name}{choose.choice(endings)}",
            }[style]
            new[old] = wanted if wanted not in new.values() else f"{wanted}_{len(new)}"
        return new[old]

    for graph in graphs_of(model.graph):
        for item in (*graph.input, *graph.initializer, *graph.output, *graph.value_info):
            item.name = named(item.name)
        for node in graph.node:
            node.input[:] = [named(name) for name in node.input]
            node.output[:] = [named(name) for name in node.output]
    return new


def constants_as_nodes(model: onnx.ModelProto, choose: random.Random) -> None:
    """Move some initializers to Constant nodes, and list some others as inputs too, as old exporters do."""
    kept = []
    for tensor in list(model.graph.initializer):
        if choose.random() < 0.4:
            node = helper.make_node("Constant", [], [tensor.name], name=f"constant_{tensor.name}", value=tensor)
            model.graph.node.insert(0, node)
            continue
        kept.append(tensor)
        if choose.random() < 0.2:
            given = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(given)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def halve(model: onnx.ModelProto) -> None:
    """Take a float32 model to float16: weights, constants, casts, and the types of its values."""
    for tensor in tensors_of(model):
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).clip(-65504, 65504)
            tensor.CopyFrom(numpy_helper.from_array(array.astype("float16"), tensor.name))
    for graph in graphs_of(model.graph):
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
        del graph.value_info[:]
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16


def as_functions(model: onnx.ModelProto, choose: random.Random) -> None:
    """Move some nodes of the main graph into local functions of one node each."""
    for node in model.graph.node:
        if choose.random() > 0.3 or "" in node.input or node.op_type in NO_FUNCTIONS:
            continue
        index = len(model.functions)
        inputs, outputs = [f"in{i}" for i in range(len(node.input))], [f"out{i}" for i in range(len(node.output))]
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.input[:], inner.output[:] = inputs, outputs
        name = f"{node.op_type}_{index}"
        imports = [entry for entry in model.opset_import if entry.domain != "local"]
        model.functions.append(helper.make_function("local", name, inputs, outputs, [inner], imports))
        node.op_type, node.domain = name, "local"
        del node.attribute[:]
    if model.functions:
        model.opset_import.append(helper.make_opsetid("local", 1))


def dress(model: onnx.ModelProto, choose: random.Random) -> Mapping[str, str]:
    """Change a model's clothes, some of them; return old name -> new name of its values if they have new ones."""
    if choose.random() < 0.25:
        constants_as_nodes(model, choose)
    if choose.random() < 0.15:
        as_functions(model, choose)
    if choose.random() < 0.25:
        rename_nodes(model, choose)
    return rename_values(model, choose) if choose.random() < 0.25 else {}
