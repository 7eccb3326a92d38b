"""`tools.fuzz`: a bounded run of it over fixed seeds, and whether it finds and shrinks what was planted.

Whole campaigns: `python -m tools.fuzz graphs --count 20000`, `python -m tools.fuzz files --count 5000`.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import catonnx
from catonnx.errors import ModelError
from catonnx.graph.writers import Writer, fold
from catonnx.passes import absorb
from catonnx.runtime import verify
from models.net import Net
from tools.child import ROOT
from tools.fuzz import campaign, cases, files, graphs, shrink
from tools.fuzz.keep import keep_graph
from tools.fuzz.mutations import MUTATIONS

GRAPHS = range(7_000_000, 7_000_050)
FILES = range(7_000_000, 7_000_070)


def test_random_graphs_keep_their_function(tmp_path: Path) -> None:
    outcomes = {seed: graphs.judge(cases.draw(seed), tmp_path) for seed in GRAPHS}
    failed = {seed: outcome for seed, outcome in outcomes.items() if outcome.failed}
    assert failed == {}
    kinds = collections.Counter(outcome.kind for outcome in outcomes.values())
    assert kinds["ok, compared in float"] >= 15
    assert kinds["ok"] >= 6
    assert sum(kinds[kind] for kind in campaign.SAYS_NOTHING) <= 15
    assert list(tmp_path.iterdir()) == []


def test_broken_files_are_refused_or_work(tmp_path: Path) -> None:
    outcomes = {seed: files.judge_seed(seed, tmp_path) for seed in FILES}
    failed = {seed: outcome for seed, outcome in outcomes.items() if outcome.failed}
    assert failed == {}
    kinds = collections.Counter(outcome.kind for outcome in outcomes.values())
    assert kinds["refused with 3"] >= 30
    assert kinds["ok, optimize"] >= 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name, mutation in MUTATIONS.items() if mutation.refused])
def test_what_must_be_refused_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MUTATIONS", {name: MUTATIONS[name]})
    seen = []
    for seed in range(2):
        outcome = files.judge_seed(seed, tmp_path)
        assert not outcome.failed, outcome
        seen.append(outcome.kind)
    assert not any(kind.startswith("ok") for kind in seen)


def test_a_seed_draws_the_same_case_again() -> None:
    first, second, other = cases.draw(3), cases.draw(3), cases.draw(4)
    assert first.model == second.model
    assert first.wishes == second.wishes
    assert first.model != other.model


def test_the_generator_draws_what_it_promises() -> None:
    drawn = [cases.draw(seed) for seed in range(150)]
    operators = {node.op_type for case in drawn for node in case.model.graph.node}
    assert {"If", "Loop", "Einsum", "Gemm", "Concat", "Split", "Gather", "GroupQueryAttention", "Where"} <= operators
    assert {entry.version for case in drawn for entry in case.model.opset_import if not entry.domain} >= set(
        range(13, 22)
    )
    assert any(case.half for case in drawn)
    assert any(case.external for case in drawn)
    assert any(case.model.functions for case in drawn)
    assert any(graphs.is_empty(feeds) for case in drawn for feeds in case.feeds)
    names = [node.name for case in drawn for node in case.model.graph.node]
    assert {"", "same"} <= set(names)
    assert any(name.endswith("_cat") for name in names)
    assert any(not name.isprintable() for name in names)
    assert {case.wishes["scheme"] for case in drawn} == {"float", "w4a16", "w4a8", "w4a4"}


def _plant(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(writer: Writer, *rest: Any) -> np.ndarray:
        return fold(writer, *rest) * 1.01

    monkeypatch.setattr(absorb, "fold", wrong)


def _first_failure(folder: Path, most_nodes: int = 80) -> tuple[cases.Case, graphs.Outcome]:
    for seed in range(200):
        case = cases.draw(seed)
        if len(case.model.graph.node) > most_nodes:
            continue
        outcome = graphs.judge(case, folder)
        if outcome.failed:
            return case, outcome
    raise AssertionError("nothing was found")


def test_a_wrong_fold_is_found_and_made_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(monkeypatch)
    case, outcome = _first_failure(tmp_path)
    assert outcome.kind == "FAILED VerificationError the transformed model differs from the source"
    smaller = keep_graph(tmp_path / "kept", case, outcome, tmp_path, seconds=20)
    assert graphs.judge(smaller, tmp_path).kind == outcome.kind
    assert len(smaller.model.graph.node) < len(case.model.graph.node) / 2
    kept = tmp_path / "kept" / "shrunk"
    assert onnx.load(kept / "model" / "model.onnx") == smaller.model
    assert json.loads((kept / "recipe.json").read_text(encoding="utf-8")) == graphs.recipe_of(smaller)
    assert outcome.kind in (kept / "outcome.txt").read_text(encoding="utf-8")


def test_it_is_found_without_our_own_verification_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(monkeypatch)
    monkeypatch.setattr(verify, "TOLERANCE", dict.fromkeys(verify.TOLERANCE, np.inf))
    _, outcome = _first_failure(tmp_path)
    assert outcome.kind == "FAILED another function"


def test_other_exceptions_and_files_that_are_left_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for seed in range(100) if graphs.judge(case := cases.draw(seed), tmp_path).kind == "ok")

    def crash(*_: object, **__: object) -> None:
        raise IndexError("out of range")

    def litter(model: Path, out: Path, *_: object) -> None:
        (model / "litter").touch()
        raise ModelError("refused")

    for wrong, kind in ((crash, "FAILED IndexError in nowhere of ours"), (litter, "FAILED files left or changed")):
        monkeypatch.setattr(catonnx, "optimize", wrong)
        assert graphs.judge(case, tmp_path).kind == kind


def test_sources_that_multiply_noise_are_kept_apart(tmp_path: Path) -> None:
    net = Net(0)
    x = net.input("x", ["rows", 4])
    hidden = net.op("MatMul", x, net.normal(4, 4))
    far = net.op("Add", hidden, net.constant(np.full(4, 1e4, np.float32)))
    net.output(net.op("MatMul", net.op("Sub", far, net.constant(np.full(4, 1e4, np.float32))), net.normal(4, 4)))
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
    case = cases.Case(net.proto(), (feeds,), (feeds,), {}, {"scheme": "float", "lm_head": True})
    assert graphs.judge(case, tmp_path).kind == graphs.ILL_CONDITIONED


def test_a_shrunk_case_is_a_failing_one() -> None:
    case = cases.draw(11)
    wanted = next(node.op_type for node in case.model.graph.node if node.op_type == "MatMul")
    smaller = shrink.shrink(case, lambda other: any(node.op_type == wanted for node in other.model.graph.node), 20)
    assert [node.op_type for node in smaller.model.graph.node if node.op_type == wanted] == [wanted]
    assert set(smaller.wishes) <= set(shrink.KEPT_WISHES)
    assert len(smaller.feeds) == 1


DYING = """
import json, os, sys, time
first, count = int(sys.argv[2]), int(sys.argv[3])
for seed in range(first, first + count):
    print(json.dumps({"seed": seed}), flush=True)
    if seed == 3:
        os.abort()
    if seed == 5:
        time.sleep(60)
    print(json.dumps({"seed": seed, "seconds": 0, "kind": "ok", "error": 1e-6 * seed}), flush=True)
"""


def test_a_process_that_dies_or_hangs_is_a_failure_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying.py").write_text(DYING, encoding="utf-8")
    monkeypatch.setattr(campaign, "WORKER", (sys.executable, str(tmp_path / "dying.py")))
    result = tmp_path / "fuzz.json"
    result.write_text('{"files": {"tried": 1}}', encoding="utf-8")
    figures = campaign.Campaign("graphs", seed=0, count=9, limit=3, result=result).run()
    assert figures["outcomes"] == {
        "ok": 7,
        "FAILED process ended with code -6": 1,
        "FAILED no end within 3 s": 1,
    }
    assert [failure["seed"] for failure in figures["failures"]] == [3, 5]
    assert (figures["tried"], figures["failed"], figures["done"]) == (9, 2, True)
    assert figures["worst_relative_l2"] == {"value": 8e-6, "seed": 8}
    written = json.loads(result.read_text(encoding="utf-8"))
    assert written["graphs"]["tried"] == 9
    assert written["files"] == {"tried": 1}


BREAKING = """
import json, sys
first, count = int(sys.argv[2]), int(sys.argv[3])
for seed in range(first, first + count):
    mutation = ["rewired", "rewired + names", "names + names + length"][seed % 3]
    print(json.dumps({"seed": seed, "seconds": 0, "kind": "refused with 3", "mutation": mutation}), flush=True)
"""


def test_mutations_are_counted_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaking.py").write_text(BREAKING, encoding="utf-8")
    monkeypatch.setattr(campaign, "WORKER", (sys.executable, str(tmp_path / "breaking.py")))
    figures = campaign.Campaign("files", seed=0, count=6).run()
    assert figures["mutations"] == {"length": 2, "names": 6, "rewired": 4}
    assert figures["mutations_in_one_file"] == {"1": 2, "2": 2, "3": 2}


def test_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.fuzz", "graphs", "--count", "3", "--json", str(tmp_path / "fuzz.json")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["tried"] == 3
