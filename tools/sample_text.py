"""Let language models go on from the same words, greedily: a look at what the numbers of `catonnx evaluate` mean.

    python tools/sample_text.py SOURCE [OPTIMIZED ...] --prompt "Once upon a time" --tokens 48

Each argument is a folder with `model.onnx` and `tokenizer.json`, a text-generation export with a key-value cache. Only
onnxruntime and tokenizers are used, and not catonnx: what it writes runs wherever the source ran.
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

PAST, PRESENT = "past_key_values.", "present."
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after the prompt, as token ids and text, and how many tokens it wrote a second."""

    ids: tuple[int, ...]
    text: str
    speed: float


def main() -> None:
    """Run the command line; exits with 2 when a folder is not such an export."""
    parser = argparse.ArgumentParser(description="Let language models go on from the same words, greedily.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="model.onnx and tokenizer.json")
    parser.add_argument("--prompt", default="The most important thing about the ocean is", help="words to go on from")
    parser.add_argument("--tokens", type=int, default=48, help="the most tokens to write (default 48)")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        missing = [name for name in ("model.onnx", "tokenizer.json") if not (folder / name).is_file()]
        if missing:
            parser.error(f"{folder} has no {' and no '.join(missing)}; name a folder with both")
    if arguments.tokens < 1:
        parser.error(f"--tokens is {arguments.tokens}; ask for one at least")
    print(f"prompt: {arguments.prompt}")
    source: Continuation | None = None
    for folder in arguments.folders:
        written = go_on(folder, arguments.prompt, arguments.tokens)
        print(f"\n{folder} ({written.speed:.0f} tokens/s{compared(written, source)})")
        print(textwrap.fill(written.text.strip(), width=100, initial_indent="  ", subsequent_indent="  "))
        source = source or written


def go_on(folder: Path, prompt: str, tokens: int) -> Continuation:
    """Write at most `tokens` tokens after `prompt` with the model in `folder`; less where it ends its text."""
    tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos, ends = special_tokens(folder)
    prompt_ids = [*bos, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    next_ids = greedy(session, prompt_ids)
    first = next(next_ids)  # apart from the time: it reads the whole prompt
    start = time.perf_counter()
    rest = [*islice(next_ids, tokens - 1)]
    speed = len(rest) / (time.perf_counter() - start)
    ids = tuple(takewhile(lambda token: token not in ends, [first, *rest]))
    return Continuation(ids, tokenizer.decode(list(ids)), speed)


def special_tokens(folder: Path) -> tuple[list[int], set[int]]:
    """Return the ids that config.json puts before a text, and those that end it."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    bos, eos = config.get("bos_token_id"), config.get("eos_token_id")
    return [] if bos is None else [bos], set(eos if isinstance(eos, list) else [eos])


def greedy(session: onnxruntime.InferenceSession, prompt_ids: list[int]) -> Iterator[int]:
    """Yield the likeliest next token after `prompt_ids`, again and again, each fed back to the model."""
    inputs = {item.name: item for item in session.get_inputs()}
    cache = {name: empty_cache(item) for name, item in inputs.items() if name.startswith(PAST)}
    wanted = ["logits", *(PRESENT + name.removeprefix(PAST) for name in cache)]
    new, length = list(prompt_ids), 0
    while True:
        known = {
            "input_ids": np.array([new]),
            "attention_mask": np.ones((1, length + len(new)), np.int64),
            "position_ids": np.arange(length, length + len(new))[None],
        }
        feeds = {name: array for name, array in known.items() if name in inputs} | cache
        logits, *present = session.run(wanted, feeds)
        cache = dict(zip(cache, present, strict=True))
        length += len(new)
        new = [int(logits[0, -1].argmax())]
        yield new[0]


def empty_cache(item: onnxruntime.NodeArg) -> np.ndarray:
    """Return the cache before the first token: [1, heads, 0, width of a head]."""
    _, heads, _, width = item.shape
    return np.zeros((1, heads, 0, width), DTYPES[item.type])


def compared(written: Continuation, source: Continuation | None) -> str:
    """Say how long `written` says the same as `source`, or nothing for the source itself."""
    if source is None:
        return ""
    pairs = zip(written.ids, source.ids, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    longest = max(len(written.ids), len(source.ids))
    return f"; the first {same} of {longest} tokens are the source's"


if __name__ == "__main__":
    main()
