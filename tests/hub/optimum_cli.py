"""`optimum-cli` as if this tree were installed, and what Optimum's users do with what it writes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PLUGIN = ROOT / "catonnx" / "hub" / "register" / "register_catonnx.py"

MAKE_LLAMA = """
import sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from models import tiny, tokens

folder = Path(sys.argv[1])
tiny.llama().save_pretrained(folder)
tokens.write_causal_tokenizer(folder)
PreTrainedTokenizerFast(
    tokenizer_file=str(folder / "tokenizer.json"),
    bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_input_names=["input_ids", "attention_mask"],
).save_pretrained(folder)
"""
"""Writes a checkpoint of PyTorch, which is what is exported."""


def environment(folder: Path) -> dict[str, str]:
    """Return variables with which a process finds this tree, and our plug-in where it is not installed anyway."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if importlib.util.find_spec("optimum.commands.register.register_catonnx") is None:
        place = folder / "plugin" / "optimum" / "commands" / "register"
        place.mkdir(parents=True, exist_ok=True)
        (place / PLUGIN.name).write_bytes(PLUGIN.read_bytes())
        paths.append(str(folder / "plugin"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def python(code: str, *arguments: object, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=scratch, env=environment(scratch), capture_output=True, text=True, check=False)


def answer(code: str, *arguments: object, scratch: Path) -> Any:
    """Run Python code and return the JSON in the last line that it prints."""
    done = python(code, *arguments, scratch=scratch)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def optimum_cli(*arguments: object, scratch: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run `optimum-cli`, after some code."""
    code = f"{before}\nfrom optimum.commands.optimum_cli import main\nimport sys\nsys.argv[0] = 'optimum-cli'\nmain()"
    return python(code, *arguments, scratch=scratch)
