"""Text becomes rows that begin as the model's texts begin, spread over the whole file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from catonnx.errors import CalibrationError
from catonnx.runtime.text import TokenStream, configured_bos, configured_ends, pack_text, passages, read_text

Folder = Callable[..., Path]


def test_a_decoders_rows_begin_with_the_configured_bos(tokenizer_folder: Folder) -> None:
    stream = TokenStream.load(tokenizer_folder({"bos_token_id": 3}, special=False))
    assert (stream.prefix, stream.suffix) == ((3,), ())
    rows = pack_text("a b c d e f g h a", stream, seq_len=3, samples=10)
    assert rows.dtype == np.int64
    assert rows.tolist() == [[3, 4, 5], [3, 6, 7], [3, 8, 9], [3, 10, 11]]


def test_an_encoders_rows_are_wrapped(tokenizer_folder: Folder) -> None:
    stream = TokenStream.load(tokenizer_folder(encoder=True))
    rows = pack_text("a b c d e f g h", stream, seq_len=6, samples=10)
    assert rows.tolist() == [[1, 4, 5, 6, 7, 2], [1, 8, 9, 10, 11, 2]]


def test_cls_and_sep_count_without_a_template(tokenizer_folder: Folder) -> None:
    stream = TokenStream.load(tokenizer_folder())
    assert (stream.prefix, stream.suffix) == ((1,), (2,))


def test_a_bos_in_generation_config_and_one_by_hand(tokenizer_folder: Folder) -> None:
    folder = tokenizer_folder(special=False)
    (folder / "generation_config.json").write_text('{"bos_token_id": 2}')
    assert TokenStream.load(folder).prefix == (2,)
    assert TokenStream.load(folder, bos=5).prefix == (5,)


def test_a_bos_in_the_config_of_genai(tokenizer_folder: Folder) -> None:
    folder = tokenizer_folder(special=False)
    (folder / "genai_config.json").write_text('{"model": {"bos_token_id": 1}, "search": {}}')
    assert TokenStream.load(folder).prefix == (1,)
    (folder / "config.json").write_text('{"bos_token_id": 2}')
    assert TokenStream.load(folder).prefix == (2,)


@pytest.mark.parametrize(
    ("template", "prefix", "suffix"), [("$A [SEP]", (), (2,)), ("<s> $A", (3,), ()), ("[CLS] $A [SEP]", (1,), (2,))]
)
def test_special_tokens_stand_where_the_tokenizer_puts_them(
    template: str, prefix: tuple[int, ...], suffix: tuple[int, ...], tokenizer_folder: Folder
) -> None:
    folder = tokenizer_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [("[CLS]", 1), ("[SEP]", 2), ("<s>", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(template, None, special)
    tokenizer.save(str(folder / "tokenizer.json"))
    stream = TokenStream.load(folder)
    assert (stream.prefix, stream.suffix) == (prefix, suffix)
    rows = pack_text("a b c d e f g h", stream, seq_len=4, samples=10)
    assert [len(row) for row in rows.tolist()] == [4] * len(rows)
    assert rows[0].tolist()[: len(prefix)] == list(prefix)


def test_rows_are_spread_over_the_whole_text(tokenizer_folder: Folder) -> None:
    stream = TokenStream.load(tokenizer_folder({"bos_token_id": 3}, special=False))
    text = " ".join("abcdefgh")
    assert pack_text(text, stream, seq_len=2, samples=4)[:, 1].tolist() == [4, 6, 8, 10]


def test_text_that_is_too_short(tokenizer_folder: Folder) -> None:
    stream = TokenStream.load(tokenizer_folder({"bos_token_id": 3}, special=False))
    with pytest.raises(CalibrationError, match="text has 2 tokens and one row needs 7"):
        pack_text("a b", stream, seq_len=8, samples=1)
    with pytest.raises(CalibrationError, match="the text is empty"):
        pack_text(" \n", stream, seq_len=8, samples=1)
    with pytest.raises(CalibrationError, match="no room for text"):
        pack_text("a b", stream, seq_len=1, samples=1)


def test_nothing_says_how_a_text_begins(tokenizer_folder: Folder) -> None:
    with pytest.raises(CalibrationError, match="with which token a text begins"):
        TokenStream.load(tokenizer_folder(special=False))


def test_a_bos_that_the_tokenizer_does_not_have(tokenizer_folder: Folder) -> None:
    with pytest.raises(CalibrationError, match="BOS id 99 is outside the tokenizer's 12 tokens"):
        TokenStream.load(tokenizer_folder({"bos_token_id": 99}, special=False))


def test_missing_and_broken_files(tmp_path: Path, tokenizer_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CalibrationError, match=r"there is no tokenizer .*tokenizer\.json.*from \.npz"):
        TokenStream.load(tmp_path)
    folder = tokenizer_folder({"bos_token_id": 3})
    (folder / "config.json").write_text("{")
    with pytest.raises(CalibrationError, match=r"not JSON.*config\.json"):
        TokenStream.load(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CalibrationError, match="not a JSON object"):
        TokenStream.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CalibrationError, match="tokenizer cannot be read"):
        TokenStream.load(folder)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(CalibrationError, match="pip install tokenizers"):
        TokenStream.load(folder)


def test_reading_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    with pytest.raises(CalibrationError, match="cannot be read: No such file"):
        read_text(path)
    path.write_bytes(b"ab\xff")
    with pytest.raises(CalibrationError, match="not UTF-8 at byte 2"):
        read_text(path)
    path.write_text(" \n\t")
    with pytest.raises(CalibrationError, match="the text is empty"):
        read_text(path)
    path.write_text("grüße", encoding="utf-8")
    assert read_text(path) == "grüße"


@pytest.mark.parametrize("bos", [-1, 2**31, 10**400, True])
def test_a_bos_that_is_no_token_id(bos: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"bos_token_id": {str(bos).lower()[:4000]}}}', encoding="utf-8")
    if bos is True:
        assert configured_bos(tmp_path) is None
        return
    with pytest.raises(CalibrationError, match="no token id"):
        configured_bos(tmp_path)


def test_a_config_nested_without_end_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(CalibrationError, match="the file is not JSON"):
        configured_bos(tmp_path)


def test_a_config_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "model", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    (blobs / "1").write_text('{"bos_token_id": 5}', encoding="utf-8")
    (blobs / "2").touch()
    (folder / "config.json").symlink_to(blobs / "1")
    with pytest.raises(CalibrationError, match="a link out of the model's folder"):
        configured_bos(folder)
    (folder / "model.onnx").symlink_to(blobs / "2")  # as in a cache of Hugging Face, where the model lies there too
    assert configured_bos(folder) == 5


@pytest.mark.parametrize(("seq_len", "samples"), [(3, 10), (4, 2), (9, 1)])
def test_passages_are_the_text_of_rows(seq_len: int, samples: int, tokenizer_folder: Folder) -> None:
    stream = TokenStream.load(tokenizer_folder({"bos_token_id": 3}, special=False))
    text = "a  b c d e\nf g h a b"
    rows = pack_text(text, stream, seq_len=seq_len, samples=samples)
    parts = passages(text, stream, seq_len=seq_len, samples=samples)
    assert [stream.encode(part).tolist() for part in parts] == rows[:, 1:].tolist()
    if (len(rows) * (seq_len - 1), samples) == (10, 10):
        assert "".join(parts) == text  # nothing between them is lost


def test_the_ends_of_a_text_are_those_of_all_configurations(tokenizer_folder: Folder) -> None:
    folder = tokenizer_folder({"eos_token_id": 2})
    assert configured_ends(folder) == {2}
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 5, null, "x", true]}')
    (folder / "genai_config.json").write_text('{"model": {"eos_token_id": 7}}')
    assert configured_ends(folder) == {1, 2, 5, 7}
    assert configured_ends(folder.parent) == frozenset()
