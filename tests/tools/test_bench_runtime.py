"""`tools.bench_runtime` on tiny models: every model is made, timed and compared; its figures mean nothing there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from catonnx.runtime.sessions import available_providers
from tools import bench_runtime, runtime_rows
from tools.child import run
from tools.runtime_models import EVERY, EXACT, INT4, PEERS, SHAPES, TRANSFORMS, Subject, chosen, make, text_subject
from tools.stepping import Runner, Times, Variant, open_runner, take_turns


def test_all_models_are_made_and_timed(
    tiny_llama: Path,
    ops_library: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CATONNX_OPS", str(ops_library))
    sizes = "--rounds 1 --decoded 2 --row-tokens 16 --samples 2 --seq-len 16 --batch 1 2".split()
    places = ["--model", str(tiny_llama), "--keep", str(tmp_path / "kept"), "--json", str(tmp_path / "runtime.json")]
    only = ["--only", "op w4a8, none", "--only", "op w4a8, scale*"]
    assert bench_runtime.main([*sizes, *places, *only]) in (0, 1)
    rows = json.loads((tmp_path / "runtime.json").read_text())["rows"]
    names = [row["what"] for row in rows if row["group"] == "tokens/s"]
    ours = ["op w4a8, none", "op w4a8, scale + hadamard"]
    assert sorted(names) == sorted(["fp32", *PEERS["fp32"], *ours])
    assert all(row["values"].keys() == {"prefill", "decode 1", "decode 2"} for row in rows[: len(names)])
    ratios = [row for row in rows if "ratios" in row["values"]]
    assert [row["group"] for row in ratios] == ["decode 1", "prefill", "prefill", "decode 2"]
    bounded = [row for row in ratios if row["bound"]]
    assert [row["group"] for row in bounded] == ["decode 1", "prefill", "prefill"]
    assert all(row["met"] == (row["values"]["ratio"] >= float(row["bound"].split()[1])) for row in bounded)
    costs = [row for row in rows if row["group"] == "cost"]
    assert [row["what"] for row in costs] == [
        "decode 1, scale + hadamard in op w4a8",
        "prefill, scale + hadamard in op w4a8",
    ]
    memory = {row["what"]: row for row in rows if row["group"] == "memory"}
    assert set(memory) == {"onnxruntime int4, level 4", *ours}
    assert all((row["bound"] == "<= 1.02 x") == name.startswith("op") for name, row in memory.items())
    assert capsys.readouterr().err.count("making: ") == 5
    subject = text_subject(tiny_llama, tokens=16, samples=2, seq_len=16)
    assert len(make(subject, tmp_path / "kept", chosen("fp32", ["op w4a8, [ns]*"], every=False))) == 6
    assert "making: " not in capsys.readouterr().err


def test_layers_of_llama_are_made_and_timed(ops_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATONNX_OPS", str(ops_library))
    file = tmp_path / "cuda.json"
    sizes = "--rounds 1 --decoded 2 --batch 1 2 --only".split()
    assert bench_runtime.main([*sizes, "op *, scale + hadamard", "--shape", "tiny", "--json", str(file)]) in (0, 1)
    data = json.loads(file.read_text())
    assert data["models"] == ["tiny"]
    rows = {(row["group"], row["what"]): row for row in data["rows"]}
    speeds = {what for group, what in rows if group == "tiny in 1 layers: tokens/s"}
    ours = {f"op {scheme}, scale + hadamard" for scheme in ("w4a16", "w4a8", "w4a4")}
    assert speeds == {"fp16", *PEERS["fp16"], *ours}
    assert ("tiny in 1 layers: prefill", "op w4a8, scale + hadamard over fp16") in rows
    assert ("tiny in 1 layers: decode 1", f"op w4a16, scale + hadamard over {INT4}") in rows
    assert {what for group, what in rows if group == "tiny in 1 layers: memory"} == {INT4, *ours}


@pytest.mark.parametrize(
    ("width", "phase", "name", "bound", "faster", "met"),
    [
        (2048, "decode 1", "op w4a16", ">= 0.97 x", 0.98, True),
        (2048, "decode 1", "op w4a16", ">= 0.97 x", 0.96, False),
        (2048, "decode 8", "op w4a16", "", 0.5, None),
        (4096, "prefill", "op w4a8", ">= 1.5 x", 1.6, True),
        (4096, "prefill", "op w4a4", ">= 1.5 x", 1.4, False),
        (2048, "prefill", "op w4a4", "", 1.4, None),
    ],
)
def test_bounds_on_cuda(width: int, phase: str, name: str, bound: str, faster: float, met: bool | None) -> None:
    subject = Subject("8B", Path(), "fp16", np.arange(8), {}, width)
    times = {"fp16": {phase: [1.0]}, INT4: {phase: [1.0]}, f"{name}, scale + hadamard": {phase: [1 / faster]}}
    (row,) = runtime_rows.ratios(subject, times, "cuda")
    assert (row.bound, row.met) == (bound, met)


def test_more_memory_than_onnxruntimes_int4_misses_the_bound() -> None:
    subject = Subject("", Path(), "fp16", np.arange(8), {})
    found: dict[str, dict[str, int | None]]
    found = {INT4: {"after_runs": 100}, "op w4a8, none": {"after_runs": 103}, "op w4a16, none": {"after_runs": 102}}
    assert [row.met for row in runtime_rows.memories(subject, found)] == [None, False, True]
    for nothing in (None, 0, -50):  # what a card has in use less what it had before may be anything
        peer, own = {INT4: {"after_runs": nothing}}, {"op w4a8, none": {"after_runs": nothing}}
        assert [row.met for row in runtime_rows.memories(subject, found | peer)] == [None, None, None]
        assert [row.met for row in runtime_rows.memories(subject, found | own)] == [None, None, True]


def test_a_pattern_that_no_model_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_runtime.main(["--only", "op w5*"]) == 2
    assert capsys.readouterr().err == "error: no model of ours is named op w5*\n"


def test_too_few_tokens_are_refused(tiny_llama: Path) -> None:
    runners = {"one": open_runner(Variant(tiny_llama / "model.onnx", {}))}
    with pytest.raises(ValueError, match="8 tokens are fewer than 4 and 3 to decode, and 2"):
        take_turns(runners, np.arange(8), rounds=1, context=4, decoded=3)


def test_models_that_are_kept_are_of_the_same_making(tiny_llama: Path, tmp_path: Path) -> None:
    made = [
        make(
            text_subject(tiny_llama, tokens=16, samples=samples, seq_len=16),
            tmp_path,
            {"float": {"scheme": "float"}},
            peers=False,
        )
        for samples in (1, 2, 1)
    ]
    assert made[0] == made[2]
    assert made[0]["float"] != made[1]["float"]


def test_a_model_that_does_not_run_is_a_row(tiny_llama: Path, tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Nonsense", ["x"], ["y"])], "broken", values[:1], values[1:])
    onnx.save(helper.make_model(graph), tmp_path / "broken.onnx")
    subject = Subject("", tiny_llama, "fp32", np.arange(2, 18), {})
    paths = {"fp32": tiny_llama / "model.onnx", EXACT: tmp_path / "broken.onnx"}
    rows = bench_runtime.measure(subject, paths, "cpu", bench_runtime.Sizes(1, 2, (1,)))
    assert [(row.what, row.failed) for row in rows if row.group == "tokens/s"] == [(EXACT, True), ("fp32", False)]


def test_what_a_session_takes_is_told(tiny_llama: Path) -> None:
    path = str(tiny_llama / "model.onnx")
    taken = run("occupy", {"model": path, "provider": "cpu", "tokens": list(range(2, 18))}).result
    weights = (tiny_llama / "model.onnx").stat().st_size
    assert taken["peak"] >= taken["after_runs"] >= taken["loaded"] > weights / 2
    assert taken["anonymous"] + taken["file"] == pytest.approx(taken["after_runs"], rel=0.2)


def test_all_models_go_on_behind_one_context(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runners = {name: open_runner(Variant(tiny_llama / "model.onnx", {})) for name in ("first", "second")}
    seen: list[tuple[str, int, int]] = []
    step = Runner.step

    def watched(self: Runner, tokens: np.ndarray) -> float:
        seen.append((next(name for name in runners if runners[name] is self), self.past.length, tokens.shape[1]))
        return step(self, tokens)

    monkeypatch.setattr(Runner, "step", watched)
    monkeypatch.setattr("tools.stepping._AT_ONCE", 12)  # of two texts six tokens each
    found = take_turns(runners, np.arange(2, 18), rounds=3, context=8, decoded=2, batch=2, most_seconds=0)
    one_round = [(8, 1), (9, 1), (10, 1), (11, 1), (0, 16)]
    assert seen[:2] == [("first", 0, 6), ("first", 6, 2)]
    assert [each[1:] for each in seen[2:]] == one_round * 4  # one round that warms up, one that counts
    assert [each[0] for each in seen[2::5]] == ["first", "second", "second", "first"]
    assert all(isinstance(own, Times) and len(own.decode) == len(own.prefill) == 1 for own in found.values())


def test_without_the_library_functions_are_not_timed_in_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CATONNX_OPS", raising=False)
    assert bench_runtime.main([]) == 8
    assert "python -m catonnx.ops build" in capsys.readouterr().err


@pytest.mark.skipif("cuda" in available_providers(), reason="there may be a GPU")
def test_without_cuda_one_error_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_runtime.main(["--provider", "cuda"]) == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the execution provider CUDAExecutionProvider is not part of")


def test_without_more_words_only_what_has_bounds_is_made() -> None:
    assert len(chosen("fp32", None, every=False)) == 10
    assert len(chosen("fp32", None, every=True)) == len(EVERY["fp32"]) * len(TRANSFORMS) == 30
    assert chosen("fp16", ["op w4a4, cat 128"], every=False) == {
        "op w4a4, cat 128": {"form": "op", "scheme": "w4a4", "activation_range": "symmetric"} | TRANSFORMS["cat 128"]
    }
    assert set(bench_runtime.LLAMAS) < SHAPES.keys()
