"""Texts from the test data of gensim: news to calibrate on, Wikipedia to evaluate on, documents judged by people."""

from __future__ import annotations

import bz2
import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

DEVELOPMENT_SHARE = 0.6
"""Part of the Wikipedia characters to work with; the rest is for a final check by others: never write or use it."""

SHORTEST_PROSE = 80
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def write_news(file: Path) -> None:
    """Write the 300 stories of the Australian Broadcasting Corporation in the Lee corpus, one a line."""
    file.write_text(_test_data("lee_background.cor").read_text(encoding="latin-1"), encoding="utf-8")


def write_lee(folder: Path) -> None:
    """Write `documents.txt`, 50 short documents, one a line, and `similarities.txt`, how alike people find each two.

    The judgements, from 0 to 1, are 50 lines of 50 columns separated by tabs; only those above the diagonal are filled.
    Source: Lee, Pincombe and Welsh, An empirical evaluation of models of text document similarity, 2005.
    """
    documents = _test_data("lee.cor").read_text(encoding="latin-1")
    (folder / "documents.txt").write_text(documents.rstrip("\n") + "\n", encoding="utf-8")
    (folder / "similarities.txt").write_bytes(_test_data("similarities0-1.txt").read_bytes())


def write_wikipedia(file: Path) -> None:
    """Write the first 60 % of the prose of 100 English Wikipedia articles.

    A line is a paragraph, a blank line separates articles. Articles open with what is easy to predict: measure
    perplexity on rows spread over the whole file.
    """
    file.write_text(development_part(wikipedia_prose()), encoding="utf-8")


def wikipedia_prose() -> str:
    """Return the prose of all articles; only `development_part` of it may be used or kept."""
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki

    with bz2.open(_test_data(WIKIPEDIA), "rb") as dump:
        pages = extract_pages(dump, filter_namespaces=("0",))
        articles = [prose(filter_wiki(source)) for _, source, _ in pages if not is_redirect(source)]
    return "\n\n".join(filter(None, articles))


def is_redirect(source: str) -> bool:
    """Return whether the wiki source of a page only points to another page."""
    return source.lstrip().lower().startswith("#redirect")


def prose(article: str) -> str:
    """Return the lines that are paragraphs: not short, not an item of a list, and with a whole sentence at the end."""
    return "\n".join(_paragraphs(article.splitlines()))


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        text = re.sub("'{2,}", "", line).strip()  # the quotes that wiki markup puts around bold and italic words
        if len(text) > SHORTEST_PROSE and text[0] not in "*#:;|!{,." and text[-1] in '.!?")':
            yield text


def development_part(text: str) -> str:
    """Return the whole lines within the first 60 % of the characters of `text`."""
    end = text.rfind("\n", 0, int(DEVELOPMENT_SHARE * len(text)))
    return text[:end].rstrip("\n") + "\n"


def _test_data(name: str) -> Path:
    return Path(str(importlib.metadata.distribution("gensim").locate_file(f"gensim/test/test_data/{name}")))
