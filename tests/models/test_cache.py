"""What is made is whole or absent, made once, and refused with advice when it cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

import models
from catonnx.errors import OutputError, UsageError
from models.cache import MissingPackageError, RecipeError, build, cached_folder
from models.recipes import RECIPES, Recipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CATONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_two(folder: Path) -> None:
    (folder / "one").write_text("1")
    (folder / "two").write_text("2")


def fail_halfway(folder: Path) -> None:
    (folder / "one").write_text("1")
    raise ValueError("halfway")


def test_the_version_is_in_the_key(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "pair", Recipe(write_two, "two files", distributions=(), version="7"))
    build("pair", cached_folder("pair"))
    assert cached_folder("pair") == cache / "pair-7"
    assert sorted(file.name for file in models.path("pair").iterdir()) == ["one", "two"]


def test_a_file_recipe_returns_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "pair", Recipe(write_two, "two files", distributions=(), file="two"))
    build("pair", cached_folder("pair"))
    assert models.path("pair").read_text() == "2"


def test_what_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "half", Recipe(fail_halfway, "half of it", distributions=()))
    with pytest.raises(ValueError, match="halfway"):
        build("half", cached_folder("half"))
    assert list(cache.iterdir()) == []


def test_a_filled_folder_is_not_touched(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "pair", Recipe(write_two, "two files", distributions=()))
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(OutputError, match="there already"):
        build("pair", tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


def test_losing_a_race_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_while_another_does(folder: Path) -> None:
        write_two(folder)
        winner = cached_folder("pair")
        winner.mkdir(parents=True)
        write_two(winner)

    monkeypatch.setitem(RECIPES, "pair", Recipe(make_while_another_does, "two files", distributions=()))
    build("pair", cached_folder("pair"))
    assert [folder.name for folder in cached_folder("pair").parent.iterdir()] == ["pair-1"]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "pair", Recipe(write_two, "two files", distributions=("numpy", "no-such-package")))
    with pytest.raises(MissingPackageError, match=r"not installed: no-such-package; run pip install .*\[demo\]"):
        models.path("pair")


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(UsageError, match="no recipe called 'llama'; choose one of tiny-llama, "):
        models.path("llama")


def test_a_failure_in_the_other_process_is_carried_over(monkeypatch: pytest.MonkeyPatch) -> None:
    # The other process does not know this recipe.
    monkeypatch.setitem(RECIPES, "pair", Recipe(write_two, "two files", distributions=()))
    with pytest.raises(RecipeError, match="no recipe called 'pair'"):
        models.path("pair")
