"""The project's files agree with each other, and importing catonnx costs nothing that is not there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import catonnx
from models.cache import ROOT as MODELS_ROOT
from models.cache import cached_folder
from models.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
LARGEST_FILE = 1_000_000
"""Bytes. Models and texts are made on the spot and cached outside git."""

BLOCKED = """
import importlib, importlib.abc, pkgutil, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def python(script: str, folder: Path, *blocked: str) -> subprocess.CompletedProcess[str]:
    """Run `script` in a fresh interpreter where the packages `blocked` cannot be imported."""
    command = [sys.executable, "-W", "error", "-c", BLOCKED.format(blocked=set(blocked)) + script]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_one_version_everywhere() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    newest = re.search(r"^## (\S+)", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert newest is not None
    assert project["version"] == catonnx.__version__ == newest[1]


def test_every_module_that_the_readme_runs_is_there() -> None:
    named = set(re.findall(r"python -m ([a-z_.]+[a-z])", read("README.md") + read("CHANGELOG.md")))
    assert {"tools.bench_runtime", "tools.fuzz", "catonnx.ops", "models"} <= named
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


def test_readme_names_commands_that_make_knows() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", read("README.md"), flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_makefile_knows_where_the_models_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CATONNX_CACHE", raising=False)
    named = dict(re.findall(r"^[A-Z0-9]+ := \$\(CACHE\)/(([a-z0-9]+)-\S+)$", read("Makefile"), flags=re.MULTILINE))
    assert set(named.values()) == {"smollm2", "news", "wikipedia"}
    for place, recipe in named.items():
        file = RECIPES[recipe].file
        folder = cached_folder(recipe).relative_to(MODELS_ROOT / ".cache" / "models")
        assert place == str(folder / file if file else folder)


def test_ci_runs_the_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "exec make test"
    assert script.stat().st_mode & 0o111, "git add --chmod=+x .ci/run"


def test_optimizing_needs_no_torch() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    chosen = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    assert not {re.sub(r"[^\w-].*", "", line) for line in chosen} & {
        "torch",
        "transformers",
        "optimum",
        "onnxruntime-gpu",
    }


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_no_large_file_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert ROOT / "pyproject.toml" in files
    large = [file for file in files if file.is_file() and file.stat().st_size > LARGEST_FILE]
    assert large == []


def test_every_module_loads_without_onnxruntime_and_torch(tmp_path: Path) -> None:
    script = """
import catonnx
names = [found.name for found in pkgutil.walk_packages(catonnx.__path__, "catonnx.", onerror=lambda _: None)]
for name in names:
    if not name.endswith("__main__") and not name.startswith(("catonnx.learned", "catonnx.olive")):
        importlib.import_module(name)
try:
    import catonnx.learned
except catonnx.errors.RuntimeUnavailableError as error:
    assert "catonnx[learned]" in str(error)
else:
    raise AssertionError("the learned transforms load without torch")
print(*names, sep="\\n")
"""
    run = python(script, tmp_path, "onnxruntime", "torch", "transformers", "optimum", "gensim")
    assert run.returncode == 0, run.stderr
    assert {"catonnx.commands.app", "catonnx.pipeline", "catonnx.passes.absorb", "catonnx.runtime.sessions"} <= {
        *run.stdout.split()
    }


def test_importing_catonnx_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = "{'onnx', 'onnx_ir', 'onnxscript', 'scipy', 'numpy', 'tokenizers', 'typer', 'rich'}"
    run = python(f"import catonnx; print(sorted({heavy} & set(sys.modules)))", tmp_path, "onnxruntime", "torch")
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


def test_the_blocker_blocks(tmp_path: Path) -> None:
    run = python("import onnxruntime", tmp_path, "onnxruntime")
    assert run.returncode != 0
    assert "blocked: onnxruntime" in run.stderr
