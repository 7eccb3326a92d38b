"""The wheel and the sdist hold what they should, and what they install runs."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import catonnx

ROOT = Path(__file__).resolve().parent.parent
NAME = f"catonnx-{catonnx.__version__}"
LEFT_BEHIND = shutil.ignore_patterns(".*", "build", "dist", "demo", "*.egg-info", "__pycache__")


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(kind: str, project: Path, out: Path) -> Path:
    """Build the wheel or the sdist of `project` in `out`, with the setuptools that is installed: nothing is fetched."""
    run(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, project, folder=out.parent)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the repository, its symlink kept: building leaves folders behind."""
    copy = tmp_path_factory.mktemp("tree") / "catonnx"
    return Path(shutil.copytree(ROOT, copy, symlinks=True, ignore=LEFT_BEHIND))


@pytest.fixture(scope="module")
def sdist(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", project, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)
    return folder / NAME


@pytest.fixture(scope="module")
def wheels(project: Path, unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build the wheel of the repository, and that of the sdist, which is what pip installs of an sdist."""
    return {
        name: build("wheel", origin, tmp_path_factory.mktemp("wheel"))
        for name, origin in (("repository", project), ("sdist", unpacked))
    }


def modules(project: Path) -> set[str]:
    """Return the places in a wheel of all modules of `project`."""
    own = {str(file.relative_to(project)) for file in (project / "catonnx").rglob("*.py")}
    plugin = "catonnx/hub/register/register_catonnx.py"
    own = own - {plugin} | {"optimum/commands/register/register_catonnx.py"}
    return own | {f"catonnx/{file.relative_to(project)}" for file in (project / "passes").rglob("*.py")}


def sources(project: Path) -> set[str]:
    """Return the places of the operators' C++ sources, and of the headers that they need with their licence."""
    folder = project / "catonnx" / "ops" / "source"
    return {str(file.relative_to(project)) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("origin", ["repository", "sdist"])
def test_wheel_holds_all_modules_and_nothing_else(origin: str, wheels: dict[str, Path], project: Path) -> None:
    with zipfile.ZipFile(wheels[origin]) as archive:
        names = set(archive.namelist())
    information = {name for name in names if name.startswith(f"{NAME}.dist-info/")}
    data = {"catonnx/py.typed", "catonnx/reporting/page.css"}
    assert names - information == modules(project) | sources(project) | data
    headers = "catonnx/ops/source/onnxruntime"
    assert {"catonnx/ops/source/library.cpp", f"{headers}/onnxruntime_c_api.h", f"{headers}/LICENSE"} <= names
    assert {"catonnx/passes/absorb.py", "catonnx/passes/__init__.py"} <= names
    assert f"{NAME}.dist-info/licenses/LICENSE" in information


def test_sdist_holds_the_passes_once(sdist: Path, project: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = set(archive.getnames())
        # Windows and zip-based tools turn a symlink into something else; the sdist must not need it.
        assert not [member.name for member in archive if member.issym() or member.islnk()]
    assert {f"{NAME}/passes/{file.name}" for file in (project / "passes").glob("*.py")} <= names
    assert not [name for name in names if name.startswith(f"{NAME}/catonnx/passes")]
    single = ("LICENSE", "README.md", "pyproject.toml", "catonnx/py.typed", "catonnx/reporting/page.css")
    assert {f"{NAME}/{name}" for name in single} <= names
    assert {f"{NAME}/{name}" for name in sources(project)} <= names


@pytest.mark.parametrize("origin", ["repository", "sdist"])
def test_what_is_installed_runs(origin: str, wheels: dict[str, Path], tmp_path: Path) -> None:
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", wheels[origin], folder=elsewhere)
    site = next((environment / "lib").glob("python*/site-packages"))
    # The dependencies are those of this environment: a path that is only searched, so its .pth files, and with them an
    # editable catonnx, do not count.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    home = run(python, "-c", "import catonnx; print(catonnx.__file__)", folder=elsewhere)
    assert Path(home.strip()) == site / "catonnx" / "__init__.py"
    assert catonnx.__version__ in run(environment / "bin" / "catonnx", "--version", folder=elsewhere)
    where = run(python, "-c", "import catonnx.passes.absorb as a; print(a.__name__, a.__file__)", folder=elsewhere)
    assert where.split() == ["catonnx.passes.absorb", str(site / "catonnx" / "passes" / "absorb.py")]
    if importlib.util.find_spec("optimum.commands") is not None:
        shown = run(python, "-m", "optimum.commands.optimum_cli", "--help", folder=elsewhere)
        assert "catonnx" in shown


def test_passes_refuse_their_own_name() -> None:
    run_alone = subprocess.run(
        [sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run_alone.returncode != 0
    assert "import that instead" in run_alone.stderr
