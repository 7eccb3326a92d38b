"""Tiny models and a tiny tokenizer, built on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

VOCABULARY = 12
WIDTH = 4

ModelWriter = Callable[..., Path]


@pytest.fixture
def write_model(tmp_path: Path) -> ModelWriter:
    """Return a function that writes a graph of opset 21, IR 10 and returns its path."""

    def write(
        name: str,
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        constants: dict[str, np.ndarray] | None = None,
        *,
        opset: int = 21,
        ir_version: int = 10,
        domains: Sequence[str] = (),
        external: bool = False,
    ) -> Path:
        initializers = [numpy_helper.from_array(array, key) for key, array in (constants or {}).items()]
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        graph = helper.make_graph(list(nodes), "tiny", list(inputs), list(outputs), initializers)
        model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path, save_as_external_data=external, location=f"{name}.data", size_threshold=0)
        return path

    return write


@pytest.fixture
def linear(write_model: ModelWriter) -> Callable[..., Path]:
    """Return a function that writes y = x W for x float [rows, 4], with x passed through as the output `site`."""

    def write(name: str = "linear", weight: np.ndarray | None = None, **options: object) -> Path:
        matrix = np.eye(WIDTH, dtype=np.float32) if weight is None else weight.astype(np.float32)
        return write_model(
            name,
            [helper.make_node("Relu", ["x"], ["site"]), helper.make_node("MatMul", ["site", "w"], ["y"])],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, ["rows", WIDTH]) for key in ("site", "y")],
            {"w": matrix},
            **options,
        )

    return write


@pytest.fixture
def language_model(write_model: ModelWriter) -> Callable[..., Path]:
    """Return a function that writes a causal model with a cache.

    hidden = x_t + 0.3 sum of x over all earlier positions and this one; the sum needs the cache, the positions enter x,
    and a mask of the wrong length does not broadcast: logits come out the same in one piece and in many only if all
    three are fed rightly.
    """

    def write(name: str = "lm", *, noise: float = 0.0, cache: bool = True, bidirectional: bool = False) -> Path:
        generator = np.random.default_rng(7)
        head = generator.normal(size=(WIDTH, VOCABULARY)) + noise * generator.normal(size=(WIDTH, VOCABULARY))
        constants = {
            "embedding": generator.normal(size=(VOCABULARY, WIDTH)).astype(np.float32),
            "head": head.astype(np.float32),
            "step": np.array(0.1, np.float32),
            "share": np.array(0.3, np.float32),
            "axis1": np.array([1], np.int64),
            "axis2": np.array([2], np.int64),
            "axis2_scalar": np.array(2, np.int64),
            "last": np.array([2], np.int64),
            "end": np.array([np.iinfo(np.int64).max], np.int64),
        }
        make = helper.make_node
        nodes = [
            make("Gather", ["embedding", "input_ids"], ["embedded"]),
            make("Cast", ["position_ids"], ["positions"], to=TensorProto.FLOAT),
            make("Mul", ["positions", "step"], ["offsets"]),
            make("Unsqueeze", ["offsets", "axis2"], ["offset"]),
            make("Add", ["embedded", "offset"], ["x"]),
            make("Unsqueeze", ["x", "axis1"], ["value"]),
            make("Concat", ["past_key_values.0.value", "value"], ["present.0.value"], axis=2)
            if cache
            else make("Identity", ["value"], ["present.0.value"]),
            make("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            make("Unsqueeze", ["mask", "axis1"], ["mask3"]),
            make("Unsqueeze", ["mask3", "last_axis"], ["mask4"]),
            make("Mul", ["present.0.value", "mask4"], ["seen"]),
            make("CumSum", ["seen", "axis2_scalar"], ["sums"], reverse=int(bidirectional)),
            make("Shape", ["input_ids"], ["length"], start=1, end=2),
            make("Neg", ["length"], ["from"]),
            make("Slice", ["sums", "from", "end", "last"], ["recent"]),
            make("Squeeze", ["recent", "axis1"], ["context"]),
            make("Mul", ["context", "share"], ["scaled"]),
            make("Add", ["x", "scaled"], ["hidden"]),
            make("MatMul", ["hidden", "head"], ["logits"]),
        ]
        constants["last_axis"] = np.array([3], np.int64)
        integer, floating, info = TensorProto.INT64, TensorProto.FLOAT, helper.make_tensor_value_info
        inputs = [
            info("input_ids", integer, ["batch", "sequence"]),
            info("attention_mask", integer, ["batch", "total"]),
            info("position_ids", integer, ["batch", "sequence"]),
        ]
        outputs = [info("logits", floating, ["batch", "sequence", VOCABULARY])]
        if cache:
            inputs.append(info("past_key_values.0.value", floating, ["batch", 1, "past", WIDTH]))
            outputs.append(info("present.0.value", floating, ["batch", 1, "total", WIDTH]))
        return write_model(name, nodes, inputs, outputs, constants)

    return write


@pytest.fixture
def encoder(write_model: ModelWriter) -> Callable[..., Path]:
    """Return a function that writes a model from input_ids and token_type_ids to last_hidden_state."""

    def write(name: str = "encoder", noise: float = 0.0) -> Path:
        generator = np.random.default_rng(3)
        table = generator.normal(size=(VOCABULARY, WIDTH)) + noise * generator.normal(size=(VOCABULARY, WIDTH))
        info = helper.make_tensor_value_info
        shape = ["batch", "sequence"]
        return write_model(
            name,
            [
                helper.make_node("Add", ["input_ids", "token_type_ids"], ["ids"]),
                helper.make_node("Gather", ["table", "ids"], ["last_hidden_state"]),
            ],
            [info(key, TensorProto.INT64, shape) for key in ("input_ids", "attention_mask", "token_type_ids")],
            [info("last_hidden_state", TensorProto.FLOAT, [*shape, WIDTH])],
            {"table": table.astype(np.float32)},
        )

    return write


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes tokenizer.json (words a to h are ids 4 to 11) and config.json."""

    def write(config: dict[str, object] | None = None, *, encoder: bool = False, special: bool = True) -> Path:
        names = ["[UNK]", "[CLS]", "[SEP]", "<s>"] if special else ["[UNK]", "x", "y", "z"]
        words = {word: index for index, word in enumerate([*names, *"abcdefgh"])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.enable_truncation(5)  # as in sentence encoders: must not cut what is packed
        if encoder:
            pairs = [("[CLS]", 1), ("[SEP]", 2)]
            tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, pairs)
        folder = tmp_path / "tokenizer"
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps(config or {}))
        return folder

    return write
