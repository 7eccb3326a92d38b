"""Judge one broken model: the command line must refuse it in one line, or make a sound result of it."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from typer.testing import CliRunner

from catonnx.commands.app import app
from catonnx.errors import CatonnxError
from models.tiny_files import TINY, write_tiny
from tools.fuzz.cases import Case, Feeds
from tools.fuzz.graphs import (
    ERRORS,
    TOLERANCE,
    WORST_AMPLIFICATION,
    Wrong,
    amplification,
    contents,
    relative_error,
    run,
)
from tools.fuzz.mutations import MUTATIONS, SECRET

CODES = frozenset({0, *(kind.exit_code for kind in CatonnxError.__subclasses__())})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a broken model ended.

    Attributes:
        kind: `ok`, `refused with <code>`, or `FAILED <why>`.
        mutation: What was broken.
        detail: Of a failure: what was said.
    """

    kind: str
    mutation: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether catonnx did wrong."""
        return self.kind.startswith("FAILED")


@dataclasses.dataclass(frozen=True)
class Broken:
    """A model that was broken, and what is asked of it.

    Attributes:
        place: Folder with `model`, `outside` and `feeds.npz`.
        feeds: Inputs that the model took before.
        mutation: What was broken.
        refused: Whether it must be refused.
        options: The command line, with PLACE for the folder.
    """

    place: Path
    feeds: Feeds
    mutation: str
    refused: bool
    options: tuple[str, ...]


def judge_seed(seed: int, folder: Path, keep: Path | None = None) -> Outcome:
    """Break the model of a seed in a new folder below `folder`, and say how it ended."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir=folder))
    try:
        broken = draw(seed, place)
        try:
            return Outcome(_judged(broken), broken.mutation)
        except Wrong as found:
            if keep is not None:
                _keep(broken, keep / f"file-{seed}", found)
            return Outcome(f"FAILED {found.args[0]}", broken.mutation, str(found.args[1]))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def draw(seed: int, place: Path) -> Broken:
    """Write the model of a seed to `place` and break it."""
    choose = random.Random(seed)
    base = choose.choice(tuple(TINY))
    feeds = write_tiny(base, place / "model", seed)
    outside = place / "outside"
    outside.mkdir()
    (outside / SECRET).write_bytes(b"\0\0\x80?" * 4096)
    (outside / "config.json").write_text('{"bos_token_id": 256}', encoding="utf-8")
    names: list[str] = []
    refused = False
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        name = choose.choice(tuple(MUTATIONS))
        # What must be refused alone may be undone by a second change.
        refused = bool(MUTATIONS[name].change(place / "model", choose)) and MUTATIONS[name].refused and not names
        names.append(name)
        if name == "the file itself":
            break
    np.savez(
        place / "feeds.npz", allow_pickle=False, **{f"{i}/{name}": feeds[name] for i in range(2) for name in feeds}
    )
    return Broken(place, feeds, " + ".join(names), refused, _options(base, choose))


def _options(base: str, choose: random.Random) -> tuple[str, ...]:
    calibration = "PLACE/feeds.npz"
    if base == "language":
        calibration = choose.choice(("self", "PLACE/text.txt", calibration))
    model = choose.choice(("PLACE/model", "PLACE/model/model.onnx"))
    shared = ("--calibration", calibration, "--samples", "2", "--seq-len", "6", "--lm-head", "--quiet")
    if choose.random() < 0.15:
        return ("inspect", model, *shared)
    scheme = choose.choice(("float", "float", "w4a16", "w4a8"))
    transform = choose.choice(("cat", "cat", "none", "hadamard"))
    return ("optimize", model, "-o", "PLACE/out", *shared, "--scheme", scheme, "--transform", transform)


def _judged(broken: Broken) -> str:
    place = broken.place
    (place / "text.txt").write_text("It was a dark and stormy night. " * 20, encoding="utf-8")
    before = contents(place)
    with Watch(place / "outside") as watch:
        result = CliRunner().invoke(app, [option.replace("PLACE", str(place)) for option in broken.options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        error = result.exception
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "catonnx" in frame.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "nowhere of ours"
        text = "".join(traceback.format_exception(error))
        raise Wrong(f"{type(error).__name__} in {where}", f"{text[:500]} ... {text[-1500:]}")
    if watch.opened:
        raise Wrong("something outside was read", watch.opened)
    if result.exit_code not in CODES:
        raise Wrong(f"exit code {result.exit_code}", result.output)
    said = result.stdout + result.stderr
    if not all(character.isprintable() or character == "\n" for character in said):
        raise Wrong("characters that are not printable", repr(said))
    after = contents(place)
    left = {name for name in after.keys() | before.keys() if after.get(name) != before.get(name)}
    results = {name for name in left if Path(name).is_relative_to(place / "out")}
    if left - results or (results and result.exit_code):
        raise Wrong("files left or changed", sorted(left))
    if result.exit_code:
        if result.stderr.count("\n") != 1 or not result.stderr.startswith("error: ") or result.stdout:
            raise Wrong("an error of another form", said)
        if len(result.stderr) > 6000:
            raise Wrong("an error that is too long", f"{len(result.stderr)} characters: {said[:300]}")
        return f"refused with {result.exit_code}"
    if broken.refused:
        raise Wrong("not refused", said)
    if broken.options[0] == "optimize":
        _check_result(broken)
    return f"ok, {broken.options[0]}"


def _check_result(broken: Broken) -> None:
    """Check that a result runs and gives numbers; and the source's numbers where nothing was rounded."""
    place = broken.place
    try:
        actual = run(place / "out" / "model.onnx", broken.feeds)
    except ERRORS as error:
        raise Wrong("the result does not run", error) from error
    if not all(np.isfinite(array).all() for array in actual.values() if array.dtype.kind == "f"):
        raise Wrong("the result is not finite", broken.mutation)
    if "float" not in broken.options:
        return
    expected = run(place / "model" / "model.onnx", broken.feeds)
    worst = max((relative_error(expected[name], actual[name]) for name in expected), default=0.0)
    if worst <= TOLERANCE[False]:
        return
    try:
        case = Case(onnx.load(place / "model" / "model.onnx"), (), (broken.feeds,), {}, {})
        amplified = amplification(case, [expected])
    except (*ERRORS, DecodeError):
        amplified = 0.0
    if amplified <= WORST_AMPLIFICATION[False]:
        raise Wrong("another function", f"relative L2 {worst:.1e}, amplification {amplified:.0f}")


class Watch:
    """Notes which files below a folder this process opens, as far as Python is told."""

    _roots: list[tuple[str, list[str]]] = []  # noqa: RUF012
    _hooked = False

    def __init__(self, root: Path) -> None:
        self.opened: list[str] = []
        self._entry = (str(root.resolve()), self.opened)

    def __enter__(self) -> Watch:
        if not Watch._hooked:
            sys.addaudithook(Watch._hook)  # cannot be taken away again
            Watch._hooked = True
        Watch._roots.append(self._entry)
        return self

    def __exit__(self, *_: object) -> None:
        Watch._roots.remove(self._entry)

    @staticmethod
    def _hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not Watch._roots or not isinstance(arguments[0], str | bytes):
            return
        try:
            path = Path(arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]).resolve()
        except (OSError, ValueError, RuntimeError):
            return
        for root, opened in Watch._roots:
            if str(path).startswith(root):
                opened.append(str(arguments[0]))


def _keep(broken: Broken, place: Path, found: Wrong) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    shutil.copytree(broken.place / "model", place / "model", symlinks=True, copy_function=_copy)
    shutil.copyfile(broken.place / "feeds.npz", place / "feeds.npz")
    (place / "options.json").write_text(json.dumps(broken.options) + "\n", encoding="utf-8")
    (place / "outcome.txt").write_text(f"{broken.mutation}\n{found.args[0]}\n{found.args[1]}\n", encoding="utf-8")


def _copy(source: str, target: str) -> None:
    if Path(source).is_file():
        shutil.copyfile(source, target)
