"""`python -m catonnx.ops build` compiles the operators' library and prints where it lies.

With nvcc in CUDA_HOME or PATH the library has kernels for CUDA too; it also loads where there is no CUDA.

Exit codes: 0 it is built; 2 wrong arguments; 6 it cannot be written; 8 there is no compiler, or no nvcc where one is
needed, or it fails; 130 interrupted.
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
        chosen = {"compiler": options.compiler, "sanitize": options.sanitize, "cuda": options.cuda}
        print(build(options.output, **chosen))
    except CatonnxError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m catonnx.ops", description="The operators' library.")
    commands = parser.add_subparsers(required=True, metavar="build")
    building = commands.add_parser("build", help="compile the library and print where it lies")
    building.add_argument("--output", type=Path, metavar="FILE", help="where catonnx looks for it unless given")
    building.add_argument("--compiler", metavar="CXX", help="CXX, g++ or clang++ unless given")
    building.add_argument("--sanitize", metavar="KINDS", help="sanitizers to build in, as address,undefined")
    building.add_argument(
        "--cuda",
        action=argparse.BooleanOptionalAction,
        help="compile the CUDA kernels too, or leave them out (default: if nvcc is in CUDA_HOME or PATH)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
