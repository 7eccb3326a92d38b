"""Sessions of a CUDA provider that is not really there, for test_cuda_placement.py; run as a process of its own.

    python -m tests.ops.placing LIBRARY CPU_LIBRARY [MODEL ...]

MODELs are language models: only where their nodes run is looked at.

The last line of what it prints is JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from ml_dtypes import bfloat16

from catonnx.ops import register
from catonnx.runtime.library import open_model
from tests.ops.running import Arrays, node_model, run, sylvester, tolerance, transformed
from tests.ops.test_library import INPUTS, write
from tests.small_models import language_feeds
from tools.placement import summed_up

PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
TYPES = {"float32": np.float32, "float16": np.float16}
QUANTIZED = ("codes", "scales")


def opened(model: onnx.ModelProto | Path, **settings: Any) -> ort.InferenceSession:
    """Open a model on CUDA with the library that CATONNX_OPS names."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for name, value in settings.items():
        setattr(options, name, value)
    register(options)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=PROVIDERS)


def inputs_of(op: str, dtype: np.dtype[Any], random: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw the inputs of one operator."""
    x = random.standard_normal((2, 3, 96)).astype(dtype)
    if op == "DynamicQuantize":
        return {"x": x}
    if op == "QuantizedMatMul":
        return {
            "x": random.integers(-127, 128, (2, 3, 96)).astype(np.int8),
            "a_scale": random.uniform(0.01, 0.1, (2, 3, 1)).astype(np.float32),
            "b": random.integers(0, 256, (33, 3, 16)).astype(np.uint8),
            "b_scale": random.uniform(0.01, 0.1, (33, 3)).astype(dtype),
        }
    scale = random.uniform(0.5, 2, 96).astype(dtype)
    if op.startswith("Block"):
        matrices = {"matrices": random.standard_normal((8, 12, 12)).astype(dtype)}
    elif op.startswith("Kronecker"):
        matrices = {"first": random.standard_normal((3, 3)).astype(dtype), "second": (sylvester(8) / 4).astype(dtype)}
    else:
        matrices = {"matrix": (sylvester(32) / 4).astype(dtype)}
    return {"x": x, "scale": scale} | matrices


def attributes_of(op: str) -> Mapping[str, Any]:
    if op == "QuantizedMatMul":
        return {"K": 96, "N": 33, "block_size": 32}
    return {"bits": 8} if op.endswith("Quantize") else {}


def model_of(op: str, inputs: Arrays, fed: Sequence[str]) -> onnx.ModelProto:
    outputs = QUANTIZED if op.endswith("Quantize") else ("y",)
    return node_model(op, inputs, outputs=outputs, fed=fed, attributes=attributes_of(op))


def error(op: str, inputs: Arrays, results: Sequence[np.ndarray]) -> float:
    """Return how far results are from float64, over what is allowed."""
    values = list(inputs.values())
    if op == "QuantizedMatMul":
        a, a_scale, b, b_scale = values
        codes = np.stack([b & 15, b >> 4], axis=-1).reshape(len(b), -1).astype(np.float64) - 8
        weight = codes * b_scale.astype(np.float64).repeat(32, axis=1)
        wanted = a @ weight.T * a_scale
        allowed = 1e-6 * (np.abs(a) @ np.abs(weight).T * a_scale) + (
            2.0**-11 * np.abs(wanted) if b_scale.itemsize == 2 else 0
        )
        return float((np.abs(results[0] - wanted) / allowed).max())
    base = op.removesuffix("Quantize")
    wanted = values[0].astype(np.float64) if op == "DynamicQuantize" else transformed(base, *values)
    if not op.endswith("Quantize"):
        return float((np.abs(results[0] - wanted) / tolerance(op, *values)).max())
    codes, scales = results
    exact = np.abs(wanted).max(axis=-1, keepdims=True) / 127
    wrong = np.abs(scales / exact - 1).max() / 1e-5, (np.abs(codes - wanted / exact) / 0.501).max()
    return float(max(wrong))


def profile(model: onnx.ModelProto | Path, feeds: Arrays) -> list[dict[str, Any]]:
    """Run a model and return ONNX Runtime's events."""
    with tempfile.TemporaryDirectory() as folder:
        session = opened(model, enable_profiling=True, profile_file_prefix=str(Path(folder) / "profile"))
        run(session, **feeds)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events


def placement(model: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, list[str]]:
    """Run a model and return on which providers the nodes of each operator ran."""
    return by_operator(profile(model, feeds))


def by_operator(events: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the providers of the nodes of each operator."""
    where: dict[str, set[str]] = {}
    for event in events:
        arguments = event.get("args", {})
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            where.setdefault(arguments["op_name"], set()).add(arguments["provider"])
    return {name: sorted(providers) for name, providers in where.items()}


def merged(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Put nodes side by side into one model."""
    whole = onnx.ModelProto()
    whole.CopyFrom(models[0])
    del whole.graph.node[:], whole.graph.input[:], whole.graph.output[:], whole.graph.initializer[:]
    for index, model in enumerate(models):
        for node in model.graph.node:
            node.input[:] = [f"{name}_{index}" for name in node.input]
            node.output[:] = [f"{name}_{index}" for name in node.output]
        for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
            value.name = f"{value.name}_{index}"
        for field in ("node", "input", "output", "initializer"):
            getattr(whole.graph, field).extend(getattr(model.graph, field))
    return whole


def around(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put nodes before and behind one, which run on CUDA."""
    (node,) = model.graph.node
    node.input[0], node.output[0] = "before", "behind"
    model.graph.node.insert(0, onnx.helper.make_node("Abs", ["x"], ["before"]))
    model.graph.node.append(onnx.helper.make_node("Neg", ["behind"], ["y"]))
    return model


def in_bfloat16(op: str, random: np.random.Generator) -> onnx.ModelProto:
    """Return a model of an operator in bfloat16, between casts: numpy can neither feed nor take it."""
    model = model_of(op, inputs_of(op, np.dtype(bfloat16), random), ["x"])
    (node,) = model.graph.node
    if op != "QuantizedMatMul":
        node.input[0] = "before"
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        model.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["before"], to=onnx.TensorProto.BFLOAT16))
    if not op.endswith("Quantize"):
        node = model.graph.node[-1]
        node.output[0] = "behind"
        model.graph.node.append(onnx.helper.make_node("Cast", ["behind"], ["y"], to=onnx.TensorProto.FLOAT))
    return model


def with_warnings(path: Path) -> dict[str, Any]:
    """Open a model as users do, and say what was warned of and which nodes it runs."""
    with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("always")
        optimized = Path(folder) / "optimized.onnx"
        open_model(path, provider="cuda", optimized_path=optimized)
        nodes = [node.op_type for node in onnx.load(optimized).graph.node]
    return {"warning": " ".join(str(warning.message) for warning in caught), "nodes": nodes}


def whole_model(path: Path) -> dict[str, Any]:
    """Run a language model once, and say where its nodes ran."""
    events = profile(path, language_feeds(path.parent, batch=1, length=6))
    found = summed_up(events, PROVIDERS[0])
    return {"operators": by_operator(events), "strangers": found.strangers, "copies": found.copies}


def captured(library: str, dtype: np.dtype[Any], random: np.random.Generator) -> dict[str, float]:
    """Run rows by dense blocks as for a CUDA graph, and again without one.

    Returns how far results are from what they should be, and how much memory CUDA was asked for by the second run.
    """
    op, inputs = "BlockTransformQuantize", inputs_of("BlockTransformQuantize", dtype, random)
    model = model_of(op, inputs, ["x"])
    capture = ctypes.CDLL(library).catonnx_capture
    allocations = ctypes.CDLL(str(next(Path(os.environ["LD_LIBRARY_PATH"]).glob("libcudart.so.*[0-9]")))).allocations
    found = {}
    for graph in ("1", "0"):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        register(options)
        provider = (PROVIDERS[0], {"enable_cuda_graph": graph})
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[provider])
        binding, x = session.io_binding(), inputs["x"]
        held = [ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0)]
        binding.bind_ortvalue_input("x", held[0])
        for name, last, kind in zip(QUANTIZED, (x.shape[-1], 1), (np.int8, np.float32), strict=True):
            held.append(ort.OrtValue.ortvalue_from_shape_and_type([*x.shape[:-1], last], kind, "cuda", 0))
            binding.bind_ortvalue_output(name, held[-1])
        capture(True)  # ONNX Runtime captures within the first run
        for _ in range(2):
            before = allocations()
            session.run_with_iobinding(binding)
        capture(False)
        found[f"error, graph {graph}"] = error(op, inputs, [value.numpy() for value in held[1:]])
        found[f"allocations, graph {graph}"] = allocations() - before
    return found


def main() -> None:
    library, cpu_library, *languages = sys.argv[1:]
    os.environ["CATONNX_OPS"] = library
    random = np.random.default_rng(0)
    operators = [f"{form}Transform{end}" for form in ("Shared", "Block", "Kronecker") for end in ("", "Quantize")]
    operators += ["DynamicQuantize", "QuantizedMatMul"]
    errors: dict[str, float] = {}
    outputs: dict[str, list[list[Any]]] = {}
    placed = {}
    for name, dtype in TYPES.items():
        models, feeds = [], {}
        for index, op in enumerate(operators):
            inputs = inputs_of(op, np.dtype(dtype), random)
            for fed in (["x"], list(inputs)) if len(inputs) > 1 else (["x"],):
                session = opened(model_of(op, inputs, fed))
                outputs[f"{op} {name}"] = [[output.type, output.shape] for output in session.get_outputs()]
                for _ in range(2):
                    results = run(session, **{key: inputs[key] for key in fed})
                    errors[f"{op} {name} {'constant' if fed == ['x'] else 'fed'}"] = error(op, inputs, results)
            models.append(model_of(op, inputs, ["x"]))
            feeds[f"x_{index}"] = inputs["x"]
        placed[name] = placement(merged(models), **feeds)
    placed["bfloat16"] = placement(
        merged([in_bfloat16(op, random) for op in operators]),
        **{key: x if x.dtype == np.int8 else x.astype(np.float32) for key, x in feeds.items()},
    )

    inputs = inputs_of("SharedTransform", np.dtype(np.float32), random)
    dense = inputs["matrix"].copy()
    dense[-1, -1] = np.nextafter(dense[-1, -1], np.float32(0))  # no Hadamard matrix any more
    (product,) = run(opened(model_of("SharedTransform", inputs | {"matrix": dense}, ["x"])), x=inputs["x"])
    recognized = {}
    for name, fed in (("constant", ["x"]), ("fed", list(inputs))):
        (y,) = run(opened(model_of("SharedTransform", inputs, fed)), **{key: inputs[key] for key in fed})
        others = np.arange(96) % 32 != 31  # the last channel of a run is another number
        recognized[name] = bool((y[..., others] != product[..., others]).any())

    refused = ""
    wrong = {"x": np.ones((2, 10), np.float32), "scale": np.ones(1, np.float32), "m": np.eye(4, dtype=np.float32)}
    try:
        run(opened(node_model("SharedTransform", wrong)), x=wrong["x"])
    except Exception as problem:
        refused = str(problem)

    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "model.onnx", factor=3)
        using = with_warnings(path)
        os.environ["CATONNX_OPS"] = cpu_library
        without = with_warnings(path)
    registered = placement(around(node_model("SharedTransform", INPUTS)), x=INPUTS["x"])
    os.environ["CATONNX_OPS"] = library
    said = {
        "version": ort.__version__,
        "providers": opened(
            node_model("DynamicQuantize", {"x": INPUTS["x"]}, outputs=QUANTIZED, attributes={"bits": 8})
        ).get_providers(),
        "placement": placed,
        "errors": errors,
        "outputs": outputs,
        "recognized": recognized,
        "refused": refused,
        "with_cuda": using,
        "cpu_only": without,
        "registered": registered,
        "captured": {name: captured(library, np.dtype(dtype), random) for name, dtype in TYPES.items()},
        "models": [whole_model(Path(path)) for path in languages],
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
