"""Fields of the message, and tensors that do not hold what they claim."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto, helper

from models.dressing import STRANGE
from tools.fuzz.mutations.mutation import HUGE, Edit, Mutation, edited, weight


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


def _dims(*choices: list[int]) -> Edit:
    def edit(model: onnx.ModelProto, choose: random.Random) -> None:
        tensor = weight(model, choose)
        tensor.dims[:] = choose.choice(choices)

    return edit


def _resized(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = weight(model, choose)
    if tensor.dims:
        tensor.dims[choose.randrange(len(tensor.dims))] = choose.choice((0, 1, 2, 7, 100, *HUGE))


def _data_type(model: onnx.ModelProto, choose: random.Random) -> None:
    weight(model, choose).data_type = choose.choice((*range(27), -1, 99, 2**31 - 1))


def _strings(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = weight(model, choose)
    size = 1
    for dim in tensor.dims:
        size *= dim
    name, dims = tensor.name, list(tensor.dims)
    changed = TensorProto(name=name, dims=dims, data_type=TensorProto.STRING, string_data=[b"a\x1b"] * min(size, 999))
    tensor.CopyFrom(changed)


def _raw_length(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = weight(model, choose)
    raw = tensor.raw_data
    tensor.raw_data = choose.choice((b"", raw[:-1], raw + b"\0", raw[: len(raw) // 2], raw * 2))


def _typed_data(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = weight(model, choose)
    tensor.float_data.extend([0.5] * choose.choice((1, 5, 1000)))
    if choose.random() < 0.5:
        tensor.ClearField("raw_data")


def _numbers(model: onnx.ModelProto, choose: random.Random) -> None:
    """NaN, Inf, denormals or huge numbers in a float tensor, anything in another."""
    tensor = weight(model, choose)
    size = 4 if tensor.data_type == TensorProto.FLOAT else 8
    if len(tensor.raw_data) < size:
        return
    place = choose.randrange(len(tensor.raw_data) // size) * size
    number = choose.choice((float("nan"), float("inf"), -float("inf"), 1e38, 1e-42))
    code = struct.pack("<f", number) if size == 4 else struct.pack("<q", choose.choice(HUGE))
    tensor.raw_data = tensor.raw_data[:place] + code + tensor.raw_data[place + size :]


def _all_numbers(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = weight(model, choose)
    if tensor.data_type == TensorProto.FLOAT and tensor.raw_data:
        number = choose.choice((0.0, 1.0, 1e-40, 3e38, 1e20, float("nan")))
        tensor.raw_data = struct.pack("<f", number) * (len(tensor.raw_data) // 4)


def _sparse(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = weight(model, choose)
    values = helper.make_tensor(tensor.name, TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("at", TensorProto.INT64, [2], [0, choose.choice((1, -1, 2**40))])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(tensor.dims)))


MESSAGES: Mapping[str, Mutation] = {
    "any field": Mutation(edited(_any_field)),
    "any fields": Mutation(edited(_any_field)),
    "any field of many": Mutation(edited(_any_field)),
    "dims negative": Mutation(edited(_dims([-1], [-1, -1], [8, -12], [-(2**63), 2]))),
    "dims huge": Mutation(edited(_dims([2**60], [2**30, 2**30], [2**58, 1], [2**40, 2])), refused=True),
    "dims overflowing": Mutation(
        edited(_dims([2**32, 2**32], [2**63 - 1, 2**63 - 1], [2**62, 4], [2**33, 2**33, 2**33]))
    ),
    "dims changed": Mutation(edited(_resized)),
    "type of a tensor": Mutation(edited(_data_type)),
    "strings as weights": Mutation(edited(_strings)),
    "raw data of another length": Mutation(edited(_raw_length)),
    "typed data": Mutation(edited(_typed_data)),
    "odd numbers": Mutation(edited(_numbers)),
    "odd numbers only": Mutation(edited(_all_numbers)),
    "sparse": Mutation(edited(_sparse)),
}
"""Name -> how a model is broken."""
