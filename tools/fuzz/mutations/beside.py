"""Files beside the model, and what stands in its place."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.fuzz.mutations.mutation import Mutation, free

JSON_FILES = ("config.json", "genai_config.json", "generation_config.json", "tokenizer.json")
BROKEN_JSON = (
    b"",
    b"{",
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b"\xff\xfe{}",
    b"\0" * 100,
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"bos_token_id": 1e400}',
    b'{"bos_token_id": ' + b"9" * 5000 + b"}",
)
ODD_BOS = (-1, 2**31, 2**63, 2**70, 10**400, 1.5, "1", True, None, [1], {"a": 1}, 259, 300)


def _json_bytes(folder: Path, choose: random.Random) -> bool:
    free(folder / choose.choice(JSON_FILES)).write_bytes(choose.choice(BROKEN_JSON))
    return True


def _json_bos(folder: Path, choose: random.Random) -> bool:
    bos = choose.choice(ODD_BOS)
    name = choose.choice(JSON_FILES[:3])
    content: Any = (
        {"bos_token_id": bos} if name != "genai_config.json" else {"model": choose.choice((bos, {"bos_token_id": bos}))}
    )
    for other in JSON_FILES[:3]:
        free(folder / other)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return True


def _json_link(folder: Path, choose: random.Random) -> bool:
    """A config or tokenizer is a link out of the folder, a pipe, a folder, or a link to itself."""
    name = choose.choice(JSON_FILES)
    free(folder / name)
    match choose.randrange(4):
        case 0:
            (folder / name).symlink_to(folder.parent / "outside" / "config.json")
        case 1:
            os.mkfifo(folder / name)
        case 2:
            (folder / name).mkdir()
        case _:
            (folder / name).symlink_to(name)
    return True


def _companions(folder: Path, choose: random.Random) -> bool:
    """Other things in the folder: links, loops, pipes, odd names, names that results have."""
    free(folder / "loop").symlink_to(".")
    free(folder / "away").symlink_to(folder.parent / "outside")
    free(folder / "nowhere").symlink_to("nothing")
    os.mkfifo(free(folder / "pipe"))
    (
        folder / choose.choice(("a\nb", "\x1b[31m", "catonnx.json", "model.onnx_data", ".work", "-rf", "重み"))
    ).write_bytes(b"x")
    return True


def _model_itself(folder: Path, choose: random.Random) -> bool:
    """The model is a pipe, a folder, empty, or a link out of its folder."""
    path = folder / "model.onnx"
    path.unlink()
    match choose.randrange(4):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.write_bytes(b"")
        case _:
            path.symlink_to(path.name)
    return True


BESIDE: Mapping[str, Mutation] = {
    "broken JSON": Mutation(_json_bytes),
    "odd BOS": Mutation(_json_bos),
    "linked JSON": Mutation(_json_link),
    "companions": Mutation(_companions),
    "the file itself": Mutation(_model_itself, refused=True),
}
"""Name -> how a model is broken."""
