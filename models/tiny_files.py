"""Small sound models in folders of their own, of every way that a model lies on disk: what is broken on purpose."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from models.dressing import as_functions
from models.net import Net
from models.random_extras import conditional
from models.random_pieces import Flow, RandomGraph

ROWS, WIDTH = 4, 8
Feeds = dict[str, np.ndarray]


def write_tiny(name: str, folder: Path, seed: int) -> Feeds:
    """Write one of `TINY` to a new folder and return inputs for it."""
    folder.mkdir(parents=True)
    return TINY[name](folder, seed)


def _mlp(seed: int) -> Net:
    net = Net(seed)
    x = net.input("x", ["rows", WIDTH])
    hidden = net.op("Gemm", x, net.normal(WIDTH, 12), net.vector(12))
    hidden = net.op("Mul", net.op("Relu", hidden), net.vector(12))
    net.output(net.op("MatMul", net.op("MatMul", hidden, net.normal(12, 16)), net.normal(16, 5)))
    return net


def _rows(seed: int, *shape: int) -> Feeds:
    return {"x": np.random.default_rng(seed).normal(size=shape or (ROWS, WIDTH)).astype(np.float32)}


def _inline(folder: Path, seed: int) -> Feeds:
    onnx.save(_mlp(seed).proto(), folder / "model.onnx")
    return _rows(seed)


def _external(folder: Path, seed: int) -> Feeds:
    _save_external(_mlp(seed).proto(), folder, "weights.bin")
    return _rows(seed)


def _external_below(folder: Path, seed: int) -> Feeds:
    (folder / "data").mkdir()
    _save_external(_mlp(seed).proto(), folder, "data/weights.bin")
    return _rows(seed)


def _save_external(model: onnx.ModelProto, folder: Path, location: str) -> None:
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location=location, size_threshold=64)


def _functions(folder: Path, seed: int) -> Feeds:
    model = _mlp(seed).proto()
    while not model.functions:
        as_functions(model, random.Random(seed := seed + 1))
    onnx.save(model, folder / "model.onnx")
    return _rows(seed)


def _bodies(folder: Path, seed: int) -> Feeds:
    net = Net(seed)
    graph = RandomGraph(net, WIDTH, [], "seq", random.Random(seed))
    flow = Flow(net.op("MatMul", net.input("x", ["batch", "seq", WIDTH]), net.normal(WIDTH, WIDTH)), WIDTH)
    flow = conditional(graph, flow)
    net.output(net.op("MatMul", flow.value, net.normal(flow.width, 6)))
    onnx.save(net.proto(), folder / "model.onnx")
    return _rows(seed, 2, 3, WIDTH)


def _language(folder: Path, seed: int) -> Feeds:
    """A causal language model: an embedding, a gated block with a norm, and logits; with config and tokenizer."""
    from models import tokens

    net = Net(seed)
    ids = net.input("input_ids", ["batch", "seq"], TensorProto.INT64)
    value = net.op("Gather", net.normal(tokens.VOCABULARY_SIZE, WIDTH), ids)
    normed = net.op("LayerNormalization", value, net.vector(WIDTH), axis=-1)
    gate = net.op("Sigmoid", net.op("MatMul", normed, net.normal(WIDTH, 12)))
    middle = net.op("Mul", gate, net.op("MatMul", normed, net.normal(WIDTH, 12)))
    value = net.op("Add", value, net.op("MatMul", middle, net.normal(12, WIDTH)))
    net.output(net.op("MatMul", value, net.normal(WIDTH, tokens.VOCABULARY_SIZE), result="logits"))
    onnx.save(net.proto(), folder / "model.onnx")
    tokens.write_causal_tokenizer(folder)
    config = {"model_type": "tiny", "bos_token_id": tokens.BOS, "eos_token_id": tokens.EOS}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "genai_config.json").write_text(json.dumps({"model": config}), encoding="utf-8")
    return {"input_ids": np.random.default_rng(seed).integers(3, 250, (2, 6))}


TINY: Mapping[str, Callable[[Path, int], Feeds]] = {
    "inline": _inline,
    "external": _external,
    "external below": _external_below,
    "functions": _functions,
    "bodies": _bodies,
    "language": _language,
}
"""Name -> writes the model of a seed to a folder and returns inputs for it."""
