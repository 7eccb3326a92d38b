"""Small models made on the spot for tests of the whole way, and what those tests ask of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import DTypeLike
from onnx import helper, numpy_helper
from typer.testing import CliRunner, Result

from catonnx.commands.app import app

QUICK = ("--samples", "4", "--seq-len", "32")
LEVEL = "session.qdq_matmulnbits_accuracy_level"

Arrays = Mapping[str, np.ndarray]
Edit = Callable[[onnx.ModelProto], None]


def catonnx_(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_mlp(
    path: Path,
    widths: Sequence[int] = (64, 48, 32, 8),
    *,
    dtype: DTypeLike = np.float32,
    opset: int = 21,
    gemm: bool = True,
    activation: str = "Sigmoid",
    axes: Sequence[str] = ("rows",),
    edit: Edit | None = None,
) -> Path:
    """Write linears `fc0`, `fc1`, ... with weights `w0` and biases `b0`, from input x [*axes, K] to output y.

    Args:
        path: The new .onnx file.
        widths: Channels before, between and behind the linears.
        dtype: Of everything.
        opset: Of the standard operators; the IR version is one of its time.
        gemm: Gemm with a bias, or MatMul and Add.
        activation: Stands between two linears, as `act0` with the output `a0`.
        axes: Names of the axes before the channels; two of them need `gemm=False`.
        edit: Changes the model before it is written.
    """
    random = np.random.default_rng(0)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, tensors, value = [], [], "x"
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        weight, bias = random.standard_normal((inputs, outputs)) / np.sqrt(inputs), random.standard_normal(outputs)
        tensors += [
            numpy_helper.from_array(array.astype(dtype), f"{letter}{index}")
            for letter, array in (("w", weight), ("b", bias))
        ]
        last = index == len(widths) - 2
        result = "y" if last else f"h{index}"
        if gemm:
            nodes.append(helper.make_node("Gemm", [value, f"w{index}", f"b{index}"], [result], f"fc{index}"))
        else:
            nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"m{index}"], f"fc{index}"))
            nodes.append(helper.make_node("Add", [f"m{index}", f"b{index}"], [result], f"add{index}"))
        if not last:
            nodes.append(helper.make_node(activation, [result], [f"a{index}"], f"act{index}"))
        value = f"a{index}"
    first, final = (
        helper.make_tensor_value_info(name, element, [*axes, width])
        for name, width in (("x", widths[0]), ("y", widths[-1]))
    )
    graph = helper.make_graph(nodes, "mlp", [first], [final], tensors)
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=7 if opset < 14 else 10)
    if edit is not None:
        edit(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def edited(source: Path, target: Path, edit: Edit) -> Path:
    """Copy the folder `source` to `target` with another model, and return it."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    model = onnx.load(target / "model.onnx")
    edit(model)
    onnx.save(model, target / "model.onnx")
    return target


def set_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Return an edit that replaces an initializer by what `change` makes of it."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))

    return edit


def externalize(folder: Path, location: str = "model.onnx_data") -> None:
    """Move all tensors of a folder's model to a file beside it."""
    model = onnx.load(folder / "model.onnx")
    (folder / "model.onnx").unlink()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location=location, size_threshold=0)


def write_feeds(path: Path, *shape: int, samples: int = 4, name: str = "x", dtype: DTypeLike = np.float32) -> Path:
    """Write random inputs as an .npz file of `<sample>/<name>`."""
    random = np.random.default_rng(1)
    arrays = {f"{sample}/{name}": random.standard_normal(shape).astype(dtype) for sample in range(samples)}
    np.savez(path, allow_pickle=False, **arrays)
    return path


def first_sample(path: Path) -> dict[str, np.ndarray]:
    """Return the inputs of sample 0 of an .npz file."""
    with np.load(path) as archive:
        return {key.removeprefix("0/"): archive[key] for key in archive.files if key.startswith("0/")}


def language_feeds(folder: Path, batch: int = 2, length: int = 24, past: int = 0) -> dict[str, np.ndarray]:
    """Return random tokens for a language model or text encoder, and whatever else it takes."""
    random = np.random.default_rng(2)
    feeds = {}
    for value in session(folder).get_inputs():
        if value.name.startswith("past"):
            _, heads, _, width = value.shape
            values = random.standard_normal((batch, heads, past, width))
            feeds[value.name] = values.astype(np.float16 if "16" in value.type else np.float32)
        else:
            feeds[value.name] = {
                "input_ids": random.integers(3, 250, (batch, length)),
                "attention_mask": np.ones((batch, past + length), np.int64),
                "position_ids": np.tile(np.arange(past, past + length), (batch, 1)),
                "token_type_ids": np.zeros((batch, length), np.int64),
            }[value.name]
    return feeds


def session(model: Path, **config: str) -> ort.InferenceSession:
    """Open a model, or that of a folder, as any user of ONNX Runtime would."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    path = model if model.suffix == ".onnx" else model / "model.onnx"
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(model: Path, feeds: Arrays, *, exact: bool = False) -> dict[str, np.ndarray]:
    """Run a model; `exact` keeps ONNX Runtime from rounding activations."""
    opened = session(model, **({LEVEL: "0"} if exact else {}))
    names = [value.name for value in opened.get_outputs()]
    return dict(zip(names, opened.run(names, dict(feeds)), strict=True))


def signature(model: Path) -> list[list[tuple[str, str, list[int | str]]]]:
    """Return names, types and shapes of all inputs and outputs."""
    opened = session(model)
    both = opened.get_inputs(), opened.get_outputs()
    return [[(value.name, value.type, value.shape) for value in values] for values in both]


def relative(reference: np.ndarray, actual: np.ndarray) -> float:
    """Return |actual - reference| / |reference|."""
    assert reference.shape == actual.shape
    expected = reference.astype(np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Return hash and time of change of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}
