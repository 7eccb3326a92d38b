"""The doctor: what is there is found, what is not is missed, and what is broken is said to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from typer.testing import CliRunner

from catonnx import doctor
from catonnx.commands.app import app
from catonnx.errors import RuntimeUnavailableError
from catonnx.ops.place import BUILD
from catonnx.runtime.probe import why_not


def findings() -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine()}


def test_what_is_here_is_found() -> None:
    found = findings()
    assert found["provider cpu"].state == "ok"
    assert onnxruntime.__version__ in found["ONNX Runtime"].found
    assert found["numpy"].found == doctor.version("numpy")
    assert found["Python"].found.startswith(".".join(map(str, sys.version_info[:3])))
    assert found["torch"].state == "ok"
    assert (found["provider cuda"].state == "ok") == (not why_not("cuda"))


def test_what_is_missing_comes_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "torch" else "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CATONNX_OPS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = findings()
    assert (found["torch"].state, found["torch"].advice) == ("absent", 'pip install "catonnx[learned]"')
    assert (found["nvcc"].state, found["compiler"].state) == ("absent", "absent")
    assert "apt install g++" in found["compiler"].advice
    assert (found["operators' library"].state, found["operators' library"].advice) == ("absent", BUILD)
    assert found["ONNX Runtime"].state == "broken"  # both distributions of it
    assert "uninstall both" in found["ONNX Runtime"].advice


def test_a_library_that_works_names_its_kernels(ops_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATONNX_OPS", str(ops_library))
    monkeypatch.setenv("CATONNX_ISA", "portable")
    found = findings()["operators' library"]
    assert (found.state, found.found) == ("ok", f"{ops_library}, with kernels for portable")


@pytest.mark.parametrize("content", [None, "no library"])
def test_a_library_that_does_not_load_is_broken(
    content: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "library.so"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("CATONNX_OPS", str(path))
    found = findings()["operators' library"]
    assert found.state == "broken"
    assert found.advice
    assert found.advice not in found.found


def test_without_a_runtime_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeUnavailableError("ONNX Runtime cannot be imported", hint="pip install it")

    monkeypatch.setattr(doctor, "import_onnxruntime", missing)
    monkeypatch.setattr(doctor, "version", lambda _name: None)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 8
    assert "pip install it" in result.stdout
    assert "no model runs here" in result.stderr


def test_no_advice_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    exporting = {"transformers", "optimum", "optimum-onnx"}
    monkeypatch.setattr(doctor, "version", lambda name: None if name in exporting else "1")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.stdout.count('pip install "catonnx[export]"') == 1
    assert result.stdout.count("as for transformers") == 2
    assert {found.advice for found in doctor.examine() if found.what in exporting} == {'pip install "catonnx[export]"'}


@pytest.mark.parametrize("left", ["", "raise RuntimeError('it is broken')", "raise ImportError('a part is missing')"])
def test_what_an_uninstallation_left_is_no_runtime(left: str, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(left)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "catonnx", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
    )
    assert done.returncode == 8, done.stderr
    assert "no model runs here" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_provider_that_computes_nonsense_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def run(self, *_: object) -> list[object]:
            import numpy as np

            return [np.array([5.0])]

    monkeypatch.setattr("catonnx.runtime.probe.open_session", lambda *_, **__: Session())
    assert why_not("cpu") == "2 + 2 is [5.0] there"


def test_json_is_the_whole_output() -> None:
    done = subprocess.run([sys.executable, "-m", "catonnx", "doctor", "--json", "-"], capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert told["works"]
    assert {"what", "state", "found", "advice"} == told["findings"][0].keys()
    assert {finding["state"] for finding in told["findings"]} <= {"ok", "absent", "broken"}
