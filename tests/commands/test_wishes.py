"""What is typed, what a recipe file says, presets, targets and plans: all of it becomes one recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import Result

from tests.small_models import QUICK, catonnx_


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
        "dtype": "float16",
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


def test_a_target_and_a_recipe_file_reach_the_report(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('target = "cpu"\nsamples = 2\nseq-len = 16\nlm_head = true\n')
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--recipe", tmp_path / "r.toml", "--json", "-")
    assert result.exit_code == 0, result.output
    recipe = json.loads(result.stdout)["recipe"]
    wanted = {"form": "nbits", "scheme": "w4a8", "samples": 2, "seq_len": 16, "lm_head": True}
    assert {name: recipe[name] for name in wanted} == wanted


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


@pytest.mark.parametrize("option", ["--clip", "--damping"])
def test_zero_is_a_wish(option: str, tiny_llama: Path, tmp_path: Path) -> None:
    result = catonnx_("optimize", tiny_llama, "-o", tmp_path / "out", "--scheme", "w4a4", option, "0", *QUICK)
    if option == "--clip":
        assert (result.exit_code, "clip is 0.0" in result.stderr) == (2, True)
    else:
        assert json.loads((tmp_path / "out" / "catonnx.json").read_text())["recipe"]["damping"] == 0
