"""Ways to break a model on disk. Each changes one thing in a folder with `model.onnx`; all choices come from one seed.

Beside that folder lies another, `outside`, whose files nobody may read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import AttributeProto, TensorProto, helper

from models.dressing import STRANGE, graphs_of, tensors_of

SECRET = "secret.bin"
HUGE = (-1, 0, 1, 2, -(2**63), 2**31 - 1, 2**31, 2**32, 2**40, 2**60, 2**62, 2**63 - 1)


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One way to break a model.

    Attributes:
        change: Changes a folder; does nothing where it finds nothing to change.
        refused: Whether a model that was changed must be refused.
    """

    change: Callable[[Path, random.Random], bool | None]
    refused: bool = False


Edit = Callable[[onnx.ModelProto, random.Random], None]


def _edit(edit: Edit) -> Callable[[Path, random.Random], bool]:
    """Return what changes the model itself, as a message."""

    def change(folder: Path, choose: random.Random) -> bool:
        path = folder / "model.onnx"
        try:
            model = onnx.load(path, load_external_data=False)
        except DecodeError:
            return False
        before: bytes = model.SerializeToString(deterministic=True)
        edit(model, choose)
        after: bytes = model.SerializeToString(deterministic=True)
        path.write_bytes(after)
        return before != after

    return change


# --- bytes ------------------------------------------------------------------------------------------------------------


def _bytes(change: Callable[[bytearray, random.Random], None]) -> Callable[[Path, random.Random], bool]:
    """Return what changes the bytes of the model, now and then of another file of it."""

    def mutate(folder: Path, choose: random.Random) -> bool:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "model.onnx")
        path = choose.choice(files) if files and choose.random() < 0.2 else folder / "model.onnx"
        content = bytearray(path.read_bytes())
        if not content:
            return False
        change(content, choose)
        path.write_bytes(content)
        return True

    return mutate


def _flip(content: bytearray, choose: random.Random) -> None:
    for _ in range(choose.choice((1, 1, 2, 5, 20))):
        content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)


def _overwrite(content: bytearray, choose: random.Random) -> None:
    start = choose.randrange(len(content))
    size = choose.choice((1, 2, 4, 8, 64))
    content[start : start + size] = choose.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * size


def _truncate(content: bytearray, choose: random.Random) -> None:
    del content[choose.randrange(len(content)) :]


def _insert(content: bytearray, choose: random.Random) -> None:
    place = choose.randrange(len(content) + 1)
    content[place:place] = choose.randbytes(choose.choice((1, 2, 10, 1000)))


def _delete(content: bytearray, choose: random.Random) -> None:
    start = choose.randrange(len(content))
    del content[start : start + choose.choice((1, 2, 10, 100))]


def _repeat(content: bytearray, choose: random.Random) -> None:
    start = choose.randrange(len(content))
    part = content[start : start + choose.choice((2, 20, 200))]
    content[start:start] = part * choose.choice((1, 3))


# --- any field --------------------------------------------------------------------------------------------------------


def _fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Yield every field that is set, in a message and below."""
    for field, value in message.ListFields():
        yield message, field
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if _repeated(field) else (value,):
                yield from _fields(part)


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _any_field(model: onnx.ModelProto, choose: random.Random) -> None:
    for _ in range(choose.choice((1, 1, 2, 4))):
        found = list(_fields(model))
        if not found:
            return
        message, field = choose.choice(found)
        if choose.random() < 0.15:
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            _change_messages(message, field, choose)
        elif _repeated(field):
            values = getattr(message, field.name)
            values[choose.randrange(len(values))] = _other(field, choose.choice(list(values)), choose)
        else:
            setattr(message, field.name, _other(field, getattr(message, field.name), choose))


def _change_messages(message: Message, field: FieldDescriptor, choose: random.Random) -> None:
    """Leave out, repeat or reorder parts."""
    if not _repeated(field):
        message.ClearField(field.name)
        return
    parts = [type(part).FromString(part.SerializeToString()) for part in getattr(message, field.name)]
    index = choose.randrange(len(parts))
    match choose.randrange(3):
        case 0:
            del parts[index]
        case 1:
            parts.insert(choose.randrange(len(parts) + 1), parts[index])
        case _:
            choose.shuffle(parts)
    message.ClearField(field.name)
    getattr(message, field.name).extend(parts)


def _other(field: FieldDescriptor, value: Any, choose: random.Random) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return choose.choice((*STRANGE, "", "\0", value + "\0", value * 2, "x", "MatMul", "../outside/secret.bin"))
        case FieldDescriptor.TYPE_BYTES:
            return choose.choice((b"", value[: len(value) // 2], value + b"\0", value * 3, b"\xff" * len(value)))
        case FieldDescriptor.TYPE_FLOAT | FieldDescriptor.TYPE_DOUBLE:
            return choose.choice((float("nan"), float("inf"), -1.0, 0.0, 1e38, 1e-45))
        case FieldDescriptor.TYPE_ENUM:
            return choose.choice(sorted(field.enum_type.values_by_number))
        case FieldDescriptor.TYPE_INT32:
            return choose.choice((-1, 0, 1, 2, value + 1, choose.randrange(30), 2**31 - 1))
        case FieldDescriptor.TYPE_UINT64:
            return choose.choice((0, 1, 2**63, 2**64 - 1))
        case _:
            return choose.choice((*HUGE, max(value - 1, -(2**63)), min(value + 1, 2**63 - 1)))


# --- tensors ----------------------------------------------------------------------------------------------------------


def _weight(model: onnx.ModelProto, choose: random.Random) -> TensorProto:
    tensors = [tensor for tensor in tensors_of(model) if len(tensor.dims) > 0]
    return choose.choice(tensors) if tensors else TensorProto()


def _dims(*choices: list[int]) -> Edit:
    def edit(model: onnx.ModelProto, choose: random.Random) -> None:
        tensor = _weight(model, choose)
        tensor.dims[:] = choose.choice(choices)

    return edit


def _resized(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = _weight(model, choose)
    if tensor.dims:
        tensor.dims[choose.randrange(len(tensor.dims))] = choose.choice((0, 1, 2, 7, 100, *HUGE))


def _data_type(model: onnx.ModelProto, choose: random.Random) -> None:
    _weight(model, choose).data_type = choose.choice((*range(27), -1, 99, 2**31 - 1))


def _strings(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = _weight(model, choose)
    size = 1
    for dim in tensor.dims:
        size *= dim
    name, dims = tensor.name, list(tensor.dims)
    changed = TensorProto(name=name, dims=dims, data_type=TensorProto.STRING, string_data=[b"a\x1b"] * min(size, 999))
    tensor.CopyFrom(changed)


def _raw_length(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = _weight(model, choose)
    raw = tensor.raw_data
    tensor.raw_data = choose.choice((b"", raw[:-1], raw + b"\0", raw[: len(raw) // 2], raw * 2))


def _typed_data(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = _weight(model, choose)
    tensor.float_data.extend([0.5] * choose.choice((1, 5, 1000)))
    if choose.random() < 0.5:
        tensor.ClearField("raw_data")


def _numbers(model: onnx.ModelProto, choose: random.Random) -> None:
    """NaN, Inf, denormals or huge numbers in a float tensor, anything in another."""
    tensor = _weight(model, choose)
    size = 4 if tensor.data_type == TensorProto.FLOAT else 8
    if len(tensor.raw_data) < size:
        return
    place = choose.randrange(len(tensor.raw_data) // size) * size
    number = choose.choice((float("nan"), float("inf"), -float("inf"), 1e38, 1e-42))
    code = struct.pack("<f", number) if size == 4 else struct.pack("<q", choose.choice(HUGE))
    tensor.raw_data = tensor.raw_data[:place] + code + tensor.raw_data[place + size :]


def _all_numbers(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = _weight(model, choose)
    if tensor.data_type == TensorProto.FLOAT and tensor.raw_data:
        number = choose.choice((0.0, 1.0, 1e-40, 3e38, 1e20, float("nan")))
        tensor.raw_data = struct.pack("<f", number) * (len(tensor.raw_data) // 4)


def _sparse(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = _weight(model, choose)
    values = helper.make_tensor(tensor.name, TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("at", TensorProto.INT64, [2], [0, choose.choice((1, -1, 2**40))])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(tensor.dims)))


# --- external data ----------------------------------------------------------------------------------------------------


def _external(key: str, *values: str) -> Edit:
    """Return what changes one entry of external data, making a tensor external if none is."""

    def edit(model: onnx.ModelProto, choose: random.Random) -> None:
        tensors = [tensor for tensor in tensors_of(model) if tensor.data_location == TensorProto.EXTERNAL]
        tensor = choose.choice(tensors) if tensors else _weight(model, choose)
        if not tensors:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="weights.bin")
        entries = [entry for entry in tensor.external_data if entry.key == key] or [tensor.external_data.add(key=key)]
        entries[0].value = choose.choice(values)

    return edit


NUMBERS = ("-1", "0", "1", str(2**31), str(2**62), str(2**63), str(2**64), "9" * 500, "", "x", "1e3", "0x10", " 4", "٣")

UP = (
    "../outside/secret.bin",
    "./../outside/secret.bin",
    "data/../../outside/secret.bin",
    "a/../../model/../outside/secret.bin",
)
ODD = (
    "",
    ".",
    "/",
    "model.onnx",
    "data",
    "weights.bin\0",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "x" * 5000,
    "~/x",
    "file:///etc/passwd",
)
ABSOLUTE = ("/etc/hostname", "/dev/zero", "/proc/self/environ", "//etc/hostname", "/dev/stdin", "/dev/tty")


def _free(path: Path) -> Path:
    """Remove what is at a path, and return the path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


def _linked(folder: Path, choose: random.Random) -> bool:
    """A file of the model, or a folder, is a link out of the model's folder."""
    outside = folder.parent / "outside"
    if choose.random() < 0.5:
        _free(folder / "link").symlink_to(outside)
        location = f"link/{SECRET}"
    else:
        _free(folder / "link.bin").symlink_to(choose.choice((outside / SECRET, Path("../outside") / SECRET)))
        location = "link.bin"
    return _edit(_external("location", location))(folder, choose)


def _absolute_outside(folder: Path, choose: random.Random) -> bool:
    return _edit(_external("location", str(folder.parent / "outside" / SECRET)))(folder, choose)


def _special(folder: Path, choose: random.Random) -> bool:
    """External data is a pipe that nobody writes to, a folder, or a link to itself."""
    place = _free(folder / "special")
    match choose.randrange(3):
        case 0:
            os.mkfifo(place)
        case 1:
            place.mkdir()
        case _:
            place.symlink_to("special")
    return _edit(_external("location", "special"))(folder, choose)


def _inner_external(model: onnx.ModelProto, choose: random.Random) -> None:
    """External data of a Constant, in the graph or in a function."""
    tensor = helper.make_tensor("outer", TensorProto.FLOAT, [4], [0.0] * 4)
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=choose.choice(UP))
    node = helper.make_node("Constant", [], ["from_outside"], "from_outside", value=tensor)
    user = helper.make_node("Identity", ["from_outside"], ["shown"], "shown")
    if choose.random() < 0.5:
        imports = [helper.make_opsetid("", 21)]
        model.functions.append(helper.make_function("local", "Reads", [], ["from_outside"], [node], imports))
        if all(entry.domain != "local" for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid("local", 1))
        node = helper.make_node("Reads", [], ["from_outside"], "call", domain="local")
    model.graph.node.extend([node, user])
    model.graph.output.append(helper.make_tensor_value_info("shown", TensorProto.FLOAT, [4]))


# --- the graph --------------------------------------------------------------------------------------------------------


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
    value = model.graph.output[0].name
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


# --- other files ------------------------------------------------------------------------------------------------------

JSON_FILES = ("config.json", "genai_config.json", "generation_config.json", "tokenizer.json")
BROKEN_JSON = (
    b"",
    b"{",
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b"\xff\xfe{}",
    b"\0" * 100,
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"bos_token_id": 1e400}',
    b'{"bos_token_id": ' + b"9" * 5000 + b"}",
)
ODD_BOS = (-1, 2**31, 2**63, 2**70, 10**400, 1.5, "1", True, None, [1], {"a": 1}, 259, 300)


def _json_bytes(folder: Path, choose: random.Random) -> bool:
    _free(folder / choose.choice(JSON_FILES)).write_bytes(choose.choice(BROKEN_JSON))
    return True


def _json_bos(folder: Path, choose: random.Random) -> bool:
    bos = choose.choice(ODD_BOS)
    name = choose.choice(JSON_FILES[:3])
    content: Any = (
        {"bos_token_id": bos} if name != "genai_config.json" else {"model": choose.choice((bos, {"bos_token_id": bos}))}
    )
    for other in JSON_FILES[:3]:
        _free(folder / other)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return True


def _json_link(folder: Path, choose: random.Random) -> bool:
    """A config or tokenizer is a link out of the folder, a pipe, a folder, or a link to itself."""
    name = choose.choice(JSON_FILES)
    _free(folder / name)
    match choose.randrange(4):
        case 0:
            (folder / name).symlink_to(folder.parent / "outside" / "config.json")
        case 1:
            os.mkfifo(folder / name)
        case 2:
            (folder / name).mkdir()
        case _:
            (folder / name).symlink_to(name)
    return True


def _companions(folder: Path, choose: random.Random) -> bool:
    """Other things in the folder: links, loops, pipes, odd names, names that results have."""
    _free(folder / "loop").symlink_to(".")
    _free(folder / "away").symlink_to(folder.parent / "outside")
    _free(folder / "nowhere").symlink_to("nothing")
    os.mkfifo(_free(folder / "pipe"))
    (
        folder / choose.choice(("a\nb", "\x1b[31m", "catonnx.json", "model.onnx_data", ".work", "-rf", "重み"))
    ).write_bytes(b"x")
    return True


def _model_itself(folder: Path, choose: random.Random) -> bool:
    """The model is a pipe, a folder, empty, or a link out of its folder."""
    path = folder / "model.onnx"
    path.unlink()
    match choose.randrange(4):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.write_bytes(b"")
        case _:
            path.symlink_to(path.name)
    return True


MUTATIONS: Mapping[str, Mutation] = {
    "bytes flipped": Mutation(_bytes(_flip)),
    "bytes overwritten": Mutation(_bytes(_overwrite)),
    "bytes cut off": Mutation(_bytes(_truncate)),
    "bytes inserted": Mutation(_bytes(_insert)),
    "bytes left out": Mutation(_bytes(_delete)),
    "bytes repeated": Mutation(_bytes(_repeat)),
    "any field": Mutation(_edit(_any_field)),
    "any fields": Mutation(_edit(_any_field)),
    "any field of many": Mutation(_edit(_any_field)),
    "dims negative": Mutation(_edit(_dims([-1], [-1, -1], [8, -12], [-(2**63), 2]))),
    "dims huge": Mutation(_edit(_dims([2**60], [2**30, 2**30], [2**58, 1], [2**40, 2])), refused=True),
    "dims overflowing": Mutation(
        _edit(_dims([2**32, 2**32], [2**63 - 1, 2**63 - 1], [2**62, 4], [2**33, 2**33, 2**33]))
    ),
    "dims changed": Mutation(_edit(_resized)),
    "type of a tensor": Mutation(_edit(_data_type)),
    "strings as weights": Mutation(_edit(_strings)),
    "raw data of another length": Mutation(_edit(_raw_length)),
    "typed data": Mutation(_edit(_typed_data)),
    "odd numbers": Mutation(_edit(_numbers)),
    "odd numbers only": Mutation(_edit(_all_numbers)),
    "sparse": Mutation(_edit(_sparse)),
    "offset": Mutation(_edit(_external("offset", *NUMBERS))),
    "length": Mutation(_edit(_external("length", *NUMBERS))),
    "location above": Mutation(_edit(_external("location", *UP)), refused=True),
    "location odd": Mutation(_edit(_external("location", *ODD))),
    "location absolute": Mutation(_edit(_external("location", *ABSOLUTE)), refused=True),
    "location outside": Mutation(_absolute_outside, refused=True),
    "location linked": Mutation(_linked, refused=True),
    "location special": Mutation(_special, refused=True),
    "location of a constant": Mutation(_edit(_inner_external), refused=True),
    "rewired": Mutation(_edit(_rewired)),
    "renamed": Mutation(_edit(_renamed)),
    "cycle": Mutation(_edit(_cycle)),
    "operator": Mutation(_edit(_operator)),
    "attribute": Mutation(_edit(_attribute)),
    "nested": Mutation(_edit(_nested)),
    "nested too deep": Mutation(_too_deep, refused=True),
    "chain": Mutation(_edit(_chain)),
    "recursive function": Mutation(_edit(_recursive_function), refused=True),
    "functions without end": Mutation(_edit(_bomb), refused=True),
    "huge value": Mutation(_edit(_huge_value)),
    "opset": Mutation(_edit(_opset)),
    "interface": Mutation(_edit(_interface)),
    "names": Mutation(_edit(_names)),
    "broken JSON": Mutation(_json_bytes),
    "odd BOS": Mutation(_json_bos),
    "linked JSON": Mutation(_json_link),
    "companions": Mutation(_companions),
    "the file itself": Mutation(_model_itself, refused=True),
}
"""Name -> how a model is broken."""
