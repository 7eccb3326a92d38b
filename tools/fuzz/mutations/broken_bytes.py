"""Bytes of a file: flipped, cut off, repeated."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.fuzz.mutations.mutation import Mutation


def _bytes(change: Callable[[bytearray, random.Random], None]) -> Callable[[Path, random.Random], bool]:
    """Return what changes the bytes of the model, now and then of another file of it."""

    def mutate(folder: Path, choose: random.Random) -> bool:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "model.onnx")
        path = choose.choice(files) if files and choose.random() < 0.2 else folder / "model.onnx"
        content = bytearray(path.read_bytes())
        if not content:
            return False
        change(content, choose)
        path.write_bytes(content)
        return True

    return mutate


def _flip(content: bytearray, choose: random.Random) -> None:
    for _ in range(choose.choice((1, 1, 2, 5, 20))):
        content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)


def _overwrite(content: bytearray, choose: random.Random) -> None:
    start = choose.randrange(len(content))
    size = choose.choice((1, 2, 4, 8, 64))
    content[start : start + size] = choose.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * size


def _truncate(content: bytearray, choose: random.Random) -> None:
    del content[choose.randrange(len(content)) :]


def _insert(content: bytearray, choose: random.Random) -> None:
    place = choose.randrange(len(content) + 1)
    content[place:place] = choose.randbytes(choose.choice((1, 2, 10, 1000)))


def _delete(content: bytearray, choose: random.Random) -> None:
    start = choose.randrange(len(content))
    del content[start : start + choose.choice((1, 2, 10, 100))]


def _repeat(content: bytearray, choose: random.Random) -> None:
    start = choose.randrange(len(content))
    part = content[start : start + choose.choice((2, 20, 200))]
    content[start:start] = part * choose.choice((1, 3))


BYTES: Mapping[str, Mutation] = {
    "bytes flipped": Mutation(_bytes(_flip)),
    "bytes overwritten": Mutation(_bytes(_overwrite)),
    "bytes cut off": Mutation(_bytes(_truncate)),
    "bytes inserted": Mutation(_bytes(_insert)),
    "bytes left out": Mutation(_bytes(_delete)),
    "bytes repeated": Mutation(_bytes(_repeat)),
}
"""Name -> how a model is broken."""
