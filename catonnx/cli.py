"""Where `catonnx` and `python -m catonnx` begin; the commands themselves are in `catonnx.commands`."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from catonnx.commands.app import run

    run()
