"""The command line: what it shows, what it writes, and with which code it ends."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import catonnx
from catonnx.errors import CatonnxError
from tests.small_models import QUICK, catonnx_

ERRORS = sorted(error.exit_code for error in CatonnxError.__subclasses__() if error.__module__.startswith("catonnx"))


def test_version() -> None:
    assert catonnx_("--version").stdout == f"catonnx {catonnx.__version__}\n"


def test_help_lists_every_exit_code() -> None:
    shown = catonnx_("--help").stdout
    assert all(f" {code}  " in shown for code in (0, 1, *ERRORS, 130))


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "catonnx", "--help"]
    timed = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in timed.splitlines()}
    assert "typer" in imported  # the reading of the list works
    assert not imported & {"numpy", "scipy", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tokenizers"}


def test_importing_the_package_imports_nothing() -> None:
    code = "import sys, catonnx; assert not {'numpy', 'onnx', 'typer', 'rich'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_hands_out_the_whole_way() -> None:
    from catonnx.pipeline import optimize

    assert catonnx.optimize is optimize
    assert catonnx.Recipe().scheme == "w4a16"
    assert "Report" in dir(catonnx)
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        catonnx.optimise  # type: ignore[attr-defined]  # noqa: B018


def test_optimize_shows_what_it_did(optimized: tuple[Path, Result]) -> None:
    folder, result = optimized
    for part in ("self_attn/o_proj", "blocks 16", "hadamard 32", "21 of 21", "relative L2", "as deployed"):
        assert part in result.stdout
    for part in ("exact activations", "--lm-head includes it", "present.*.value", "calibrate", "kB on disk", "try it"):
        assert part in result.stdout
    assert str(folder / "out") in result.stdout.replace("\n", "").replace(" ", "")
    assert not result.stderr


def test_tables_are_plain_and_narrow_where_there_is_no_terminal(optimized: tuple[Path, Result]) -> None:
    lines = optimized[1].stdout.splitlines()
    assert "\x1b" not in optimized[1].stdout
    assert max(map(len, lines)) <= 100
    header = next(line for line in lines if line.startswith("linears"))
    assert header.split() == ["linears", "n", "absorbed", "online", "before", "after", "rounded", "before", "after"]


def test_optimize_writes_model_report_and_plan(optimized: tuple[Path, Result], tiny_llama: Path) -> None:
    folder, _ = optimized
    made = {path.name for path in (folder / "out").iterdir()}
    assert made == {path.name for path in tiny_llama.iterdir()} | {"model.onnx_data", "catonnx.json"}
    report = json.loads((folder / "report.json").read_text())
    assert report == json.loads((folder / "out" / "catonnx.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == ["out", "plan.npz", "report.json"]


def test_quiet_says_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "-q", *QUICK)
    assert (result.exit_code, result.output) == (0, "")


def test_inspect_shows_sites_and_writes_json(tiny_llama: Path, tmp_path: Path) -> None:
    result = catonnx_("inspect", tiny_llama, "--calibration", "self", *QUICK, "--json", tmp_path / "sites.json")
    assert result.exit_code == 0, result.output
    for part in ("64 -> 64, 32, 32", "Mul < MatMul", "tied by 2", "hadamard 32", "C(W)", "/lm_head/MatMul"):
        assert part in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert len(json.loads((tmp_path / "sites.json").read_text())["sites"]) == 12


def test_inspect_of_a_model_without_linears_is_an_answer(tiny_llama: Path) -> None:
    result = catonnx_("inspect", tiny_llama, "--include", "nothing")
    assert result.exit_code == 0
    assert "no linear layer to optimize" in result.stdout
    assert "not named by --include" in result.stdout


@pytest.mark.parametrize("command", ["inspect", "optimize", "evaluate", "doctor", "compare", "report"])
def test_help_has_examples_that_parse(command: str) -> None:
    shown = " ".join(catonnx_(command, "--help").stdout.split())
    examples = re.findall(rf"catonnx ({command}\b[^:]*?)(?= catonnx | Exit codes)", shown.partition("Examples:")[2])
    assert examples
    for example in examples:
        result = catonnx_(*shlex.split(example), "--help")
        assert result.exit_code == 0, example
        # A word that is no option is refused before the help is shown, and so is an option that is none.
        assert "No such option" not in result.output


def test_evaluate_compares_two_models(optimized: tuple[Path, Result], tiny_llama: Path, text: Path) -> None:
    folder, _ = optimized
    file = folder.parent / "figures.json"
    result = catonnx_("evaluate", folder / "out", "--against", tiny_llama, "--text", text, *QUICK, "--json", file)
    assert result.exit_code == 0, result.output
    for part in (
        "4 rows of 32 tokens",
        "perplexity",
        "KL",
        "same most likely token",
        "prefill",
        "decode",
        "size on disk",
    ):
        assert part in result.stdout
    ours, theirs = json.loads(file.read_text())["models"]
    assert ours["against_perplexity"] == theirs["perplexity"]
    assert 0 < ours["kl_nats"] < 1
    assert ours["disk_bytes"] < theirs["disk_bytes"]


def test_evaluate_takes_the_tokenizer_of_the_source_where_there_is_none(
    tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes((tiny_llama / "model.onnx").read_bytes())
    alone = catonnx_("evaluate", tmp_path, "--text", text, *QUICK)
    assert (alone.exit_code, "tokenizer" in alone.stderr) == (5, True)
    both = catonnx_("evaluate", tmp_path, "--against", tiny_llama, "--text", text, *QUICK)
    assert both.exit_code == 0, both.output


def test_evaluate_refuses_a_source_that_reads_other_tokens(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "other")
    tokenizer = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["h"], vocabulary["e"] = vocabulary["e"], vocabulary["h"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = catonnx_("evaluate", tiny_llama, "--against", tmp_path / "other", "--text", text, *QUICK)
    assert result.exit_code == 5, result.output
    assert "different tokens" in result.stderr
    assert "catonnx compare" in result.stderr


def test_models_of_other_kinds_take_feeds(tiny_vit: Path, tmp_path: Path) -> None:
    feeds = tiny_vit / "feeds.npz"
    result = catonnx_("optimize", tiny_vit, "-o", tmp_path / "out", "--calibration", feeds)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "model.onnx").exists()


Command = Callable[[Path, Path], list[object]]


FAILURES: dict[str, tuple[int, Command]] = {
    "no such model": (3, lambda model, out: ["optimize", model / "nothing", "-o", out]),
    "not a model": (3, lambda model, out: ["optimize", model / "config.json", "-o", out]),
    "nothing selected": (4, lambda model, out: ["optimize", model, "-o", out, "--include", "nothing"]),
    "no such text": (5, lambda model, out: ["optimize", model, "-o", out, "--calibration", model / "nothing.txt"]),
    "unknown data": (5, lambda model, out: ["optimize", model, "-o", out, "--calibration", model / "config.json"]),
    "output stands": (6, lambda model, out: ["optimize", model, "-o", out.parent]),
    "output inside": (6, lambda model, _: ["optimize", model, "-o", model / "out"]),
    "no place for json": (6, lambda model, out: ["optimize", model, "-o", out, "--report-json", out / "a" / "b.json"]),
    "no place for plan": (6, lambda model, out: ["optimize", model, "-o", out, "--save-plan", out.parent]),
    "contradiction": (2, lambda model, out: ["optimize", model, "-o", out, "--accuracy-level", "4"]),
    "no plan": (2, lambda model, out: ["optimize", model, "-o", out, "--plan", model / "config.json"]),
    "unknown option": (2, lambda model, out: ["optimize", model, "-o", out, "--fast"]),
    "wrong choice": (2, lambda model, out: ["optimize", model, "-o", out, "--scheme", "w3"]),
    "wrong group": (2, lambda model, out: ["optimize", model, "-o", out, "--group-size", "31"]),
    "no output": (2, lambda model, _: ["optimize", model]),
    "inspect nothing": (3, lambda model, _: ["inspect", model / "nothing"]),
    "evaluate nothing": (3, lambda model, _: ["evaluate", model / "nothing", "--text", model / "config.json"]),
    "evaluate no text": (5, lambda model, _: ["evaluate", model, "--text", model / "nothing.txt"]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_end_with_their_code_and_leave_nothing(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    code, command = FAILURES[name]
    before = {path.name for path in tiny_llama.iterdir()}
    result = catonnx_(*command(tiny_llama, tmp_path / "out"))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    assert result.stderr
    assert not result.stdout
    if not result.stderr.startswith("Usage"):
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())
    assert {path.name for path in tiny_llama.iterdir()} == before


def test_the_process_ends_with_the_code_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "catonnx", "inspect", str(tmp_path / "nothing.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error: there is no such model")


def test_flags_stand_apart_in_the_help() -> None:
    lines = catonnx_("optimize", "--help").stdout.splitlines()
    title = next(index for index, line in enumerate(lines) if "On or off" in line)
    named = {word for line in lines[title:] for word in line.split() if word.startswith("--no-")}
    assert named == {f"--no-{name}" for name in ("permute", "rotate", "refine", "correct-bias", "lm-head", "genai")}
    assert not any("--no-" in line for line in lines[:title])


def test_verbose_shows_the_traceback(tmp_path: Path) -> None:
    result = catonnx_("inspect", tmp_path / "nothing.onnx", "-v")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: there is no such model")


def test_names_that_stdout_cannot_spell_are_escaped(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "модель"
    folder.symlink_to(tiny_llama)
    command = [sys.executable, "-m", "catonnx", "optimize", str(folder), "-o", str(tmp_path / "выход"), *QUICK]
    done = subprocess.run(command, capture_output=True, check=False, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
