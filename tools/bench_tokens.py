"""Does an optimized language model say the same wherever people run it: greedy tokens against plain ONNX Runtime's.

    python -m tools.bench_tokens                     # SmolLM2, made 4-bit with --genai: 3 minutes on 2 cores
    python -m tools.bench_tokens --optimized OUT     # a folder that `catonnx optimize --genai` made

Every prompt is continued by a plain ONNX Runtime session, by onnxruntime-genai and by Optimum's ORTModelForCausalLM
(`pip install "catonnx[dev]"` brings both). Compared are the ids up to the end of the text.

Exit codes: 0 all are the same; 1 one is not, or a package is missing or failed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import catonnx
import models
from catonnx.graph.save import RESULT_MARK
from catonnx.runtime.text import TokenStream
from tools.greedy import WAYS, end_ids, plain, until_end
from tools.machine import surroundings
from tools.tables import Row, all_well, attempt, markdown, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "tokens.json"

PROMPTS = (
    "The most important thing about the ocean is",
    "In 1969, three astronauts",
    "def fibonacci(n):\n    ",
    "The difference between a cat and a dog is that",
    "Once upon a time, in a small village by the sea,",
)
RECIPE = catonnx.Recipe(samples=8)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.optimized
        if folder is None:
            folder = Path(scratch) / "out"
            catonnx.optimize(options.model or models.path("smollm2"), folder, RECIPE, genai=True)
        rows = measure(folder, options.tokens)
        recipe = json.loads((folder / RESULT_MARK).read_text(encoding="utf-8"))["recipe"]
    head = surroundings() | {"recipe": recipe}
    head["versions"] |= {name: _version(name) for name in ("onnxruntime-genai", "optimum-onnx", "transformers")}
    write_json(options.json, head | {"tokens": options.tokens, "prompts": PROMPTS}, rows)
    print(markdown(rows))
    return 0 if all_well(rows) else 1


def measure(folder: Path, tokens: int) -> list[Row]:
    """Return a row for every way and prompt.

    Args:
        folder: An optimized model with `genai_config.json`, config and tokenizer.
        tokens: The most of each continuation.
    """
    stream, ends = TokenStream.load(folder), end_ids(folder)
    prompts = [[*stream.prefix, *map(int, stream.encode(prompt))] for prompt in PROMPTS]
    wanted = [until_end(ids, ends) for ids in plain(folder, prompts, tokens)]
    rows = []
    for name, way in WAYS.items():
        rows += attempt(
            name,
            "greedy tokens",
            lambda name=name, way=way: compared(  # type: ignore[misc]
                name, wanted, [until_end(ids, ends) for ids in way(folder, prompts, tokens)]
            ),
        )
    return rows


def compared(name: str, wanted: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> list[Row]:
    """Return a row for every prompt: how far a continuation is plain ONNX Runtime's."""
    rows = []
    for prompt, one, other in zip(PROMPTS, wanted, written, strict=True):
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
        shown = f"{same} of {max(len(one), len(other))} tokens are the same"
        values = {"plain": list(one), "ids": list(other)}
        rows.append(Row(name, prompt.split("\n")[0], shown, "identical", list(one) == list(other) != [], values))
    return rows


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_tokens", description="Compare greedy tokens; see the file's first lines."
    )
    parser.add_argument("--optimized", type=Path, metavar="OUT", help="a folder made with --genai (default: make one)")
    parser.add_argument("--model", type=Path, help="folder of another language model with cache and tokenizer")
    parser.add_argument("--tokens", type=int, default=64, help="the most of each continuation (default 64)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the JSON goes (default tools/results/)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
