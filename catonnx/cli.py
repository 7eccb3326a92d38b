"""Where `catonnx` and `python -m catonnx` begin; the commands themselves are in `catonnx.commands`."""

from __future__ import annotations

import os
import signal
from types import FrameType

from catonnx.errors import INTERRUPTED


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback even while it is still being loaded."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)
    from catonnx.commands.app import run

    run()


def _end(number: int, frame: FrameType | None) -> None:
    """End at once: before a command has begun, and after it has ended, there is nothing to clean up."""
    del number, frame
    os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)
