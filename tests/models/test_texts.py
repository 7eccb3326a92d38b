"""The texts are prose, and of Wikipedia no more than the first 60 % is ever written."""

from __future__ import annotations

from pathlib import Path

import pytest

import models
from models.texts import development_part, is_redirect, prose, wikipedia_prose

SENTENCE = "Anarchism is a political philosophy that advocates self-governed societies based on voluntary institutions."


@pytest.mark.parametrize("lines", [3, 10, 1000])
def test_development_part_is_whole_lines_within_60_percent(lines: int) -> None:
    text = "\n".join(f"{number} {SENTENCE}" for number in range(lines))
    part = development_part(text)
    assert text.startswith(part)
    assert part.endswith(".\n")
    assert 0.6 * len(text) - len(SENTENCE) - 10 < len(part) <= 0.6 * len(text)


def test_prose_drops_what_is_none() -> None:
    article = "\n".join(["'''Short'''.", f"* {SENTENCE}", f"'''A''' {SENTENCE}", SENTENCE[:-1] + ":", SENTENCE])
    assert prose(article) == f"A {SENTENCE}\n{SENTENCE}"


def test_redirects() -> None:
    assert is_redirect(" #REDIRECT [[Anarchism]]")
    assert not is_redirect("Redirects are pages.")


def test_wikipedia_file_is_the_first_60_percent(wikipedia: Path) -> None:
    whole = wikipedia_prose()
    written = wikipedia.read_text(encoding="utf-8")
    assert wikipedia.name == "wikipedia-dev.txt"
    assert [file.name for file in wikipedia.parent.iterdir()] == ["wikipedia-dev.txt"]
    assert 0.59 * len(whole) < len(written) <= 0.6 * len(whole)
    assert whole.startswith(written)
    assert 2_400_000 < len(whole) < 2_600_000


def test_news_is_one_story_a_line(news: Path) -> None:
    stories = news.read_text(encoding="utf-8").splitlines()
    assert len(stories) == 300
    assert min(map(len, stories)) > 100


def test_judgements_are_of_all_pairs() -> None:
    lee = models.path("lee")
    rows = [line.split("\t") for line in (lee / "similarities.txt").read_text().splitlines()]
    assert len((lee / "documents.txt").read_text(encoding="utf-8").splitlines()) == len(rows) == 50
    assert {len(row) for row in rows} == {50}
    assert all(0 < float(rows[i][j]) <= 1 for i in range(50) for j in range(i + 1, 50))
