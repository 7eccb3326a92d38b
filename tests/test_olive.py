"""catonnx in Olive: `make test-olive` runs this where Olive is installed, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.small_models import language_feeds, run

olive = pytest.mark.skipif(find_spec("olive") is None, reason="Olive is not installed; make test-olive")

_QUIET = {"OLIVE_DISABLE_TELEMETRY": "1"}


def python(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | _QUIET | variables,
    )


def test_without_olive_the_command_says_so(tmp_path: Path) -> None:
    (tmp_path / "olive").mkdir()
    (tmp_path / "olive" / "__init__.py").write_text("raise ImportError('it is broken')")
    root = Path(__file__).resolve().parent.parent
    done = python("-m", "catonnx.olive", tmp_path / "p.json", PYTHONPATH=f"{tmp_path}{os.pathsep}{root}")
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr == "error: Olive cannot be imported: it is broken; pip install olive-ai requests\n"
    assert not (tmp_path / "p.json").exists()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("olive") / "package.json"
    done = python("-m", "catonnx.olive", path)
    assert done.returncode == 0, done.stderr
    return path


@olive
def test_the_package_configuration_has_olives_passes_and_ours(package: Path) -> None:
    from olive.package_config import OlivePackageConfig

    theirs = set(OlivePackageConfig.load_default_config().passes)
    both = OlivePackageConfig.model_validate(json.loads(package.read_text()))
    assert set(both.passes) == theirs | {"catonnx"}
    assert both.import_pass_module("CatOnnx").__name__ == "CatOnnx"


def workflow(folder: Path, package: Path, model: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one workflow in a folder, with the pass alone."""
    accelerators = [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]
    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "systems": {"here": {"type": "LocalSystem", "accelerators": accelerators}},
        "passes": {"cat": {"type": "CatOnnx", "samples": 2, "seq_len": 16, **options}},
        "target": "here",
        "host": "here",
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
    }
    (folder / "workflow.json").write_text(json.dumps(config))
    return python("-m", "olive", "run", "--config", folder / "workflow.json", "--package-config", package)


@olive
def test_a_workflow_optimizes(package: Path, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('scheme = "w4a16"\nlm_head = true\n')
    done = workflow(tmp_path, package, tiny_llama / "model.onnx", target="cpu", recipe_file=str(tmp_path / "r.toml"))
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "out" / "catonnx.json").read_text())["recipe"]
    assert (told["form"], told["scheme"], told["lm_head"], told["samples"]) == ("nbits", "w4a16", True, 2)
    assert run(tmp_path / "out" / "model.onnx", language_feeds(tiny_llama, batch=1))["logits"].ndim == 3


@olive
@pytest.mark.parametrize(
    ("options", "message"),
    [({"scheme": "w2"}, "w4a16"), ({"rounding": "gptq", "damping": 7}, "damping is 7")],
)
def test_what_no_recipe_says_ends_the_workflow(
    options: dict[str, Any], message: str, package: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    done = workflow(tmp_path, package, tiny_llama / "model.onnx", **options)
    assert message in done.stdout + done.stderr
    assert not (tmp_path / "out" / "model.onnx").exists()


@olive
@pytest.mark.parametrize(
    ("executes", "options", "provider"),
    [
        ("CPUExecutionProvider", {}, "cpu"),
        ("CUDAExecutionProvider", {}, "cuda"),
        ("CUDAExecutionProvider", {"provider": "cpu"}, "cpu"),
    ],
)
def test_the_accelerator_chooses_the_provider(
    executes: str, options: dict[str, Any], provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from olive.hardware.accelerator import AcceleratorSpec
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict

    from catonnx import olive as ours

    seen = []

    def optimize(_model: object, out: Path, recipe: Any, *, force: bool) -> None:
        assert force
        out.mkdir()
        (out / "model.onnx").write_bytes(b"")
        seen.append(recipe.provider)

    monkeypatch.setattr(ours, "optimize", optimize)
    (tmp_path / "m.onnx").write_bytes(b"")
    spec = AcceleratorSpec("gpu" if "CUDA" in executes else "cpu", executes)
    step = create_pass_from_dict(ours.CatOnnx, options, disable_search=True, accelerator_spec=spec)
    step.run(ONNXModelHandler(model_path=str(tmp_path / "m.onnx")), str(tmp_path / "out"))
    assert seen == [provider]
