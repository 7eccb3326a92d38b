"""`python -m models` makes what it is told in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import __main__ as command
from models.recipes import RECIPES, Recipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three recipes that make one file each, and an empty cache."""
    for name in ("small-a", "small-b", "large"):
        monkeypatch.setitem(RECIPES, name, Recipe(lambda folder: folder.joinpath("one").touch(), name, ()))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("CATONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["models", *arguments])
    return command.main()


@pytest.mark.parametrize(
    ("names", "made"),
    [
        (["large"], {"large-1"}),
        (["large", "small-b"], {"large-1", "small-b-1"}),
        (["small-*"], {"small-a-1", "small-b-1"}),
    ],
)
def test_names_and_patterns(names: list[str], made: set[str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, *names) == 0
    assert {folder.name for folder in cache.iterdir()} == made


def test_what_is_there_is_only_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for remark in (r" (0 s)", ""):
        assert run(monkeypatch, "large") == 0
        assert capsys.readouterr().out == f"{cache / 'large-1'}{remark}\n"


def test_without_a_name_nothing_is_made(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)
    assert not cache.exists()


@pytest.mark.parametrize("name", ["medium", "medium-*"])
def test_what_matches_nothing(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, name) == 2
    assert f"there is no recipe called '{name}'" in capsys.readouterr().err


def test_one_folder_takes_one_recipe(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "small-*", "--out", str(tmp_path / "out"))
    assert run(monkeypatch, "large", "--out", str(tmp_path / "out")) == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["one"]
    assert not cache.exists()
