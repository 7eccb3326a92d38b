"""The terminal: results on stdout, progress and errors on stderr, and signals that end a run cleanly."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import rich.progress
import typer
from rich.console import Console, RenderableType

from catonnx.errors import INTERRUPTED, CatonnxError, OutputError
from catonnx.files import STDOUT, write_json
from catonnx.naming import printable
from catonnx.progress import Progress, silent
from catonnx.recipe import Recipe
from catonnx.recipe.file import RecipeFileError

WIDTH = 100
"""Columns that results take up at most, and where there is no terminal."""

LONGEST_ERROR = 4000
"""Characters of an error that are shown; names in models may be of any length."""

_SAME_KEY_SECONDS = 2.0
"""Ctrl-C pressed again, or passed on by a parent process, within this time must not cut the clean-up short."""


class Terminal:
    """Where a command shows things.

    Args:
        quiet: No progress and no notes.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._out = _console(stderr=False)
        self._err = _console(stderr=True)

    def show(self, *items: RenderableType) -> None:
        """Write results to stdout, an empty line between them."""
        try:
            for index, item in enumerate(items):
                if index:
                    self._out.print()
                self._out.print(item)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read has seen enough; what stands, stands
            _close_stdout()
        except OSError as error:
            _close_stdout()
            raise OutputError(f"nothing can be written to stdout: {error.strerror}") from error

    def deliver(self, file: Path | None, data: Mapping[str, Any], tables: Sequence[RenderableType]) -> None:
        """Write results as JSON where that was asked for, and show them as tables, unless JSON is to be shown.

        Raises:
            OutputError: as `write_json`.
        """
        if file is not None:
            write_json(file, data)
        if file != STDOUT:
            self.show(*tables)

    def note(self, text: str) -> None:
        """Write a remark to stderr, unless quiet."""
        if not self._quiet:
            self._err.print(f"note: {printable(text)}", soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show how far long steps are and how long they still take, on a terminal only; nothing of it stays."""
        if self._quiet or not self._err.is_terminal:
            yield silent
            return
        columns = (
            rich.progress.SpinnerColumn("line"),
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=30),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=self._err, transient=True) as bars:
            tasks: dict[str, rich.progress.TaskID] = {}
            bars.add_task("in all", total=None)

            def show(step: str, done: int, total: int) -> None:
                if step not in tasks:
                    tasks[step] = bars.add_task(step, total=total)
                elif bars.tasks[tasks[step]].finished:
                    bars.reset(tasks[step], total=total)
                bars.update(tasks[step], completed=done, total=total)

            yield show


@contextmanager
def guarded(*, verbose: bool = False, options: Collection[str] | None = None) -> Iterator[None]:
    """Turn a deliberate error or an interruption into one line on stderr and an exit code; SIGTERM is an interruption.

    Args:
        verbose: Show the traceback too.
        options: Fields of a recipe that errors spell as the options that set them; all unless given.

    Raises:
        typer.Exit: with the error's exit code, or 130.
    """
    try:
        with _interruptible():
            yield
    except CatonnxError as error:
        if verbose:
            typer.echo(printable(traceback.format_exc()), err=True)
        line = _one_line(str(error))
        told = line if isinstance(error, RecipeFileError) else _with_flags(line, options)
        typer.echo(f"error: {told}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as interruption:
        if verbose:
            traceback.print_exc()
        typer.echo(": ".join(["error: interrupted", *map(str, interruption.args)]), err=True)
        raise typer.Exit(INTERRUPTED) from interruption


def _close_stdout() -> None:
    """Let what is still to be written go nowhere, or Python fails once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(text: str) -> str:
    """Return a message without line breaks and whatever else a terminal would act on; its middle goes if it is long."""
    line = printable(" ".join(text.splitlines()))
    half = LONGEST_ERROR // 2
    return line if len(line) <= LONGEST_ERROR else f"{line[:half]} [...] {line[-half:]}"


def _with_flags(text: str, options: Collection[str] | None) -> str:
    """Spell fields of a recipe as the options that set them; a field of one word reads well as it is."""
    named = {field.name for field in dataclasses.fields(Recipe) if "_" in field.name}
    fields = "|".join(sorted(named if options is None else named.intersection(options)))
    if not fields:
        return text
    return re.sub(rf"(?<![\w/.-])({fields})(?![\w/.-])", lambda match: f"--{match[0].replace('_', '-')}", text)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt, so that every clean-up runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last: float | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal last
        again, last = last is not None and time.monotonic() - last < _SAME_KEY_SECONDS, time.monotonic()
        if not again:
            raise KeyboardInterrupt

    # A parent that made us ignore a signal (nohup, a shell's background job) wants it ignored.
    wanted = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in wanted}
    try:
        yield
    finally:
        # After an interruption the process is about to end: the same key must not disturb that either.
        for number, handler in before.items() if last is None else ():
            signal.signal(number, handler)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the error through: rich would end the process with the code of a bug."""
        raise BrokenPipeError


def _console(*, stderr: bool) -> Console:
    console = _Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    return console


def forgive_encodings() -> None:
    """Let stdout write names that its encoding does not know as escapes, as stderr does."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
