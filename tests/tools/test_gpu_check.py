"""The GPU check runs on the CPU too, where it tests itself; without a GPU it says so by an exit code of its own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catonnx.runtime.sessions import available_providers
from tools import gpu_check, gpu_checks, gpu_operators, operator_cases
from tools.llama_shape import LlamaShape, write_llama
from tools.placement import summed_up
from tools.tables import Row, attempt, markdown


@pytest.fixture(autouse=True)
def _library_of_the_tests(ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_operators, "built", lambda *_: ops_library)


ROOT = Path(__file__).resolve().parent.parent.parent


def test_all_checks_run_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = gpu_check.main(["--provider", "cpu", "--tiny", "--scratch", str(tmp_path), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert code in (0, 1), printed
    data = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))
    assert data["provider"] == "cpu"
    assert not any(row["failed"] for row in data["rows"])
    assert {"7 linears", "<= 2e-02"} <= {row["bound"] for row in data["rows"]}
    said = {row["what"]: row for row in data["rows"] if row["group"] == "operators"}
    assert {
        "numerics: QuantizedMatMul, float16",
        "numerics: KroneckerTransform, float32",
        "library built",
    } <= said.keys()
    assert "QuantizedMatMul 64 x 48, groups of 32, M = 4" in said
    assert markdown([Row("x", "y", "z")]).splitlines()[0].split("|")[2].strip() == "what"
    groups = [row["group"] for row in data["rows"]]
    assert groups.count("tiny: tokens/s") == 6  # fp16, int4, int8 and three of ours
    assert {"tiny: decode 1", "tiny: decode 2", "tiny: prefill"} <= set(groups)
    assert "op w4a8, scale + hadamard over fp16" in (tmp_path / "gpu_check.md").read_text(encoding="utf-8")
    # Bounds hold for any model, but for those on bytes: a tiny one is hardly more than its graph.
    assert {row["group"] for row in data["rows"] if row["met"] is False} <= {"tiny: size", "tiny: memory"}
    narrowed = [row for row in data["rows"] if row["what"].startswith("float32 to float16")]
    assert [row["met"] for row in narrowed] == [True, True]
    assert "sums and norms" in narrowed[0]["measured"]
    errors = {row["what"]: row["values"]["relative_l2"] for row in data["rows"] if "cpu against cpu" in row["what"]}
    assert len(errors) == 4
    assert 0 < errors["cpu against cpu: op w4a8, scale + hadamard"] < 0.1  # kernels against functions


@pytest.mark.skipif("cuda" in available_providers(), reason="there may be a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [str(ROOT / "tools" / "gpu_check"), "--out", str(tmp_path)]
    run = subprocess.run(
        command, cwd=tmp_path, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert run.returncode == gpu_check.NO_DEVICE == 77, run.stderr
    assert run.stdout.startswith("no GPU check: ")
    assert len(run.stdout.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_failed_check_lets_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> list[Row]:
        raise RuntimeError("no kernel\nat all")

    monkeypatch.setattr(gpu_checks, "fusion", broken)
    monkeypatch.setattr(gpu_check, "TINY", dataclasses.replace(gpu_check.TINY, versions=("qdq w4a16, none",)))
    arguments = ["--provider", "cpu", "--tiny", "--scratch", str(tmp_path), "--out", str(tmp_path)]
    assert gpu_check.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "RuntimeError: no kernel" in printed
    assert "tiny: tokens/s" in printed


def test_nothing_begins_after_the_deadline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--provider", "cpu", "--tiny", "--seconds", "0", "--scratch", str(tmp_path), "--out", str(tmp_path)]
    assert gpu_check.main(arguments) == 1
    assert capsys.readouterr().out.count("not begun") == 5


def test_a_node_on_the_wrong_provider_is_found() -> None:
    def event(name: str, kind: str, provider: str, shape: dict[str, list[int]]) -> dict[str, Any]:
        arguments = {"op_name": kind, "provider": f"{provider}ExecutionProvider", "output_type_shape": [shape]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "args": arguments}

    events: list[dict[str, Any]] = [
        event("a", "MatMul", "CUDA", {"float16": [1, 8]}),
        event("b", "Shape", "CPU", {"int64": [2]}),
        event("c", "Softmax", "CPU", {"float16": [1, 8]}),
        event("d", "MemcpyToHost", "CUDA", {"float16": [1, 8]}),
        {"cat": "Session", "name": "model_run"},
    ]
    found = summed_up(events, "CUDAExecutionProvider")
    assert found.nodes == {"CUDAExecutionProvider": 2, "CPUExecutionProvider": 2}
    assert found.strangers == ("Softmax c",)
    assert found.copies == 1


def test_a_failure_becomes_a_row() -> None:
    rows = attempt("group", "what", lambda: [Row("group", "what", str(1 / 0))])
    assert rows == [Row("group", "what", "ZeroDivisionError: division by zero", failed=True)]
    assert rows[0].verdict == "FAILED"


def test_the_same_seed_writes_the_same_model(tmp_path: Path) -> None:
    shape = LlamaShape(layers=1, width=64, heads=4, kv_heads=2, intermediate=96, vocabulary=64, positions=32)
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        path = write_llama(shape, tmp_path / name)
        written.append(np.fromfile(path.with_name("model.onnx_data"), np.uint8))
    np.testing.assert_array_equal(written[0], written[1])
    assert written[0].size > 2 * shape.linear_weights


@pytest.mark.parametrize(("code", "met"), [(0, True), (9, False)])
def test_what_compute_sanitizer_finds_is_a_missed_bound(
    code: int, met: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "compute-sanitizer"
    script.write_text(f"#!/bin/sh\necho $2 watched $6 $7 $8\nexit {code}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    rows = gpu_operators.races(Path("library.so"))
    assert [row.met for row in rows] == [met, met]
    assert [row.measured for row in rows] == [
        f"{tool} watched -m tools.gpu_operators library.so" for tool in ("memcheck", "racecheck")
    ]


def test_the_cases_alone_tell_what_is_wrong(ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of one result changed is an error larger than what roundings allow."""
    cases = [case for case in operator_cases.draw_cases(ops_library, few=True) if case.op != "DynamicQuantize"]
    assert {case.op for case in cases} >= {"SharedTransform", "BlockTransform", "KroneckerTransform", "QuantizedMatMul"}
    assert all(row.met for row in gpu_operators.numerics(ops_library, "cpu", cases))
    right = operator_cases.error_of

    def changed(case: operator_cases.Case, results: list[np.ndarray]) -> float:
        results[0].flat[-1] += np.abs(results[0]).max() / 100
        return right(case, results)

    monkeypatch.setattr(gpu_operators, "error_of", changed)
    assert not any(row.met for row in gpu_operators.numerics(ops_library, "cpu", cases))
