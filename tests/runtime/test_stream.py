"""Two runs side by side: the float one is the model's own, and decisions move nothing but the other."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from catonnx.analysis import Opened, analyse
from catonnx.graph import load
from catonnx.graph.outputs import with_outputs
from catonnx.graph.save import write_beside, write_model
from catonnx.graph.segments import cut
from catonnx.graph.sites import Selection, Site, find_sites
from catonnx.recipe import Recipe
from catonnx.runtime import stage_sessions
from catonnx.runtime.sessions import open_session, run
from catonnx.runtime.stream import Batches, Decision, run_stages
from tests.graph.builder import Net
from tests.runtime.streaming import Chain, feeds, recorder
from tests.small_models import language_feeds


@pytest.fixture
def chain() -> Chain:
    return Chain()


def test_without_decisions_both_runs_are_the_models_own(chain: Chain, tmp_path: Path) -> None:
    seen, visit = recorder()
    steps: list[tuple[str, int, int]] = []
    samples = feeds(5, 1, 3)
    run_stages(chain.stages, samples, visit, scratch=tmp_path, progress=lambda *step: steps.append(step))
    assert list(seen) == ["a", "b", "c"]
    write_beside(with_outputs(chain.model, dict.fromkeys(seen, ir.DataType.FLOAT)), tmp_path / "whole.onnx")
    session = open_session(tmp_path / "whole.onnx", optimization="basic")
    for index, sample in enumerate(samples):
        for name, value in zip(seen, run(session, list(seen), sample), strict=True):
            np.testing.assert_array_equal(seen[name][index].exact, value)
            np.testing.assert_array_equal(seen[name][index].rounded, value)
    assert steps == [("run stages", done, 4) for done in range(1, 5)]


def test_weights_and_rows_are_rounded_in_the_other_run_and_selected_linears_only(chain: Chain, tmp_path: Path) -> None:
    other = {0: chain.weights[0] + 0.1, 2: chain.weights[2] - 0.1}
    seen, visit = recorder(
        {
            "a": Decision({chain.names[0]: other[0]}, lambda rows: np.round(2 * rows) / 2),
            "b": Decision({chain.names[1]: other[2]}),
        }
    )
    samples = feeds(5, 2)
    run_stages(chain.stages, samples, visit, scratch=tmp_path)
    for index, sample in enumerate(samples):
        exact = chain.expected(sample["x"])
        rounded = chain.expected(sample["x"], other, lambda rows: np.round(2 * rows) / 2)
        for name, expected, otherwise in zip(seen, exact, rounded, strict=True):
            np.testing.assert_allclose(seen[name][index].exact, expected, rtol=1e-5, atol=1e-6)  # measured 4e-7
            np.testing.assert_allclose(seen[name][index].rounded, otherwise, rtol=1e-5, atol=1e-6)
        assert np.abs(exact[1] - rounded[1]).max() > 0.1


def test_a_single_run_sees_no_decision(chain: Chain, tmp_path: Path) -> None:
    decisions = {"a": Decision({chain.names[0]: np.zeros((4, 4))}, np.zeros_like)}
    alone, visit = recorder(decisions)
    run_stages(chain.stages, feeds(5), visit, scratch=tmp_path, paired=False)
    pair, visit = recorder(decisions)
    run_stages(chain.stages, feeds(5), visit, scratch=tmp_path)
    for name, (rows,) in alone.items():
        np.testing.assert_array_equal(rows.exact, rows.rounded)
        np.testing.assert_array_equal(rows.exact, pair[name][0].exact)
    assert (pair["b"][0].exact != pair["b"][0].rounded).any()


def test_a_single_run_hands_out_one_array(chain: Chain, tmp_path: Path) -> None:
    def visit(site: Site, batches: Batches) -> Decision:
        assert all(rows.exact is rows.rounded for rows in batches)
        return Decision()

    run_stages(chain.stages, feeds(5), visit, scratch=tmp_path, paired=False)


def test_two_sites_of_one_stage_are_both_visited_before_it_runs(tmp_path: Path) -> None:
    net = Net()
    net.input("x", ["rows", 4])
    w = [net.normal(4, 4) for _ in range(2)]
    both = net.op(
        "Add",
        net.op("MatMul", net.op("Relu", "x", result="a"), w[0]),
        net.op("MatMul", net.op("Tanh", "x", result="b"), w[1]),
    )
    net.output(net.op("MatMul", net.op("Sin", both, result="c"), net.normal(4, 4)))
    model = net.model()
    sites = find_sites(model.graph, Selection(head=True)).sites
    linears = [site.linears[0].name for site in sites]
    seen, visit = recorder(
        {"a": Decision({linears[0]: np.eye(4)}), "b": Decision({linears[1]: np.eye(4)}, lambda rows: 2 * rows)}
    )
    run_stages(cut(model, sites), feeds(6), visit, scratch=tmp_path)
    x = feeds(6)[0]["x"]
    expected = np.sin(np.maximum(x, 0) + 2 * np.tanh(x))
    np.testing.assert_allclose(seen["c"][0].rounded, expected, rtol=1e-5, atol=1e-6)  # measured 1e-7


def test_a_linear_that_waits_for_its_bias_still_gets_what_was_decided(tmp_path: Path) -> None:
    net = Net()
    site = net.op("Relu", net.input("x", ["rows", 4]), result="a")
    early = net.op("Sin", net.op("MatMul", site, net.normal(4, 4)), result="b")
    late = net.op("Gemm", site, net.normal(4, 4), net.op("MatMul", early, net.normal(4, 4)))
    net.output(net.op("MatMul", net.op("Exp", late, result="c"), net.normal(4, 4)))
    model = net.model()
    sites = find_sites(model.graph, Selection(head=True)).sites
    names = [linear.name for site_ in sites for linear in site_.linears]
    assert [site_.name for site_ in sites] == ["a", "b", "c"]
    seen, visit = recorder(
        {"a": Decision({names[1]: np.eye(4)}, lambda rows: rows + 1), "b": Decision({}, np.zeros_like)}
    )
    run_stages(cut(model, sites), feeds(3), visit, scratch=tmp_path)
    rows = np.maximum(feeds(3)[0]["x"], 0) + 1
    np.testing.assert_allclose(seen["c"][0].rounded, np.exp(rows), rtol=1e-5)  # measured 1e-7


def opened(folder: Path, work: Path) -> Opened:
    return analyse(load.load(load.bring(load.find(folder), work)), Recipe())


@pytest.mark.parametrize(("past", "memory", "beside"), [(0, 1 << 29, True), (0, 0, False), (5, 2000, False)])
def test_a_language_model_with_caches_in_memory_or_in_files(
    tiny_llama: Path, tmp_path: Path, past: int, memory: int, beside: bool
) -> None:
    work, scratch = tmp_path / "work", tmp_path / "scratch"
    work.mkdir()
    scratch.mkdir()
    model = opened(tiny_llama, work)
    samples = [language_feeds(tiny_llama, batch=1, length=length, past=past) for length in (9, 24)]
    seen, visit = recorder()
    before = sorted(work.iterdir())
    run_stages(cut(model.model, model.sites), samples, visit, scratch=work if beside else scratch, memory=memory)
    assert sorted(work.iterdir()) == before
    assert list(scratch.iterdir()) == []
    write_beside(with_outputs(model.model, dict.fromkeys(seen, ir.DataType.FLOAT)), work / "whole.onnx")
    session = open_session(work / "whole.onnx", optimization="basic")
    for index, sample in enumerate(samples):
        for name, value in zip(seen, run(session, list(seen), sample), strict=True):
            for rows in seen[name][index]:
                np.testing.assert_array_equal(rows, value.reshape(rows.shape), err_msg=name)


def test_external_tensors_that_lie_elsewhere_are_read_from_there(chain: Chain, tmp_path: Path) -> None:
    folder, scratch = tmp_path / "model", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    net = Net()
    flow = net.input("x", ["rows", 32])
    for _ in range(3):
        flow = net.op("MatMul", net.op("Relu", flow), net.normal(32, 32))
    net.output(flow)
    write_model(net.model(), folder / "model.onnx")
    assert (folder / "model.onnx_data").exists()
    model = load.load(folder / "model.onnx")
    stages = cut(model, find_sites(model.graph, Selection(head=True)).sites)
    results = []
    for place in (scratch, folder):
        seen, visit = recorder()
        run_stages(stages, feeds(4, width=32), visit, scratch=place)
        results.append([rows[0].rounded for rows in seen.values()])
    np.testing.assert_array_equal(results[0], results[1])
    assert list(scratch.iterdir()) == []
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx_data"]


def test_what_waits_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    net = Net()
    flow = net.input("x", ["rows", 4])
    for _ in range(12):
        flow = net.op("Add", net.op("MatMul", net.op("Relu", flow), net.normal(4, 4)), flow)
    net.output(flow)
    model = net.model()
    waiting, decided = [], list[weakref.ref[np.ndarray]]()

    def visit(site: Site, batches: Batches) -> Decision:
        waiting.append(len(list(tmp_path.rglob("*.npy"))))
        assert all(weight() is None for weight in decided)
        weight = np.zeros((4, 4))
        decided.append(weakref.ref(weight))
        return Decision({site.linears[0].name: weight})

    stages = cut(model, find_sites(model.graph, Selection(head=True)).sites)
    run_stages(stages, feeds(2, 2, 2), visit, scratch=tmp_path, memory=0)
    assert waiting == [3, *[2 * 2 * 3] * 10, 2 * 3]  # shared; residual and site of two runs; site alone


def test_one_session_is_open_at_a_time(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[weakref.ref[object]] = []

    def opening(path: Path, **options: object) -> object:
        assert all(session() is None for session in sessions)
        session = open_session(path, **options)  # type: ignore[arg-type]
        sessions.append(weakref.ref(session))
        return session

    monkeypatch.setattr(stage_sessions, "open_session", opening)
    run_stages(chain.stages, feeds(3, 2), recorder()[1], scratch=tmp_path)
    assert len(sessions) == 5  # the part before the first site, and two stages twice


def test_float16_activations_are_handed_out_as_float32(tmp_path: Path) -> None:
    net = Net()
    flow = net.input("x", ["rows", 4], TensorProto.FLOAT16)
    for _ in range(2):
        flow = net.op("MatMul", net.op("Neg", flow), net.constant(net.random.normal(size=(4, 4)).astype(np.float16)))
    net.output(flow)
    model = net.model()
    sites = find_sites(model.graph, Selection(head=True)).sites
    linear = sites[0].linears[0].name
    decision = Decision({linear: np.eye(4)}, lambda rows: (rows + 1).astype(np.float64))
    seen, visit = recorder({sites[0].name: decision})
    x = feeds(3)[0]["x"].astype(np.float16)
    run_stages(cut(model, sites), [{"x": x}], visit, scratch=tmp_path)
    assert {rows.dtype for pairs in seen.values() for pair in pairs for rows in pair} == {np.dtype(np.float32)}
    np.testing.assert_allclose(seen[sites[1].name][0].rounded, x - 1.0, atol=2e-3)  # two roundings to float16


def test_rows_cannot_be_written_to(chain: Chain, tmp_path: Path) -> None:
    def visit(site: Site, batches: Batches) -> Decision:
        for rows in batches:
            rows.exact[:] = 0
        return Decision()

    with pytest.raises(ValueError, match="read-only"):
        run_stages(chain.stages, feeds(3), visit, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_sites_nothing_to_do(tmp_path: Path) -> None:
    run_stages((), feeds(1), recorder()[1], scratch=tmp_path)
