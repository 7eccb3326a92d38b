"""The quality benchmark runs, skips what is not there, goes on where it stopped; theory and measurement agree."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from catonnx import Recipe
from tools import bench_peers, bench_quality, orthogonal, theory
from tools.bench_findings import Finding, bounds, ratio, table
from tools.bench_methods import (
    BEST,
    CAT,
    CAT_128,
    CHANNEL,
    DEFAULT_PEER,
    EIGHT,
    GROUPS,
    HADAMARD,
    METHODS,
    TOKEN,
    WEIGHTS,
)
from tools.bench_workbench import Workbench
from tools.theory import Agreement

SMALL = ["--rows", "2", "--row-tokens", "48", "--samples", "4", "--seq-len", "64"]


def test_rows_are_measured_and_kept(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "quality.json"
    arguments = ["--model", str(tiny_llama), *SMALL, "--json", str(out)]
    named = [f"{WEIGHTS}/{CAT}", f"{WEIGHTS}/hadam*", f"{WEIGHTS}/{DEFAULT_PEER}"]
    bench_quality.main([*arguments, *(part for name in named for part in ("--only", name))])
    printed = capsys.readouterr().out
    data = json.loads(out.read_text(encoding="utf-8"))
    found = {item["key"]: item for item in data["findings"]}
    assert list(found) == [f"{WEIGHTS}/{name}" for name in (DEFAULT_PEER, HADAMARD, CAT)]
    assert all(item["perplexity"] > 1 and item["kl_nats"] > 0 and item["seconds"] > 0 for item in found.values())
    assert not any(item["failed"] or item["skipped"] for item in found.values())
    assert found[f"{WEIGHTS}/{CAT}"]["sqnr_db"] > found[f"{WEIGHTS}/{HADAMARD}"]["sqnr_db"] + 6  # measured: 23 and 2
    assert found[f"{WEIGHTS}/{CAT}"]["kl_nats"] < found[f"{WEIGHTS}/{HADAMARD}"]["kl_nats"]
    assert 0 < found[f"{WEIGHTS}/{CAT}"]["overhead"] < 0.2
    assert found[f"{WEIGHTS}/{CAT}"]["details"]["factors"]["absorbed"] == {"scale": 9, "blocks 16": 3}
    assert found[f"{WEIGHTS}/{DEFAULT_PEER}"]["note"].startswith("onnxruntime 1.")
    assert "hadamard" in printed
    assert len(data["rows"]) >= 6

    bench_quality.main(["--show", "--json", str(out)])
    assert capsys.readouterr().out.strip() in printed

    # Rows of the file stay, and only the row that is named is measured again.
    bench_quality.main([*arguments, "--only", f"{WEIGHTS}/none"])
    kept = {item["key"]: item for item in json.loads(out.read_text(encoding="utf-8"))["findings"]}
    assert {key: item for key, item in kept.items() if key in found} == found
    assert f"{WEIGHTS}/none" in kept
    bench_quality.main([*arguments, "--rows", "1", "--only", f"{WEIGHTS}/none"])
    assert [item["key"] for item in json.loads(out.read_text(encoding="utf-8"))["findings"]] == [f"{WEIGHTS}/none"]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    quick = [method for method in METHODS if method.quick]
    settings = bench_quality.Settings("m", 4, 48, 4, 64)
    file = tmp_path / "quality.json"
    findings = {method.key: finding(method.key, 0.1) for method in quick[1:]}
    bench_quality._write(file, {"settings": dataclasses.asdict(settings)}, findings)
    assert bench_quality._kept(file, settings) == findings
    assert bench_quality._kept(file, dataclasses.replace(settings, rows=2)) == {}
    assert bench_quality._chosen(None, True) == quick


def test_every_row_is_a_recipe_or_a_peer() -> None:
    keys = [method.key for method in METHODS]
    assert len(set(keys)) == len(keys)
    for method in METHODS:
        assert method.peer in bench_peers.PEERS if method.peer else Recipe(**method.wishes).rounds
    for key in (f"{TOKEN}/{CAT_128}", f"{TOKEN}/{BEST}", f"{GROUPS}/{CAT}", f"{EIGHT}/{CAT}", f"{CHANNEL}/{CAT}"):
        assert key in keys
    assert {HADAMARD, CAT_128, CAT} <= {method.name for method in METHODS if method.quick}


def test_names_are_listed_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_quality.main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{TOKEN}/none"
    assert bench_quality.main(["--only", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert bench_peers.round_with("onnxsim int4", "model", "out", [], "text") == {"missing": "onnxsim"}


def test_a_row_that_fails_lets_the_others_go_on(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = dataclasses.replace(METHODS[0], recipe={"transform": "none", "exclude": ("*",)})
    monkeypatch.setattr(bench_quality, "METHODS", (broken, *METHODS[1:]))
    arguments = ["--model", str(tiny_llama), *SMALL, "--json", str(tmp_path / "quality.json")]
    assert bench_quality.main([*arguments, "--only", broken.key, "--only", f"{EIGHT}/{CAT}"]) == 1
    data = json.loads((tmp_path / "quality.json").read_text(encoding="utf-8"))
    first, second = data["findings"]
    assert first["failed"]
    assert first["perplexity"] is None
    assert second["perplexity"] > 1
    assert "FAILED" in capsys.readouterr().out


def finding(key: str, gap: float, top1: float = 0.5) -> Finding:
    details = {"sites_in_8_bits": 8 if key.endswith(BEST) else 0}
    return Finding(key, "", perplexity=1.0, gap=gap, kl_nats=gap, top1=top1, details=details)


def test_bounds_are_read_off_the_rows() -> None:
    gaps = {
        f"{TOKEN}/{HADAMARD}": 1.0,
        f"{TOKEN}/{CAT_128}": 0.4,
        f"{TOKEN}/{BEST}": 0.3,
        f"{GROUPS}/{CAT}": 0.25,
        f"{GROUPS}/wush": 0.19,
        f"{WEIGHTS}/{DEFAULT_PEER}": 0.2,
        f"{WEIGHTS}/{CAT}": 0.06,
        f"{WEIGHTS}/cat + gptq": 0.04,
        f"{EIGHT}/{CAT}": 0.21,
        f"{CHANNEL}/{CAT}": 0.2,
    }
    findings = {key: finding(key, gap, 0.6 if key.endswith(BEST) else 0.5) for key, gap in gaps.items()}
    assert ratio(findings, f"{TOKEN}/{BEST}", f"{TOKEN}/{HADAMARD}") == 0.3
    assert [row.met for row in bounds(findings)] == [True, False, True, True, True, True, True]
    assert f"({GROUPS}/wush)" in bounds(findings)[3].measured
    assert [row.met for row in bounds({})] == [None] * 6
    assert "0.30" in table(findings)
    assert Finding.from_json(dataclasses.asdict(findings[f"{EIGHT}/{CAT}"])) == findings[f"{EIGHT}/{CAT}"]


def test_theory_agrees_with_measurement(tiny_llama: Path, news: Path, tmp_path: Path) -> None:
    bench = Workbench(tiny_llama, news, 8, 128, tmp_path)
    told = Agreement.of(theory.compare(bench, "cat"))
    assert told.sites == 12
    assert told.median <= 0.6  # dB; measured: 0.32
    assert abs(told.worst) <= 1.6  # measured: 1.00


def test_theory_writes_a_table(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "theory.json"
    arguments = ["--model", str(tiny_llama), "--samples", "2", "--seq-len", "64", "--json", str(out)]
    assert theory.main([*arguments, "--transform", "hadamard"]) == 0
    assert "hadamard" in capsys.readouterr().out
    data = json.loads(out.read_text(encoding="utf-8"))
    assert len(data["sites"]["hadamard"]) == data["agreement"]["hadamard"]["sites"] == 12


def test_orthogonal_factors_are_compared(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "orthogonal.json"
    arguments = ["--model", str(tiny_llama), "--samples", "4", "--seq-len", "64", "--json", str(out)]
    assert orthogonal.main(arguments) == 0
    assert "chosen" in capsys.readouterr().out
    for kinds in json.loads(out.read_text(encoding="utf-8"))["gains_db"].values():
        sites = [gains for own in kinds.values() for gains in own]
        assert len(sites) == 12
        assert all(gains["hadamard"] == 0 and gains["chosen"] > gains["none"] - 1 for gains in sites)
