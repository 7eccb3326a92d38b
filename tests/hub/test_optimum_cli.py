"""`optimum-cli export catonnx` and `optimum-cli catonnx` with the real Optimum."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from catonnx.commands.app import app
from tests.hub.optimum_cli import MAKE_LLAMA, answer, optimum_cli, python
from tests.small_models import QUICK, snapshot

pytest.importorskip("optimum.commands", reason="pip install optimum-onnx")

TASK = ("--task", "text-generation-with-past")

USE_AS_DECODER = """
import json, sys
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer, pipeline
from tools.greedy import by_optimum, plain

from pathlib import Path

folder = Path(sys.argv[1])
model, tokenizer = ORTModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
prompts = [[256, 72, 105, 40], [256, 7]]
(text,) = pipeline("text-generation", model=model, tokenizer=tokenizer)("hello", max_new_tokens=8, do_sample=False)
written = model.generate(**tokenizer("hello", return_tensors="pt"), max_new_tokens=8, do_sample=False)[0]
told = tokenizer.decode(written, skip_special_tokens=True)
print(json.dumps({
    "plain": plain(folder, prompts, 12), "optimum": by_optimum(folder, prompts, 12),
    "text": text["generated_text"], "told": told,
}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama as transformers saves it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    done = python(MAKE_LLAMA, folder / "llama", scratch=folder)
    assert done.returncode == 0, done.stderr
    return folder / "llama"


def test_export_and_optimize_in_one_go(checkpoint: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "new" / "out", tmp_path / "float"
    done = optimum_cli(
        *("export", "catonnx", "--model", checkpoint, *TASK, out),
        *("--scheme", "w4a8", "--genai", "--keep-export", kept, *QUICK),
        scratch=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "opens the folder" in done.stdout
    made = {path.name for path in out.iterdir()}
    assert made == {path.name for path in kept.iterdir()} | {"model.onnx_data", "catonnx.json", "genai_config.json"}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= made
    assert json.loads((out / "catonnx.json").read_text())["recipe"]["scheme"] == "w4a8"
    said = answer(USE_AS_DECODER, out, scratch=tmp_path)
    assert said["plain"] == said["optimum"]
    assert said["told"] == said["text"]
    assert len(said["text"]) > len("hello")


def test_nothing_but_the_result_stays(checkpoint: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    done = optimum_cli("export", "catonnx", "-m", checkpoint, *TASK, work / "out", *QUICK, scratch=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in work.iterdir()] == ["out"]
    assert "note: the float export is gone; --keep-export DIR keeps it" in done.stderr
    # Where the result cannot be had nobody even looks for the checkpoint.
    before = snapshot(work)
    for refused, code in ((("out",), 6), (("other", "--form", "integer"), 2), (("other", "--keep-export", "out"), 6)):
        again = ("export", "catonnx", "-m", "no checkpoint", *TASK, *refused)
        done = optimum_cli(*again, scratch=work)
        assert done.returncode == code, done.stderr
        assert "error: " in done.stderr
        assert "Traceback" not in done.stderr
        shutil.rmtree(work / "plugin", ignore_errors=True)
        assert snapshot(work) == before


def test_an_export_is_optimized(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    patterns = ("--include", "*proj*", "--exclude", "*q_proj*", "--exclude", "*k_proj*")
    done = optimum_cli("catonnx", tiny_llama, "-o", out, *patterns, "--group-size", "16", *QUICK, scratch=tmp_path)
    assert done.returncode == 0, done.stderr
    recipe = json.loads((out / "catonnx.json").read_text())["recipe"]
    assert (recipe["include"], recipe["exclude"]) == (["*proj*"], ["*q_proj*", "*k_proj*"])
    assert (recipe["group_size"], recipe["samples"]) == (16, int(QUICK[1]))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("catonnx", "nothing", "-o", "out"), 3, "there is no such model"),
        (("catonnx", ".", "-o", "out"), 3, "holds no model.onnx (.onnx files: none)"),
        (("catonnx", "several", "-o", "out"), 3, "--file-name"),
        (("catonnx", "several", "-o", "out", "--scheme", "w3"), 2, "invalid choice"),
        (("export", "catonnx", "-m", "nothing", *TASK, "out"), 3, "Optimum cannot export this model"),
    ],
)
def test_failures_end_with_the_codes_of_catonnx(
    arguments: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "several").mkdir()
    for name in ("encoder_model.onnx", "decoder_model.onnx"):
        (tmp_path / "several" / name).write_bytes(b"x")
    done = optimum_cli(*arguments, scratch=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_option_of_optimize_is_there(tmp_path: Path) -> None:
    ours = CliRunner().invoke(app, ["optimize", "--help"], env={"COLUMNS": "300"}).stdout
    wanted = set(re.findall(r"--[a-z0-9][a-z0-9-]+", ours)) - {"--out", "--help"}
    assert {"--scheme", "--quiet", "--w8", "--genai"} <= wanted
    for command in (("catonnx",), ("export", "catonnx")):
        done = optimum_cli(*command, "--help", scratch=tmp_path)
        assert done.returncode == 0, done.stderr
        assert {word for word in wanted if word not in done.stdout} == set()


def test_optimum_goes_on_without_catonnx(tmp_path: Path) -> None:
    broken = "import sys\nsys.modules['catonnx.commands.optimize'] = None"
    done = optimum_cli("--help", scratch=tmp_path, before=broken)
    assert done.returncode == 0
    assert "optimum-cli goes on without catonnx: " in done.stderr
    assert "onnxruntime" in done.stdout
    assert "catonnx" not in done.stdout
    assert "catonnx" in optimum_cli("--help", scratch=tmp_path).stdout


def test_an_optimum_without_exporter_is_told_of(tmp_path: Path) -> None:
    # `register_export.py` needs it too, so it is missing only once Optimum has read that.
    missing = "import catonnx.hub.commands as commands\ncommands._exporter = lambda: None"
    done = optimum_cli("export", "catonnx", "-m", "any", "out", scratch=tmp_path, before=missing)
    assert done.returncode == 8
    assert "pip install optimum-onnx" in done.stderr


def test_optimum_starts_as_fast_as_without_catonnx(tmp_path: Path) -> None:
    heavy = {"onnx_ir", "onnx", "scipy", "onnxruntime"}
    load = "import sys\nfrom catonnx.hub.commands import optimum_commands\noptimum_commands()\n"
    done = python(f"{load}print({heavy} & set(sys.modules))", scratch=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "set()"), done.stderr
