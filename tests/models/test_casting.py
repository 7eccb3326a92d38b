"""Narrow copies of exports run, agree with the export, and leave in float32 what exporters leave there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from catonnx.graph.twin import write_twin
from models.casting import write_cast
from tests.small_models import language_feeds, relative, run


@pytest.mark.parametrize(("element", "closeness"), [("float16", 3e-3), ("bfloat16", 2e-2)])
def test_a_narrow_copy_computes_nearly_the_same(
    element: str, closeness: float, tiny_llama: Path, tmp_path: Path
) -> None:
    copy = write_cast(tiny_llama / "model.onnx", tmp_path / "copy", element)
    assert {file.name for file in copy.parent.iterdir()} == {file.name for file in tiny_llama.iterdir()}
    if element == "bfloat16":
        write_twin(copy, tmp_path / "twin.onnx")
        copy = tmp_path / "twin.onnx"
    feeds = language_feeds(tiny_llama)
    narrow = {
        name: x.astype(np.float16) if x.dtype == np.float32 and element == "float16" else x for name, x in feeds.items()
    }
    result = run(copy, narrow)["logits"]
    assert result.dtype == (np.float16 if element == "float16" else np.float32)
    assert relative(run(tiny_llama, feeds)["logits"], result) < closeness  # measured: 1.2e-3 and 8e-3


def test_norms_and_softmax_stay_in_float32(tiny_llama: Path, tmp_path: Path) -> None:
    copy = write_cast(tiny_llama / "model.onnx", tmp_path / "copy", "float16")
    graph = onnx.shape_inference.infer_shapes(onnx.load(copy), strict_mode=True, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    kinds: dict[str, set[int]] = {}
    for node in graph.node:
        kinds.setdefault(node.op_type, set()).update(types[name] for name in node.output if name in types)
    single, half = TensorProto.FLOAT, TensorProto.FLOAT16
    assert {kinds[name] == {single} for name in ("Pow", "ReduceMean", "Sqrt", "Softmax")} == {True}
    assert {kinds[name] == {half} for name in ("MatMul", "Sigmoid")} == {True}
    wide = [tensor for tensor in graph.initializer if tensor.data_type == single]
    assert all(list(tensor.dims) in ([], [1]) for tensor in wide)
    assert len(wide) >= 14  # an exponent and an epsilon for each of 7 norms


def test_inputs_made_for_a_model_are_cast_with_it(tiny_vit: Path, tmp_path: Path) -> None:
    for element, dtype in (("float16", np.float16), ("bfloat16", np.float32)):
        copy = write_cast(tiny_vit / "model.onnx", tmp_path / element, element)
        with np.load(copy.with_name("feeds.npz")) as feeds:
            assert {feeds[name].dtype for name in feeds} == {np.dtype(dtype)}
