"""Every command and every piece of code in the documentation runs, in the order in which it stands there.

Places are as a reader has them: model_dir is a model with a tokenizer, news.txt and file.txt are texts, recipe.toml is
the recipe of the same page. Calibration is cut short where the page leaves it open.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from catonnx.commands.app import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("catonnx/*.md"), *ROOT.glob("passes/*.md")])
SHORT = ("--samples", "2", "--seq-len", "16")
ELSEWHERE = ("make ", "pip ", "python -m ", "tools/", "optimum-cli ")
"""What other tests see to: targets of the Makefile, set-up, commands of tools."""

Block = tuple[str, str]


def blocks(page: Path) -> Iterator[Block]:
    """Yield language and text of each fenced block."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Return the commands of a block, without comments; nothing if it holds none."""
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    return lines if any(line.startswith(("catonnx ", *ELSEWHERE)) for line in lines) else []


@pytest.fixture
def place(tiny_llama: Path, ops_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CATONNX_OPS", str(ops_library))
    shutil.copytree(tiny_llama, tmp_path / "model_dir")
    for name in ("news.txt", "file.txt"):
        (tmp_path / name).write_text("The quick brown fox jumps over the lazy dog, again and again. " * 80)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_everything_on_the_page_runs(page: Path, place: Path) -> None:
    ran = 0
    for language, text in blocks(page):
        if language == "toml":
            (place / "recipe.toml").write_text(text, encoding="utf-8")
        elif language == "python":
            if "catonnx.optimize(" in text:
                shutil.rmtree(place / "out_dir", ignore_errors=True)
            exec(compile(text, str(page), "exec"), {"__name__": "documented"})
            ran += 1
        elif not language:
            for line in commands(text):
                ran += run(line, page)
    assert ran


def run(line: str, page: Path) -> bool:
    """Run one command of a page, if it is ours; refuse what nobody sees to."""
    words = shlex.split(line)
    if words[0] != "catonnx":
        assert line.startswith(ELSEWHERE), f"{page}: {line}"
        return False
    if "--tasks" in words:  # needs lm-eval: tests/judging/test_tasks.py
        return False
    if words[1] == "optimize":
        shutil.rmtree("out_dir", ignore_errors=True)
    short = SHORT if words[1] in ("optimize", "evaluate", "compare") and "--samples" not in words else ()
    result = CliRunner().invoke(app, [*words[1:], *short])
    assert result.exit_code == 0, f"{page}: {line}\n{result.output}"
    return True


def test_blocks_are_found() -> None:
    found = list(blocks(ROOT / "README.md"))
    assert any("catonnx optimize model_dir -o out_dir" in text for _, text in found)
    assert [language for language, _ in found if language == "python"]
