"""Calibration data that is missing, broken, or does not fit: each refused in one line, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.refusals import assert_refused
from tests.small_models import QUICK, edited, language_feeds, set_weight, write_feeds, write_mlp

Capture = pytest.CaptureFixture[str]
GOOD = np.zeros((2, 64), np.float32)
NPZ_HINT = "one array '<sample>/<input name>' per sample and input"


@pytest.fixture
def llama(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


TEXTS: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("text.txt", None, "the text cannot be read: No such file"),
    "empty": ("text.txt", b"", "the text is empty ("),
    "white": ("text.txt", b" \n\t\n", "the text is empty ("),
    "one token": ("text.txt", b"a", "the text has 1 tokens and one row needs 31 ("),
    "not utf-8": ("text.txt", b"caf\xe9 cr\xe8me", "the text is not UTF-8 at byte 3 ("),
    "unknown suffix": ("text.json", b"{}", "calibration data must be a .txt or an .npz file ("),
    "no suffix": ("text", b"words", "calibration data must be a .txt or an .npz file ("),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts(case: str, llama: Path, tmp_path: Path, capfd: Capture) -> None:
    name, content, said = TEXTS[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    line = assert_refused(capfd, 5, said, llama, tmp_path / "out", *QUICK, "--calibration", tmp_path / name)
    assert str(tmp_path / name) in line


def test_a_folder_in_place_of_a_text(llama: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "text.txt").mkdir()
    said = "the text cannot be read: Is a directory"
    assert_refused(capfd, 5, said, llama, tmp_path / "out", "--calibration", tmp_path / "text.txt")


def _without(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def _with(file: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_text(text)

    return change


def _no_bos(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["bos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))


def _far_bos(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": 10**6}))


TOKENIZERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "no tokenizer": ("text was given but there is no tokenizer (", _without("tokenizer.json")),
    "broken tokenizer": ("the tokenizer cannot be read: ", _with("tokenizer.json", "{}")),
    "broken config": ("the file is not JSON: ", _with("config.json", "{")),
    "config of another kind": ("the file is not a JSON object (", _with("config.json", "[]")),
    "no BOS": ("neither config.json nor the tokenizer says with which token a text begins (", _no_bos),
    "BOS out of reach": ("the BOS id 1000000 is outside the tokenizer's ", _far_bos),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_text_without_a_sound_tokenizer(case: str, llama: Path, tmp_path: Path, capfd: Capture) -> None:
    said, change = TOKENIZERS[case]
    change(llama)
    (tmp_path / "text.txt").write_text("the quick brown fox " * 100)
    line = assert_refused(capfd, 5, said, llama, tmp_path / "out", *QUICK, "--calibration", tmp_path / "text.txt")
    assert str(llama) in line


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_vit"])
def test_only_language_models_write_their_own_text(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, capfd: Capture
) -> None:
    said = "the model cannot write its own calibration text: no causal language model with a BOS"
    assert_refused(capfd, 5, said, request.getfixturevalue(name), tmp_path / "out", *QUICK)


def test_without_a_cache_only_short_texts_are_written(tiny_llama_dynamo: Path, tmp_path: Path, capfd: Capture) -> None:
    said = "the model has no key-value cache, so writing 512 tokens would take too long; give a calibration text"
    assert_refused(capfd, 5, said, tiny_llama_dynamo, tmp_path / "out")


def test_text_for_a_model_of_images(tiny_vit: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox " * 100)
    said = "the model has no input_ids, so text cannot be fed to it (inputs: pixel_values); "
    assert_refused(capfd, 5, said, tiny_vit, tmp_path / "out", "--calibration", tmp_path / "text.txt")


def test_more_tokens_than_the_model_has_positions_for(tiny_gpt2: Path, tmp_path: Path, capfd: Capture) -> None:
    said = "the model failed on a text of "
    line = assert_refused(capfd, 5, said, tiny_gpt2, tmp_path / "out", "--samples", "1", "--seq-len", "600")
    assert "its configuration allows 512" in line
    assert "--seq-len of 512 or less" in line


NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "no arrays": ({}, "the file holds no arrays ("),
    "no sample": ({"x": GOOD}, "the array 'x' does not say its sample and input ("),
    "another input": ({"0/y": GOOD}, "the sample lacks x and adds y ("),
    "one input too many": ({"0/x": GOOD, "0/z": GOOD}, "the sample adds z ("),
    "a later sample": ({"0/x": GOOD, "1/y": GOOD}, "the sample lacks x and adds y ("),
    "dtype": ({"0/x": GOOD.astype(np.float64)}, "the array is float64 where the model takes float32 ("),
    "rank": ({"0/x": GOOD[0]}, "the array has shape [64] where the model takes [?, 64] ("),
    "width": ({"0/x": GOOD[:, :60]}, "the array has shape [2, 60] where the model takes [?, 64] ("),
    "pickle": ({"0/x": np.array([{}], dtype=object)}, "this is not an .npz file of plain arrays: Object arrays"),
    "later pickle": ({"0/x": GOOD, "1/x": np.array([{}], dtype=object)}, "this is not an .npz file of plain arrays"),
    "nan": ({"0/x": GOOD * np.nan}, "the array holds NaN or Inf ("),
    "overflow": ({"0/x": GOOD + np.float32(3e38)}, "the activation holds "),
    "one row": ({"0/x": GOOD[:1]}, "calibration saw 1 row(s), and statistics need many ("),
    "no rows": ({"0/x": GOOD[:0]}, "the array is empty: there is not one sequence in it ("),
}


@pytest.mark.parametrize("case", NPZ)
def test_arrays(case: str, tmp_path: Path, capfd: Capture) -> None:
    arrays, said = NPZ[case]
    model = write_mlp(tmp_path / "m" / "model.onnx", activation="Identity")
    np.savez(tmp_path / "feeds.npz", allow_pickle=True, **arrays)
    assert_refused(capfd, 5, said, model, tmp_path / "out", "--calibration", tmp_path / "feeds.npz")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (GOOD + np.float32(3e38), "the reference model gives NaN or Inf (y, sample 0)"),
        (GOOD[:0], "the array is empty: there is not one sequence in it ("),
    ],
)
def test_arrays_that_are_only_verified_on(array: np.ndarray, said: str, tmp_path: Path, capfd: Capture) -> None:
    model = write_mlp(tmp_path / "m" / "model.onnx", activation="Identity")
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **{"0/x": array})
    options = "--calibration", tmp_path / "feeds.npz", "--transform", "none"
    assert_refused(capfd, 5, said, model, tmp_path / "out", *options)


def _missing(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, GOOD)


def _squeezed(path: Path) -> None:
    np.savez_compressed(path, allow_pickle=False, **{"0/x": np.random.default_rng(0).normal(size=(20, 64))})
    content = bytearray(path.read_bytes())
    content[200:400] = b"\xff" * 200
    path.write_bytes(bytes(content))


def _claims_too_much(path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 64), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0/x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


BROKEN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("the file does not exist (", _missing),
    "folder": ("the file cannot be read: Is a directory (", _folder),
    "empty": ("this is not an .npz file of plain arrays: ", lambda path: path.write_bytes(b"")),
    "cut": ("this is not an .npz file of plain arrays: ", _cut),
    "single": ("this is a single array, not an .npz file (", _single),
    "corrupt": ("this is not an .npz file of plain arrays: ", _squeezed),
    "claims too much": ("this is not an .npz file of plain arrays: ", _claims_too_much),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_of_arrays(case: str, tmp_path: Path, capfd: Capture) -> None:
    said, change = BROKEN[case]
    model = write_mlp(tmp_path / "m" / "model.onnx")
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 64)
    change(feeds)
    line = assert_refused(capfd, 5, said, model, tmp_path / "out", "--calibration", feeds)
    assert str(feeds) in line


def test_tokens_that_the_model_does_not_know(tiny_llama: Path, tmp_path: Path, capfd: Capture) -> None:
    feeds = language_feeds(tiny_llama)
    feeds["input_ids"][0, 0] = 9999
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **{f"0/{name}": array for name, array in feeds.items()})
    said = "ONNX Runtime failed while it ran the model: "
    options = "--calibration", tmp_path / "feeds.npz"
    assert "idx=9999" in assert_refused(capfd, 3, said, tiny_llama, tmp_path / "out", *options)


def test_a_site_that_overflows_is_named(tiny_llama: Path, tmp_path: Path, capfd: Capture) -> None:
    huge = set_weight("model.layers.1.post_attention_layernorm.weight", lambda weight: np.full_like(weight, 3e38))
    model = edited(tiny_llama, tmp_path / "model", huge)
    (tmp_path / "text.txt").write_text("the quick brown fox " * 100)
    line = assert_refused(
        capfd, 5, "the activation holds ", model, tmp_path / "out", *QUICK, "--calibration", tmp_path / "text.txt"
    )
    assert "(site /model/layers.1/post_attention_layernorm/Mul_1_output_0, " in line
