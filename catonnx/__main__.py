"""`python -m catonnx` is the command `catonnx`."""

from __future__ import annotations

from catonnx.cli import main

main()
