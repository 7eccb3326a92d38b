"""External data: where it lies, and what is there."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from models.dressing import tensors_of
from tools.fuzz.mutations.mutation import SECRET, Edit, Mutation, edited, free, weight


def _external(key: str, *values: str) -> Edit:
    """Return what changes one entry of external data, making a tensor external if none is."""

    def edit(model: onnx.ModelProto, choose: random.Random) -> None:
        tensors = [tensor for tensor in tensors_of(model) if tensor.data_location == TensorProto.EXTERNAL]
        tensor = choose.choice(tensors) if tensors else weight(model, choose)
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


def _linked(folder: Path, choose: random.Random) -> bool:
    """A file of the model, or a folder, is a link out of the model's folder."""
    outside = folder.parent / "outside"
    if choose.random() < 0.5:
        free(folder / "link").symlink_to(outside)
        location = f"link/{SECRET}"
    else:
        free(folder / "link.bin").symlink_to(choose.choice((outside / SECRET, Path("../outside") / SECRET)))
        location = "link.bin"
    return edited(_external("location", location))(folder, choose)


def _absolute_outside(folder: Path, choose: random.Random) -> bool:
    return edited(_external("location", str(folder.parent / "outside" / SECRET)))(folder, choose)


def _special(folder: Path, choose: random.Random) -> bool:
    """External data is a pipe that nobody writes to, a folder, or a link to itself."""
    place = free(folder / "special")
    match choose.randrange(3):
        case 0:
            os.mkfifo(place)
        case 1:
            place.mkdir()
        case _:
            place.symlink_to("special")
    return edited(_external("location", "special"))(folder, choose)


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


EXTERNAL_DATA: Mapping[str, Mutation] = {
    "offset": Mutation(edited(_external("offset", *NUMBERS))),
    "length": Mutation(edited(_external("length", *NUMBERS))),
    "location above": Mutation(edited(_external("location", *UP)), refused=True),
    "location odd": Mutation(edited(_external("location", *ODD))),
    "location absolute": Mutation(edited(_external("location", *ABSOLUTE)), refused=True),
    "location outside": Mutation(_absolute_outside, refused=True),
    "location linked": Mutation(_linked, refused=True),
    "location special": Mutation(_special, refused=True),
    "location of a constant": Mutation(edited(_inner_external), refused=True),
}
"""Name -> how a model is broken."""
