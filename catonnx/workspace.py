"""The folder beside OUT in which a model is made: locked, keyed, and kept when a run is cut off.

    .OUT.catonnx/
      about.json    whose work it is: a digest of model, calibration, recipe and versions
      lock          held by the process at work
      source/       the copy of the model that is read, and files in passing beside it
      kept/, live/  what is done so far
      result/       becomes OUT, in one rename, when everything is verified

After a Ctrl-C, a kill or a full disk the same command goes on from there, whatever was done before; work of another run
is refused. Any other end removes the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from catonnx.errors import CatonnxError, OutputError
from catonnx.files import write_json
from catonnx.graph.save import RESULT_MARK
from catonnx.kept import Kept

_ABOUT, _LOCK, _OLD, _RESULT = "about.json", "lock", "old", "result"
_FORMAT, _COPY = 1, "copy"


class Workspace:
    """A folder of ours.

    Attributes:
        source: Where the copy of the model lies, or will.
        result: An empty folder that becomes the output.
        kept: What is done so far.
        live: Where checkpoints go.
    """

    def __init__(self, folder: Path) -> None:
        self.source, self.result, self.live = folder / "source", folder / _RESULT, folder / "live"
        shutil.rmtree(self.result, ignore_errors=True)
        for place in (self.source, self.result, folder / "kept"):
            place.mkdir(exist_ok=True)
        self.kept = Kept(folder / "kept")

    def copied(self, bring: Callable[[], Path]) -> Path:
        """Return the copy of the model: that of an earlier run without what lay beside it in passing, or a new one."""
        done = self.kept.get(_COPY)
        if done is None:
            shutil.rmtree(self.source)
            self.source.mkdir()
            path = bring()
            copied = sorted(str(file.relative_to(self.source)) for file in self.source.rglob("*") if file.is_file())
            self.kept.put(_COPY, "", {"path": path.name, "files": copied})
            return path
        files = set(done["files"].tolist())
        for file in sorted(self.source.rglob("*"), reverse=True):
            if file.is_dir():
                with contextlib.suppress(OSError):  # something of the copy is in it
                    file.rmdir()
            elif str(file.relative_to(self.source)) not in files:
                file.unlink()
        return self.source / str(done["path"])


def _with_hint(error: CatonnxError, more: str) -> CatonnxError:
    return type(error)(error.what, where=error.where, hint="; ".join(filter(None, [error.hint, more])))


def _is_worth_keeping(folder: Path) -> bool:
    """Whether more is done than the copy."""
    done = (*folder.glob("kept/*"), *folder.glob("live/*"))
    return any(not path.name.startswith(_COPY) for path in done)


@contextlib.contextmanager
def working(out: Path, *, force: bool, key: Callable[[], str]) -> Iterator[Workspace]:
    """Give a folder beside `out` to work in; its result becomes `out` when the block ends well.

    Args:
        out: The output folder; it appears in one rename.
        force: Replace a folder that exists, if it is empty or a result of ours.
        key: Tells runs apart: work under another key is refused.

    Raises:
        OutputError: if `out` exists and may not be replaced, nothing can be written beside it, another process is at
            work on it, or the work of another run lies there.
        KeyboardInterrupt: with a message, if what was done is kept.
    """
    folder = out.parent / f".{out.name}.catonnx"
    with _parents(out), contextlib.ExitStack() as held:
        new = False
        try:
            new = not folder.exists() and not folder.is_symlink()
            check_free(out, force)
            wanted = key()
            out.parent.mkdir(parents=True, exist_ok=True)
            _claim(folder, wanted, held, out)
            check_free(out, force)
            space = Workspace(folder)
        except OSError as error:
            raise OutputError(f"nothing can be written there: {error.strerror}", where=out.parent) from error
        except KeyboardInterrupt:
            if new and not _is_worth_keeping(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        keep = False
        try:
            yield space
            _replace(space.result, out)
        except KeyboardInterrupt as interruption:
            keep = _is_worth_keeping(folder)
            if keep:
                raise KeyboardInterrupt(f"the same command goes on from {folder}") from interruption
            raise
        except MemoryError:
            keep = _is_worth_keeping(folder)
            raise
        except OSError as error:
            keep = _is_worth_keeping(folder)
            hint = "free some space; then the same command goes on" if keep else None
            raise OutputError(
                f"the output cannot be written: {error.strerror or error}", where=out, hint=hint
            ) from error
        except CatonnxError as error:
            keep = isinstance(error, OutputError) and _is_worth_keeping(folder)
            told: CatonnxError = error
            for place in ("source", "kept", "live", _RESULT):
                told = told.moved(folder / place, out)
            raise (_with_hint(told, "then the same command goes on") if keep else told) from error
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def _bring_back(old: Path, out: Path) -> None:
    """Undo what a run left that was killed while it replaced an output: one of the two stands."""
    if not (old.exists() or old.is_symlink()):
        return
    if not (out.exists() or out.is_symlink()):
        old.rename(out)
    else:
        _remove(old)


def _claim(folder: Path, key: str, held: contextlib.ExitStack, out: Path) -> None:
    """Make the folder, or take over what an earlier run left in it, and lock it.

    Raises:
        OutputError: if it is not ours, or not ours now.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError("something stands where the work folder would be", where=folder, hint="remove it")
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _lock(folder / _LOCK, held):
        raise OutputError("another process is at work on this output", where=folder, hint="wait for it, or stop it")
    about = folder / _ABOUT
    if not about.exists():
        if any(path.name != _LOCK for path in folder.iterdir()):
            raise OutputError("a folder that is not ours stands where the work folder would be", where=folder)
        write_json(about, {"format": _FORMAT, "key": key})
        return
    try:
        found = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and found.get("format") == _FORMAT:
        _bring_back(folder / _OLD, out)
    if found == {"format": _FORMAT, "key": key}:
        return
    if not _is_worth_keeping(folder) and not (folder / _OLD).exists():
        write_json(about, {"format": _FORMAT, "key": key})
        for place in ("source", "kept"):
            shutil.rmtree(folder / place, ignore_errors=True)
    else:
        raise OutputError(
            "the unfinished work of another run lies there: another model, calibration, recipe or version",
            where=folder,
            hint="give the command that was cut off again to finish it, or delete the folder",
        )


def _lock(path: Path, held: contextlib.ExitStack) -> bool:
    """Lock a file until the stack is left, or this process ends in any way; False if another has it."""
    file = held.enter_context(path.open("w"))
    try:
        import fcntl
    except ImportError:  # Windows: nothing else here needs it
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter is how some network file systems put it
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextlib.contextmanager
def _parents(out: Path) -> Iterator[None]:
    """Remove the folders above `out` that did not exist before, unless something came to lie in them."""
    try:
        new = [folder for folder in out.parents if not folder.exists()]
    except OSError:
        new = []
    try:
        yield
    finally:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_free(out: Path, force: bool) -> None:
    """Refuse an output that stands and may not be replaced.

    Raises:
        OutputError: saying why.
    """
    stands = out.exists() or out.is_symlink()
    if stands and not force:
        raise OutputError("the output exists", where=out, hint="choose another place or pass --force")
    if stands and os.path.ismount(out):
        raise OutputError("the output is a mount point", where=out, hint="name a folder in it")
    if stands and not out.is_dir():
        raise OutputError("the output exists and is not a folder", where=out, hint="choose another place")
    if stands and not out.is_symlink() and not (out / RESULT_MARK).is_file() and any(out.iterdir()):
        raise OutputError(
            f"the output exists and is no result of catonnx: it holds other files and no {RESULT_MARK}",
            where=out,
            hint="choose another place, or remove it yourself",
        )


def _replace(stage: Path, out: Path) -> None:
    """Rename `stage` to `out`; an older `out` is moved aside first and deleted last: one of them always stands."""
    umask = os.umask(0)
    os.umask(umask)
    stage.chmod(0o777 & ~umask)
    if not out.exists():
        stage.rename(out)
        return
    aside = stage.with_name(_OLD)
    out.rename(aside)
    try:
        stage.rename(out)
    except BaseException:  # a Ctrl-C as well: the older one comes back
        if not out.exists():
            aside.rename(out)
        raise
    _remove(aside)


def _remove(output: Path) -> None:
    if output.is_symlink():
        output.unlink()
    else:
        shutil.rmtree(output, ignore_errors=True)
