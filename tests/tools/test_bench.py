"""The end-to-end benchmark still runs, on models too small for its figures to mean anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tools import bench_end_to_end
from tools.bench_encoder import cosine
from tools.child import ChildError, run
from tools.stepping import median_ratio

STEPS = ["time", "quality", "speed", "minilm"]


def test_every_step_runs(
    tiny_llama: Path, tiny_bert: Path, news: Path, wikipedia: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "end_to_end.json"
    models = ["--model", str(tiny_llama), "--encoder", str(tiny_bert), "--cache", str(tmp_path / "cache")]
    bench_end_to_end.main(["--quick", *models, "--out", str(out)])
    printed = capsys.readouterr().out
    data = json.loads(out.read_text(encoding="utf-8"))
    broken = [row for row in data["rows"] if row["failed"]]
    assert broken == []
    assert list(dict.fromkeys(row["group"] for row in data["rows"])) == STEPS
    rows = {row["what"]: row for row in data["rows"]}
    # What must hold for any model, however small; the bounds on figures are for the real one.
    for what in (
        "float equivalence after transforms, relative L2 of logits",
        "linears that run as MatMulNBits",
        "sites with the aligning factor absorbed",
        "o_proj sites with a block per head absorbed",
    ):
        assert rows[what]["met"], rows[what]
        assert what in printed
    assert rows["linears that run as MatMulNBits"]["values"]["linears"] == 21
    assert data["machine"]["cores"] >= 1
    assert data["quick"]

    # A second run takes what the first one made.
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("*/model.onnx")}
    bench_end_to_end.main(["--quick", *models, "--out", str(out), "--reuse", "--only", "speed"])
    assert stamps == {file: file.stat().st_mtime_ns for file in stamps}


def test_a_failed_job_is_told(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match=r"optimize failed: .*nothing"):
        run("optimize", {"model": str(tmp_path / "nothing"), "out": str(tmp_path / "out"), "recipe": {}})


def test_cosine_and_ratio() -> None:
    np.testing.assert_allclose(cosine(np.eye(2), np.array([[0.6, 0.8], [1.0, 0.0]])), [0.6, 0.0])
    assert median_ratio([2.0, 8.0, 9.0], [1.0, 2.0, 9.0]) == 2.0
