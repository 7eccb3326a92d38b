"""Where `catonnx` and `python -m catonnx` begin; the commands themselves are in `catonnx.commands`."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

from catonnx.errors import INTERRUPTED


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback even while it is still being loaded."""
    heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if heard:
        signal.signal(signal.SIGINT, _end)
    try:
        from catonnx.commands.app import run

        run()
    finally:
        if heard:  # what is left is to clean up
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end(number: int, frame: FrameType | None) -> None:
    """End at once: before a command has begun there is nothing to clean up."""
    del number, frame
    with contextlib.suppress(OSError):  # of a closed stderr
        os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)
