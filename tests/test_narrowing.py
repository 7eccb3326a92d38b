"""The whole way from a float32 model to 4 bits and float16: whatever exporters write, and what callers see of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import catonnx
import models
from catonnx import Recipe, pipeline
from catonnx.analysis import Opened
from catonnx.errors import VerificationError
from catonnx.planning.siteplan import Plan
from catonnx.recipe.presets import settled
from catonnx.rewriting import transform
from models import dialects
from models.casting import write_cast
from models.net import Net
from tests.small_models import QUICK, catonnx_, relative, run, write_feeds, write_mlp
from tests.test_dialects import merged_feeds

FILES = (
    "tiny-llama tiny-llama-dynamo tiny-llama-opset23 tiny-gpt2 tiny-bert tiny-vit tiny-qwen3-moe tiny-gpt-oss "
    "tiny-gemma3 tiny-gpt-neox tiny-bloom tiny-falcon tiny-mamba tiny-clip tiny-t5/encoder_model "
    "tiny-t5/decoder_with_past_model tiny-gpt2-ort tiny-bert-ort tiny-vit-ort tiny-whisper/decoder_model_merged"
).split()
"""Norms, masks, positions, experts and caches of every kind; `tools/bench_dialects.py` measures all there are."""

FLOAT16 = Recipe(scheme="float", transform="none", dtype="float16", samples=2, seq_len=32)


def calibration(name: str, folder: Path) -> str:
    """Return inputs for a model, made now where there are none."""
    file = dialects.file_of(name)
    if name.endswith("merged"):
        arrays = {f"{index}/{key}": array for index, one in enumerate(merged_feeds(file)) for key, array in one.items()}
        np.savez(folder / "feeds.npz", allow_pickle=False, **arrays)
        return str(folder / "feeds.npz")
    (folder / "text.txt").write_text(dialects.TEXT, encoding="utf-8")
    return dialects.calibration(file, folder / "text.txt")


@pytest.mark.parametrize("name", FILES)
def test_a_model_becomes_float16_and_keeps_its_function(name: str, tmp_path: Path) -> None:
    source, out = dialects.file_of(name), tmp_path / "out"
    report = catonnx.optimize(source, out, dataclasses.replace(FLOAT16, calibration=calibration(name, tmp_path)))
    assert report.verification["transform_relative_l2"] <= 5e-3  # measured: 4e-4 to 4.2e-3
    graph = onnx.load(out / "model.onnx").graph
    read = {value for node in graph.node if node.op_type in ("MatMul", "Gemm") for value in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in read and np.prod(tensor.dims) >= 1024]
    assert {tensor.data_type for tensor in weights} <= {TensorProto.FLOAT16}
    # What callers give and get is what it was, but for caches.
    changed = {name for (name, kind), old in zip(signature(out), signature(source), strict=True) if (name, kind) != old}
    assert all(name.startswith(("past_key_values.", "present.")) for name in changed)
    assert bool(changed) == any("float16" in line for line in report.narrowed[1:])


def signature(file: Path) -> list[tuple[str, int]]:
    return dialects.signature(file / "model.onnx" if file.is_dir() else file)


def test_a_language_model_in_4_bits(tiny_llama: Path, tmp_path: Path) -> None:
    """Scales of weights are float16, and everything that can be absorbed is absorbed as in float32."""
    recipe = Recipe(samples=4, seq_len=32)
    plain = catonnx.optimize(tiny_llama, tmp_path / "plain", recipe)
    report = catonnx.optimize(tiny_llama, tmp_path / "out", dataclasses.replace(recipe, dtype="float16"))
    assert [row.absorbed for row in report.sites] == [row.absorbed for row in plain.sites]
    assert report.verification["fused"] == report.verification["linears"] == plain.verification["linears"]
    lost, expected = (item.verification["deployed"]["exact activations"]["kl_nats"] for item in (report, plain))
    assert abs(lost - expected) < 0.05 * expected  # measured: 2 %
    tensors = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    kinds = {tensor.data_type for tensor in tensors if "scale" in tensor.name}
    assert kinds == {TensorProto.FLOAT16}
    assert report.size_after < 0.85 * plain.size_after


def test_what_would_overflow_is_found_by_measuring(tmp_path: Path) -> None:
    """A stream of 200,000 under a norm, which float16 cannot hold, and a product that float16 can."""
    net = Net()
    x = net.input("x", ["n", 64])
    stream = net.op("MatMul", net.op("Mul", x, net.constant(50000.0)), net.normal(64, 64))
    mean = net.op("ReduceMean", net.op("Pow", stream, net.constant(2.0)), net.constant([-1]))
    normalized = net.op("Div", stream, net.op("Sqrt", net.op("Add", mean, net.constant(1e-6))))
    net.output(net.op("MatMul", normalized, net.normal(64, 64), result="y"))
    onnx.save(net.proto(), tmp_path / "model.onnx")
    feeds = {"x": np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)}
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **{f"{index}/x": feeds["x"] for index in range(2)})
    report = catonnx.optimize(
        tmp_path / "model.onnx",
        tmp_path / "out",
        dataclasses.replace(FLOAT16, calibration=str(tmp_path / "feeds.npz"), include=("*",), lm_head=True),
    )
    assert any("beyond float16" in line for line in report.narrowed)
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer if tensor.dims}
    assert kinds >= {TensorProto.FLOAT, TensorProto.FLOAT16}
    expected, actual = run(tmp_path / "model.onnx", feeds)["y"], run(tmp_path / "out", feeds)["y"]
    assert relative(expected, actual) < 2e-3


def from_the_caller(net: Net) -> str:
    return net.op("Mul", net.op("Transpose", net.input("x", [64, 64])), net.constant(1e-4))


def from_a_table(net: Net) -> str:
    rows = net.op("Gather", net.normal(64, 64), net.op("Cast", net.input("x", [64]), to=TensorProto.INT64))
    table = net.nodes[-1].input[0]
    net.initializers[table] = net.initializers[table] * np.float32(1e6)
    return net.op("Mul", rows, net.constant(1e-4))


def from_integers(net: Net) -> str:
    codes, scale, zero = net.ops("DynamicQuantizeLinear", net.input("x", [64, 64]), results=["q", "s", "z"])
    product = net.op("MatMulInteger", codes, net.constant(np.full((64, 64), 99, np.int8)), zero)
    return net.op("Mul", net.op("Cast", product, to=TensorProto.FLOAT), net.op("Mul", scale, net.constant(1e-5)))


def from_a_branch(net: Net) -> str:
    x, branches = net.input("x", [64, 64]), [net.body(), net.body()]
    for branch in branches:
        branch.output(branch.op("Mul", branch.op("Mul", x, branch.constant(1e-3)), branch.constant(6e4)))
    flag = net.op("Greater", net.op("ReduceMax", x, keepdims=0), net.constant(0.0))
    chosen = net.op("If", flag, then_branch=branches[0].graph(), else_branch=branches[1].graph())
    return net.op("Mul", chosen, net.constant(1e-6))


def from_a_sequence(net: Net) -> str:
    parts = net.op("SplitToSequence", net.op("Tanh", net.input("x", [64, 64])), axis=0, keepdims=1)
    return net.op("ConcatFromSequence", parts, axis=0)


SOURCES = [from_the_caller, from_a_table, from_integers, from_a_branch, from_a_sequence]


@pytest.mark.parametrize("build", SOURCES)
def test_large_values_do_not_overflow_wherever_they_come_from(build: Callable[[Net], str], tmp_path: Path) -> None:
    """Judged in numpy's float16: ONNX Runtime computes in float32 on the CPU, where nothing overflows."""
    net = Net()
    net.output(net.op("MatMul", build(net), net.normal(64, 64), result="y"))
    shape = [dimension.dim_value for dimension in net.inputs[0].type.tensor_type.shape.dim]
    scale, random = (
        (63, np.random.default_rng(0).uniform) if len(shape) == 1 else (1e5, np.random.default_rng(0).normal)
    )
    x = (random(size=shape) * scale).astype(np.float32)
    onnx.save(net.proto(), tmp_path / "model.onnx")
    np.savez(
        tmp_path / "feeds.npz",
        allow_pickle=False,
        **{f"{index}/x": x * np.float32(1000.0**-index) for index in range(2)},
    )
    recipe = dataclasses.replace(FLOAT16, calibration=str(tmp_path / "feeds.npz"), include=("*",), lm_head=True)
    catonnx.optimize(tmp_path / "model.onnx", tmp_path / "out", recipe)
    expected = run(tmp_path / "model.onnx", {"x": x})["y"]
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert any(tensor.data_type == TensorProto.FLOAT16 and len(tensor.dims) == 2 for tensor in model.graph.initializer)
    actual = np.asarray(*ReferenceEvaluator(model).run(None, {"x": x}))
    assert relative(expected, actual) < 2e-3


def test_a_masked_row_stays_finite_where_calibration_masked_nothing(tmp_path: Path) -> None:
    net = Net()
    x, mask = net.input("x", [8, 64]), net.input("mask", [8, 64])
    hidden = net.op("Mul", net.op("Sub", net.constant(1.0), mask), net.constant(float(np.finfo(np.float32).min)))
    scores = net.op("Add", net.op("MatMul", x, net.normal(64, 64)), hidden)
    net.output(net.op("MatMul", net.op("Softmax", scores), net.normal(64, 64), result="y"))
    onnx.save(net.proto(), tmp_path / "model.onnx")
    feeds = {
        "x": np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32),
        "mask": np.ones((8, 64), np.float32),
    }
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **{f"0/{name}": array for name, array in feeds.items()})
    recipe = dataclasses.replace(FLOAT16, calibration=str(tmp_path / "feeds.npz"), include=("*",), lm_head=True)
    catonnx.optimize(tmp_path / "model.onnx", tmp_path / "out", recipe)
    feeds["mask"] = np.tri(8, 64, -1, dtype=np.float32)  # nothing is seen in the first row
    model = onnx.load(tmp_path / "out" / "model.onnx")
    actual = np.asarray(*ReferenceEvaluator(model).run(None, feeds))
    assert np.isfinite(actual).all()
    assert relative(run(tmp_path / "model.onnx", feeds)["y"][1:], actual[1:]) < 5e-3


def test_a_cache_that_float16_does_not_hold_stays(tmp_path: Path) -> None:
    net = Net()
    x, past = net.input("x", ["n", 64]), net.input("past_key_values.0.key", ["m", 64])
    present = net.op("Concat", past, net.op("MatMul", x, net.normal(64, 64)), axis=0, result="present.0.key")
    net.output(present)
    net.output(net.op("MatMul", net.op("Mul", present, net.constant(1e-4)), net.normal(64, 64), result="y"))
    onnx.save(net.proto(), tmp_path / "model.onnx")
    array = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **{"0/x": array, f"0/{past}": array * 1e5})
    recipe = dataclasses.replace(FLOAT16, calibration=str(tmp_path / "feeds.npz"), include=("*",), lm_head=True)
    catonnx.optimize(tmp_path / "model.onnx", tmp_path / "out", recipe)
    assert signature(tmp_path / "out") == signature(tmp_path / "model.onnx")


@pytest.mark.parametrize("read_on", [False, True])
def test_an_input_that_an_output_repeats_is_no_cache(read_on: bool, tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", ["n", 64])
    other = net.input("other", ["n", 64]) if not read_on else x
    net.output(net.op("Concat", x, net.op("MatMul", net.op("Relu", other), net.normal(64, 64)), axis=-1, result="y"))
    if read_on:
        net.output(net.op("Relu", "y", result="z"))
    onnx.save(net.proto(), tmp_path / "model.onnx")
    array = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **{f"0/{item.name}": array for item in net.inputs})
    given = str(tmp_path / "feeds.npz")
    recipe = dataclasses.replace(FLOAT16, calibration=given, include=("*",), lm_head=True)
    catonnx.optimize(tmp_path / "model.onnx", tmp_path / "out", recipe)
    assert signature(tmp_path / "out") == signature(tmp_path / "model.onnx")


def test_all_caches_of_an_attention_change_whatever_they_are_called(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", [1, "n", 64])
    query, key, value = (net.op("MatMul", x, net.normal(64, 64)) for _ in range(3))
    past = [net.input(name, [1, 4, "m", 16]) for name in ("keys_in", "values_in")]
    results = ["attended", "keys_out", "values_out"]
    heads: dict[str, Any] = {"q_num_heads": 4, "kv_num_heads": 4}
    net.opset = 23
    net.ops("Attention", query, key, value, "", *past, results=results, **heads)
    net.output(net.op("MatMul", "attended", net.normal(64, 64), result="y"))
    for name in results[1:]:
        net.output(name)
    proto = net.proto()
    for output in proto.graph.output[1:]:
        output.type.tensor_type.shape.CopyFrom(proto.graph.input[1].type.tensor_type.shape)
        output.type.tensor_type.shape.dim[2].dim_param = "k"
    onnx.save(proto, tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    shapes = {"x": (1, 8, 64), "keys_in": (1, 4, 0, 16), "values_in": (1, 4, 0, 16)}
    arrays = {f"0/{name}": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **arrays)
    recipe = dataclasses.replace(FLOAT16, calibration=str(tmp_path / "feeds.npz"), include=("*",), lm_head=True)
    catonnx.optimize(tmp_path / "model.onnx", tmp_path / "out", recipe)
    changed = {name for name, kind in signature(tmp_path / "out") if kind == TensorProto.FLOAT16}
    assert changed == {"keys_in", "values_in", "keys_out", "values_out"}


def test_a_model_that_is_float16_already_stays(tmp_path: Path) -> None:
    source = write_cast(dialects.file_of("tiny-bert"), tmp_path / "half", "float16")
    given = calibration("tiny-bert", tmp_path)
    report = catonnx.optimize(source, tmp_path / "out", dataclasses.replace(FLOAT16, calibration=given))
    assert report.narrowed == ("as it was: the model holds float16 or bfloat16 already",)


def test_a_plan_is_applied_again(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = Recipe(samples=4, seq_len=32, dtype="float16")
    first = catonnx.optimize(tiny_llama, tmp_path / "first", recipe)
    catonnx.optimize(tiny_llama, tmp_path / "again", recipe, plan=first.plan)
    for name in ("model.onnx", "model.onnx_data"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_a_difference_is_traced_to_its_site(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is float32, and its sites have other names where a Cast was put before them."""
    original = transform

    def broken(opened: Opened, plan: Plan) -> None:
        original(opened, plan)
        product = next(site for site in opened.sites if "layers.1/mlp/down_proj" in site.linears[0].name).linears[0]
        value = product.node.inputs[1]
        assert value is not None
        assert value.const_value is not None
        value.const_value = ir.tensor((value.const_value.numpy() * 2).astype(np.float16))

    monkeypatch.setattr(pipeline, "transform", broken)
    with pytest.raises(VerificationError, match=r"first at site /model/layers\.2/input_layernorm.*--dtype source"):
        catonnx.optimize(tiny_llama, tmp_path / "out", Recipe(samples=4, seq_len=32, dtype="float16", transform="none"))


def test_cuda_means_float16_unless_something_else_is_said() -> None:
    assert Recipe(**settled({"provider": "cuda"})).dtype == "float16"
    assert Recipe(**settled({"target": "cuda"})).dtype == "float16"
    assert Recipe(**settled({"provider": "cuda", "dtype": "source"})).dtype == "source"
    assert Recipe(**settled({"target": "cpu"})).dtype == Recipe().dtype == "source"


def test_the_command_tells_what_became_of_it(tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx")
    feeds = write_feeds(tmp_path / "feeds.npz", 32, 64)
    result = catonnx_("optimize", model, "-o", tmp_path / "out", "--dtype", "float16", "--calibration", feeds, *QUICK)
    assert result.exit_code == 0, result.output
    assert "type" in result.stdout
    assert "float16" in result.stdout
    assert run(tmp_path / "out", {"x": np.zeros((3, 64), np.float32)})["y"].dtype == np.float32


def test_decoding_goes_on_from_a_float16_cache(tmp_path: Path) -> None:
    """Two models in one evaluation take caches of different types."""
    source, text = models.path("tiny-llama"), tmp_path / "text.txt"
    text.write_text(dialects.TEXT, encoding="utf-8")
    catonnx.optimize(source, tmp_path / "out", dataclasses.replace(FLOAT16, caches="exact"))
    result = catonnx_("evaluate", tmp_path / "out", "--against", source, "--text", text, *QUICK)
    assert result.exit_code == 0, result.output
