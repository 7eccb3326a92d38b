"""The command line: what it shows, what it writes, and with which code it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import catonnx
from catonnx.commands.app import app
from catonnx.errors import CatonnxError

QUICK = ("--samples", "4", "--seq-len", "32")
ERRORS = sorted(error.exit_code for error in CatonnxError.__subclasses__() if error.__module__.startswith("catonnx"))


def catonnx_(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def optimized(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Return a folder with the output, its plan and its report, and what the command said."""
    folder = tmp_path_factory.mktemp("cli")
    result = catonnx_(
        *("optimize", tiny_llama, "-o", folder / "out", *QUICK),
        *("--report-json", folder / "report.json", "--save-plan", folder / "plan.npz"),
    )
    assert result.exit_code == 0, result.output
    return folder, result


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 60, encoding="utf-8")
    return path


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


def test_every_option_reaches_the_recipe(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    wanted = {
        "scheme": "w4a4",
        "group_size": None,
        "transform": "cat",
        "block_size": 8,
        "hadamard_size": 16,
        "permute": True,
        "rotate": True,
        "refine": False,
        "online": "none",
        "max_overhead": 0.5,
        "caches": "exact",
        "rounding": "nearest",
        "damping": 0.2,
        "correct_bias": True,
        "scales": "positive",
        "activations": "dynamic",
        "activation_range": "symmetric",
        "activation_group_size": 32,
        "clip": 0.9,
        "w8": ["*q_proj*"],
        "keep_8bit": 1,
        "target_bits": None,
        "calibration": str(text),
        "samples": 3,
        "seq_len": 24,
        "form": "qdq",
        "accuracy_level": 0,
        "include": ["*proj*"],
        "exclude": ["*k_proj*", "*v_proj*"],
        "lm_head": True,
        "tied_embeddings": None,
        "provider": "cpu",
        "seed": 7,
    }
    arguments: list[object] = []
    for name, value in wanted.items():
        if name in ("target_bits", "refine", "tied_embeddings"):
            continue  # the first excludes keep_8bit, the second needs torch, the last a tied model
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(option)
        else:
            values = value if isinstance(value, list) else ["channel" if value is None else value]
            arguments += [part for item in values for part in (option, item)]
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "catonnx.json").read_text())["recipe"] == wanted


def test_a_saved_plan_makes_the_same_model(optimized: tuple[Path, Result], tiny_llama: Path, tmp_path: Path) -> None:
    folder, _ = optimized
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--plan", folder / "plan.npz", *QUICK)
    assert result.exit_code == 0, result.output
    assert not result.stderr
    for name in ("model.onnx", "model.onnx_data"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "out" / name).read_bytes()


def test_a_plan_and_what_it_settles_contradict_each_other(optimized: tuple[Path, Result], tiny_llama: Path) -> None:
    result = catonnx_("inspect", tiny_llama, "--plan", optimized[0] / "plan.npz", "--block-size", "4")
    assert result.exit_code == 2
    assert "--block-size and --plan" in result.stderr


def test_a_plan_for_another_model_is_noted_and_refused_unless_it_fits(
    optimized: tuple[Path, Result], tiny_gpt2: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    plan = optimized[0] / "plan.npz"
    refused = catonnx_("optimize", tiny_gpt2, "-o", tmp_path / "out", "--plan", plan, *QUICK)
    assert refused.exit_code == 2
    assert "another model" in refused.stderr
    assert "error: the plan is for 12 sites" in refused.stderr
    # A few bytes behind the end that protobuf reads as an unknown field: another file, the same graph.
    (tmp_path / "model.onnx").write_bytes((tiny_llama / "model.onnx").read_bytes() + b"\xf8\x3f\x01")
    fits = catonnx_("inspect", tmp_path / "model.onnx", "--plan", plan)
    assert fits.exit_code == 0, fits.output
    assert fits.stderr.startswith("note: the plan was made for another model")


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


@pytest.mark.parametrize(
    "arguments", [("inspect", "MODEL"), ("inspect", "MODEL", "--runtime"), ("optimize", "MODEL", "-o", "OUT", *QUICK)]
)
def test_json_to_stdout_stands_alone(arguments: tuple[str, ...], tiny_llama: Path, tmp_path: Path) -> None:
    places = {"MODEL": tiny_llama, "OUT": tmp_path / "out"}
    result = catonnx_(*(places.get(argument, argument) for argument in arguments), "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)
    assert not (Path.cwd() / "-").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "OUT", "--json", "OUT/model.onnx"),
        ("report", "OUT", "--html", "OUT/model.onnx"),
        ("report", "OUT", "--json", "OUT/model.onnx_data"),
        ("evaluate", "OUT", "--text", "TEXT", "--json", "OUT/config.json"),
        ("evaluate", "OUT", "--text", "TEXT", "--json", "TEXT"),
        ("compare", "MODEL", "OUT", "--text", "TEXT", "--json", "OUT/tokenizer.json"),
    ],
)
def test_nothing_that_is_read_is_replaced(
    arguments: tuple[str, ...], optimized: tuple[Path, Result], tiny_llama: Path, text: Path
) -> None:
    places = {"MODEL": tiny_llama, "OUT": optimized[0] / "out", "TEXT": text}

    def spelled(argument: str) -> str:
        first, slash, rest = argument.partition("/")
        return f"{places.get(first, first)}{slash}{rest}"

    before = {path: path.read_bytes() for path in (text, *places["OUT"].iterdir())}
    result = catonnx_(*map(spelled, arguments))
    assert result.exit_code == 6, result.output
    assert "would replace a file of what is read" in result.stderr
    assert {path: path.read_bytes() for path in (text, *places["OUT"].iterdir())} == before


@pytest.mark.parametrize("option", ["--save-plan", "--report-html"])
def test_only_json_goes_to_stdout(option: str, tiny_llama: Path, tmp_path: Path) -> None:
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", option, "-")
    assert (result.exit_code, (tmp_path / "out").exists()) == (6, False)
    assert "only JSON can go to stdout" in result.stderr


def test_two_files_have_two_places(tiny_llama: Path, tmp_path: Path) -> None:
    same = tmp_path / "one"
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--json", same, "--save-plan", same)
    assert (result.exit_code, (tmp_path / "out").exists()) == (2, False)
    assert "two files" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_stdout_that_takes_nothing_is_an_error_of_output(tiny_llama: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "catonnx", "inspect", str(tiny_llama)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert done.stderr.startswith("error: nothing can be written to stdout")


def test_a_reader_that_has_seen_enough_is_no_error(tiny_llama: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "catonnx", "inspect", str(tiny_llama)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_target_and_a_recipe_file_reach_the_report(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('target = "cpu"\nsamples = 2\nseq-len = 16\nlm_head = true\n')
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--recipe", tmp_path / "r.toml", "--json", "-")
    assert result.exit_code == 0, result.output
    recipe = json.loads(result.stdout)["recipe"]
    wanted = {"form": "nbits", "scheme": "w4a8", "samples": 2, "seq_len": 16, "lm_head": True}
    assert {name: recipe[name] for name in wanted} == wanted


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


@pytest.mark.parametrize(
    ("wishes", "corrected"), [((), True), (("--rounding", "sequential"), False), (("--scheme", "float"), False)]
)
def test_the_best_preset_goes_with_other_wishes(
    wishes: tuple[str, ...], corrected: bool, tiny_llama: Path, tmp_path: Path
) -> None:
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--preset", "best", *wishes, *QUICK)
    assert result.exit_code == 0, result.output
    recipe = json.loads((tmp_path / "out" / "catonnx.json").read_text())["recipe"]
    assert recipe["correct_bias"] is corrected
    assert recipe["rounding"] == (wishes[1] if "sequential" in wishes else "gptq")


def test_refusals_name_options_and_not_fields(tiny_llama: Path, tmp_path: Path) -> None:
    wishes = ("--scheme", "w4a8", "--form", "integer", "--group-size", "32")
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", *wishes)
    assert "choose --group-size channel" in result.stderr
    assert "group_size" not in result.stderr


@pytest.mark.parametrize(
    ("content", "typed", "said"),
    [
        ("sample_count = 3", (), "a recipe has no 'sample_count'"),
        ("group_sizes = 3", (), "did you mean group_size?"),
        ("group_size = 'token'", (), "group_size is 'token' ("),
        ("group_size = 'token'", ("--group-size", "32"), "group_size is 'token' ("),
        ("max_overhead = 'much'", (), "max_overhead is 'much' ("),
        ("group_size = 17", (), "group_size is 17;"),
        ("group_size = 17", ("--group-size", "32", "--block-size", "0"), "--block-size is 0;"),
        ("form = 'integer'\nscheme = 'w4a8'", ("--group-size", "32"), "choose --group-size channel"),
        ("form = 'integer'\nscheme = 'w4a8'\ngroup_size = 32", (), "choose group_size channel"),
        ("activation_range = 'symmetric'", ("--scheme", "w4a16"), "error: activation_range symmetric says"),
        ("scheme = 'w4a16'", ("--activation-range", "symmetric"), "error: --activation-range symmetric says"),
    ],
)
@pytest.mark.parametrize("command", ["optimize", "inspect"])
def test_what_stands_in_a_recipe_file_is_told_as_it_stands_there(
    command: str, content: str, typed: tuple[str, ...], said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(content)
    place = ("-o", tmp_path / "out") if command == "optimize" else ()
    result = catonnx_(command, tiny_llama, *place, "--recipe", file, *typed)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert (str(file) in result.stderr) == ("recipe has no" in said or "did you mean" in said or said.endswith("("))


@pytest.mark.parametrize(
    ("name", "on"), [("--lm-head", ("--recipe", "FILE")), ("--correct-bias", ("--preset", "best", "--samples", "4"))]
)
def test_what_is_typed_off_is_off(name: str, on: tuple[str, ...], tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("lm_head = true")
    words = [str(file) if word == "FILE" else word for word in on]
    found = []
    for typed in ((), (name.replace("--", "--no-"),)):
        result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--force", *words, *typed, *QUICK)
        assert result.exit_code == 0, result.output
        report = json.loads((tmp_path / "out" / "catonnx.json").read_text())
        found.append(report["recipe"][name.removeprefix("--").replace("-", "_")])
    assert found == [True, False]


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


@pytest.mark.parametrize("option", ["--clip", "--damping"])
def test_zero_is_a_wish(option: str, tiny_llama: Path, tmp_path: Path) -> None:
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--scheme", "w4a4", option, "0", *QUICK)
    if option == "--clip":
        assert (result.exit_code, "clip is 0.0" in result.stderr) == (2, True)
    else:
        assert json.loads((tmp_path / "out" / "catonnx.json").read_text())["recipe"]["damping"] == 0
