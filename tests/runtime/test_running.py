"""Models run in parts give what they give whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import catonnx
from catonnx.errors import CalibrationError, VerificationError
from catonnx.graph import load
from catonnx.graph.parts import in_parts
from catonnx.graph.stages import Stage
from catonnx.passes import insert
from catonnx.runtime import running
from catonnx.runtime.decoding import present_name
from catonnx.runtime.feeds import InputSpec
from catonnx.runtime.fusion import OptimizedGraph
from catonnx.runtime.running import Request, Unwritten, opened
from tests.small_models import language_feeds, write_feeds, write_mlp

LIMIT = 1 << 14


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let models of more than `LIMIT` bytes run in parts, and return how many there were each time."""
    numbers: list[int] = []

    def in_small_parts(model: object) -> tuple[object, ...]:
        parts = in_parts(model, LIMIT)  # type: ignore[arg-type]
        numbers.append(len(parts))
        return parts

    monkeypatch.setattr(running, "in_parts", in_small_parts)
    return numbers


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_llama_dynamo", "tiny_gpt2", "tiny_bert", "tiny_vit"])
def test_all_outputs_are_the_models_own(
    name: str, request: pytest.FixtureRequest, cut: list[int], tmp_path: Path
) -> None:
    folder = request.getfixturevalue(name)
    reference = load.bring(load.find(folder), tmp_path)
    samples = [
        {"pixel_values": np.random.default_rng(seed).normal(size=(2, 3, 32, 32)).astype(np.float32)}
        if name == "tiny_vit"
        else language_feeds(folder, batch=seed)
        for seed in (1, 2)
    ]
    with opened(folder / "model.onnx") as model:
        names, inputs = list(model.outputs), model.inputs
        expected = list(model.run([Request(sample, names) for sample in samples]))
    with opened(Unwritten(load.read(reference), tmp_path, reference)) as model:
        assert model.inputs == inputs
        assert dict.fromkeys(names, True) == model.outputs
        actual = list(model.run([Request(sample, names) for sample in samples]))
    assert cut[0] > 3
    for sample in range(2):
        for output, here, there in zip(names, expected[sample], actual[sample], strict=True):
            np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5, err_msg=output)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_a_text_goes_on_from_the_cache_of_the_piece_before(
    name: str, request: pytest.FixtureRequest, cut: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reference = load.bring(load.find(request.getfixturevalue(name)), tmp_path)
    ran: list[int] = []
    model_of = Stage.model
    monkeypatch.setattr(Stage, "model", lambda part, *given: ran.append(part.number) or model_of(part, *given))  # type: ignore[func-returns-value]
    tokens = np.arange(12).reshape(1, 12)
    for model in (reference, Unwritten(load.read(reference), tmp_path, reference)):
        with opened(model) as running:
            spec, outputs = InputSpec.of(tuple(running.inputs)), set(running.outputs)
            caches = {past: present_name(past, outputs) for past in spec.past_names}
            requests = [
                Request(spec.first_feeds(tokens), ["logits"]),
                Request(spec.first_feeds(tokens[:, :5]), ["logits"]),
                Request(spec.feeds(tokens[:, 5:], 5) | spec.zero_past(1, 5), ["logits"], caches),
            ]
            [[at_once], [first], [second]] = running.run(requests)
        np.testing.assert_allclose(np.concatenate([first, second], axis=1), at_once, rtol=1e-3, atol=1e-4)
    assert ran == list(range(cut[0]))  # all pieces in one sweep
    assert cut[0] > 3


def test_what_the_first_part_reads_of_the_last_is_waited_for(cut: list[int], tmp_path: Path) -> None:
    """The state enters before the first linear and leaves behind the last."""

    def recurrent(model: onnx.ModelProto) -> None:
        graph = model.graph
        width, output = model.graph.initializer[0].dims[0], graph.output[0].name
        state = helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, ["rows", width])
        first = graph.node[0]
        graph.node.insert(0, helper.make_node("Add", [first.input[0], "state"], ["entered"]))
        first.input[0] = "entered"
        graph.node.append(helper.make_node("Tanh", [output], ["left"]))
        graph.input.append(state)
        graph.output.append(helper.make_tensor_value_info("left", onnx.TensorProto.FLOAT, ["rows", width]))

    path = write_mlp(tmp_path / "model.onnx", (64, 64, 64, 64), edit=recurrent)
    rows = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    results = []
    for model in (path, Unwritten(load.read(path), tmp_path, path)):
        with opened(model) as running:
            name = next(item.name for item in running.inputs if item.name != "state")
            requests = [
                Request({name: rows, "state": np.zeros_like(rows)}, ["left"]),
                Request({name: -rows, "state": np.zeros_like(rows)}, ["left"], {"state": "left"}),
                Request({name: rows, "state": np.zeros_like(rows)}, ["left"], {"state": "left"}),
            ]
            results.append(list(running.run(requests)))
    assert cut[0] > 1
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(results[0][2], results[0][0])


def test_nothing_stays_in_the_folder(tiny_llama: Path, cut: list[int], tmp_path: Path) -> None:
    reference = load.bring(load.find(tiny_llama), tmp_path)
    before = set(tmp_path.iterdir())
    with opened(Unwritten(load.read(reference), tmp_path)) as model:
        list(model.run([Request(language_feeds(tiny_llama), ["logits"])]))
    assert cut[0] > 3
    assert set(tmp_path.iterdir()) == before


def test_no_feeds(tiny_llama: Path, cut: list[int], tmp_path: Path) -> None:
    reference = load.bring(load.find(tiny_llama), tmp_path)
    with opened(Unwritten(load.read(reference), tmp_path)) as model, pytest.raises(CalibrationError, match="no inputs"):
        list(model.run([]))
    assert cut


def test_what_was_fused_is_told_once_for_each_part(tiny_llama: Path, cut: list[int], tmp_path: Path) -> None:
    catonnx.optimize(tiny_llama, tmp_path / "out", catonnx.Recipe(samples=2, seq_len=16, calibration="self"))
    cut.clear()
    graphs: list[OptimizedGraph] = []
    path = tmp_path / "out" / "model.onnx"
    with opened(Unwritten(load.read(path), path.parent, path), scratch=tmp_path, see=graphs.append) as model:
        for _ in range(2):
            list(model.run([Request(language_feeds(tiny_llama), ["logits"])]))
    assert len(graphs) == cut[0] > 1
    assert sum(graph.operators["MatMulNBits"] for graph in graphs) == 21


@pytest.mark.parametrize("caches", ["exact", "transformed"])
def test_a_model_is_verified_in_parts_as_it_is_whole(
    tiny_llama: Path, caches: str, cut: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = catonnx.Recipe(samples=4, seq_len=16, caches=caches, calibration="self")  # type: ignore[arg-type]
    in_pieces = catonnx.optimize(tiny_llama, tmp_path / "parts", recipe)
    assert min(cut[:4]) > 1
    monkeypatch.undo()
    whole = catonnx.optimize(tiny_llama, tmp_path / "whole", recipe)
    assert bool(whole.changed_caches) == (caches == "transformed")
    one, other = in_pieces.verification, whole.verification
    assert one["transform_relative_l2"] == pytest.approx(other["transform_relative_l2"], abs=1e-6)
    assert (one["linears"], one["fused"], one["not_fused"]) == (other["linears"], other["fused"], other["not_fused"])
    for way, figures in other["deployed"].items():
        assert one["deployed"][way] == pytest.approx(figures, rel=0.02)
    data = [(tmp_path / out / "model.onnx_data").read_bytes() for out in ("parts", "whole")]
    assert data[0] == data[1]


def test_a_wrong_model_is_refused_in_parts_too(cut: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "model.onnx")
    feeds = write_feeds(tmp_path / "feeds.npz", 4, 64)
    monkeypatch.setattr(insert, "undo_in_readers", lambda *_: None)
    with pytest.raises(VerificationError, match="differs from the source"):
        catonnx.optimize(model, tmp_path / "out", catonnx.Recipe(calibration=str(feeds)))
    assert max(cut) > 1


@pytest.mark.parametrize("kind", ["initializers as inputs", "out of order"])
def test_forms_that_onnx_runtime_takes_run_in_parts_too(kind: str, cut: list[int], tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        if kind == "out of order":
            nodes = list(model.graph.node)[::-1]
            del model.graph.node[:]
            model.graph.node.extend(nodes)
        else:
            model.graph.input.extend(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                for tensor in model.graph.initializer
            )

    model = write_mlp(tmp_path / "model.onnx", edit=change)
    feeds = write_feeds(tmp_path / "feeds.npz", 4, 64)
    catonnx.optimize(model, tmp_path / "out", catonnx.Recipe(calibration=str(feeds)))
    assert min(cut[:2]) > 1
