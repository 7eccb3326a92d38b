"""`python -m catonnx.ops build` compiles the operators' library and prints where it lies.

Exit codes: 0 it is built; 2 wrong arguments; 6 it cannot be written; 8 there is no compiler, or it fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from catonnx.errors import CatonnxError
from catonnx.ops.build import build


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        print(build(options.output, compiler=options.compiler, sanitize=options.sanitize))
    except CatonnxError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m catonnx.ops", description="The operators' library.")
    commands = parser.add_subparsers(required=True, metavar="build")
    building = commands.add_parser("build", help="compile the library and print where it lies")
    building.add_argument("--output", type=Path, metavar="FILE", help="where catonnx looks for it unless given")
    building.add_argument("--compiler", metavar="CXX", help="CXX, g++ or clang++ unless given")
    building.add_argument("--sanitize", metavar="KINDS", help="sanitizers to build in, as address,undefined")
    return parser


if __name__ == "__main__":
    sys.exit(main())
