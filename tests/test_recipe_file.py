"""Recipes in TOML: what they say reaches the recipe, and what they cannot say is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catonnx.commands.wishes import wishes_of
from catonnx.errors import UsageError
from catonnx.recipe import Recipe
from catonnx.recipe.file import read_recipe
from catonnx.recipe.presets import PRESETS, TARGETS, settled


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def recipe(folder: Path, text: str, **typed: Any) -> Recipe:
    """Return the recipe of a file and of what was typed beside it."""
    return Recipe(**settled(wishes_of({"recipe_file": written(folder, text), **typed})))


def test_every_field_can_be_said(tmp_path: Path) -> None:
    said: dict[str, Any] = {
        "scheme": "w4a8",
        "group_size": 64,
        "transform": "wush",
        "block_size": 8,
        "hadamard_size": 16,
        "permute": True,
        "rotate": True,
        "refine": True,
        "online": "none",
        "max_overhead": 0.5,
        "caches": "exact",
        "rounding": "gptq",
        "damping": 0.1,
        "correct_bias": True,
        "scales": "positive",
        "activations": "static",
        "activation_range": "symmetric",
        "activation_group_size": None,
        "clip": 0.9,
        "w8": ("*a*",),
        "keep_8bit": 2,
        "target_bits": None,
        "calibration": ("self", str(tmp_path / "a.txt")),
        "samples": 3,
        "seq_len": 17,
        "form": "qdq",
        "accuracy_level": 0,
        "include": ("x", "y"),
        "exclude": ("z",),
        "lm_head": True,
        "tied_embeddings": None,
        "dtype": "float16",
        "provider": "cuda",
        "seed": 5,
    }
    assert said.keys() == {field.name for field in dataclasses.fields(Recipe)}

    def spelled(name: str, value: object) -> str:
        if name == "calibration":
            return '["self", "a.txt"]'
        if isinstance(value, tuple):
            return str(list(value)).replace("'", '"')
        return str(value).lower() if isinstance(value, bool | int | float) else f'"{value}"'

    lines = [f"{name} = {spelled(name, value)}" for name, value in said.items() if value is not None]
    lines.append('activation-group-size = "token"')
    assert recipe(tmp_path, "\n".join(lines)) == Recipe(**said)
    assert recipe(tmp_path, "target_bits = 5\ntied_embeddings = 8") == Recipe(target_bits=5.0, tied_embeddings=8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ('group-size = "channel"', {"group_size": None}),
        ('max_overhead = "5%"', {"max_overhead": 0.05}),
        ("damping = 1", {"damping": 1.0}),
        ('calibration = "self"', {"calibration": "self"}),
        ('target = "cpu"\nlm_head = true', {**TARGETS["cpu"], "lm_head": True}),
        ('target = "cuda"', {**TARGETS["cuda"], "dtype": "float16"}),
        ('preset = "best"', dict(PRESETS["best"])),
        ('preset = "best"\nrounding = "sequential"', {"rounding": "sequential"}),
        ('form = "integer"\nscheme = "w4a8"', {"form": "integer", "scheme": "w4a8", "group_size": None}),
    ],
)
def test_what_a_file_means(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    assert recipe(tmp_path, text) == Recipe(**expected)


def test_what_is_typed_goes_before_the_file_and_both_before_target_and_preset(tmp_path: Path) -> None:
    text = 'preset = "best"\ntarget = "cpu"\nscheme = "w4a16"\nrounding = "nearest"'
    assert recipe(tmp_path, text, rounding="mse", target="portable") == Recipe(correct_bias=True)


FLAGS = ("permute", "rotate", "refine", "correct_bias", "lm_head")


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_that_a_file_switches_on_can_be_typed_off_and_the_other_way_round(name: str, tmp_path: Path) -> None:
    assert getattr(recipe(tmp_path, f"{name} = true"), name) is True
    assert getattr(recipe(tmp_path, f"{name} = true", **{name: False}), name) is False
    assert getattr(recipe(tmp_path, f"{name} = false", **{name: True}), name) is True
    assert getattr(recipe(tmp_path, 'preset = "best"', **{name: False}), name) is False


def test_every_flag_of_a_recipe_is_among_them() -> None:
    assert {field.name for field in dataclasses.fields(Recipe) if field.default is False} == set(FLAGS)


def test_a_calibration_file_lies_beside_the_recipe(tmp_path: Path) -> None:
    said = read_recipe(written(tmp_path, 'calibration = "texts/mine.txt"'))
    assert said == {"calibration": str(tmp_path / "texts" / "mine.txt")}
    absolute = tmp_path / "x.txt"
    assert read_recipe(written(tmp_path, f'calibration = "{absolute}"')) == {"calibration": str(absolute)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('scheme = "w4a8', "this recipe is no TOML"),
        ("\xff", "this recipe is no TOML"),
        ("sheme = 'w4a8'", "a recipe has no 'sheme'.*did you mean scheme?"),
        ("qqqqqq = 1", "a recipe has no 'qqqqqq'.*a recipe has: preset, target, scheme"),
        ("samples = '8'", "samples is '8'.*it must be a whole number"),
        ("samples = true", "samples is True.*it must be a whole number"),
        ("lm_head = 1", "lm_head is 1.*it must be true or false"),
        ("w8 = '*'", "w8 is .*it must be a list of texts"),
        ("w8 = [1]", "w8 is .*it must be a list of texts"),
        ("damping = 'much'", "damping is 'much'.*it must be a number"),
        ("calibration = 3", "it must be a list of texts or a text"),
        ("max_overhead = 'much'", "max_overhead is 'much'"),
        ("group_size = 'token'", "group_size is 'token'.*it must be a whole number"),
        ("preset = 'slow'", "preset is 'slow'.*choose one of fast, balanced, best"),
        ("target = ['cpu']", "target is .*choose one of portable, cpu, cuda"),
        ("[scheme]\nx = 1", "scheme is {'x': 1}.*it must be a text"),
        ("seq_len = 3\nseq-len = 3", "the recipe says seq_len twice"),
        ("scheme = 'w2'", "scheme is 'w2'"),
        ("damping = 1" + "0" * 400, "damping is 1000"),
        ("samples = " + "9" * 5000, "this recipe is no TOML"),
        ("x = " + "[" * 5000, "this recipe is no TOML"),
        ("samples = 999999999999999999999", "more than any machine calibrates on"),
        ("seed = -1", "seed is -1"),
        ('calibration = "a\\u0000b.txt"', "calibration names no file"),
    ],
)
def test_what_no_recipe_says(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    if text == "\xff":
        path.write_bytes(b"\xff\xff")
    with pytest.raises(UsageError, match=message):
        Recipe(**settled(wishes_of({"recipe_file": path})))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"include": "abc"}, "include is 'abc'; it must be a list of texts"),
        ({"exclude": [1]}, "exclude is .*it must be a list of texts"),
        ({"w8": None}, "w8 is None; it must be a list of texts"),
        ({"calibration": Path("a.txt")}, "calibration is .*it must be a list of texts or a text"),
        ({"lm_head": "no"}, "lm_head is 'no'; it must be true or false"),
        ({"lm_head": 1}, "lm_head is 1; it must be true or false"),
        ({"samples": True}, "samples is True; it must be a whole number"),
        ({"samples": 8.0}, "samples is 8.0; it must be a whole number"),
        ({"samples": np.int64(8)}, "samples is .*it must be a whole number"),
        ({"samples": None}, "samples is None; it must be a whole number"),
        ({"group_size": "channel"}, "group_size is 'channel'; it must be a whole number"),
        ({"max_overhead": "5%"}, "max_overhead is '5%'; it must be a number"),
        ({"damping": None}, "damping is None; it must be a number"),
        ({"tied_embeddings": True}, "tied_embeddings is True; it must be a whole number"),
        ({"scheme": 4}, "scheme is 4; it must be a text"),
    ],
)
def test_values_of_other_types_are_refused_in_python_too(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**fields)


def test_every_field_has_a_type_that_is_checked() -> None:
    for field in dataclasses.fields(Recipe):
        with pytest.raises(UsageError, match=f"{field.name} is .*it must be"):
            Recipe(**{field.name: {}})  # type: ignore[arg-type]


def test_lists_and_whole_numbers_are_taken_for_what_they_mean() -> None:
    fields: dict[str, Any] = {"include": ["a", "b"], "calibration": ["self", "a.txt"], "damping": 1}
    taken = Recipe(**fields)
    assert (taken.include, taken.calibration) == (("a", "b"), ("self", "a.txt"))
    assert type(taken.damping) is float
    assert hash(taken) == hash(Recipe(include=("a", "b"), calibration=("self", "a.txt"), damping=1.0))


@pytest.mark.parametrize("names", [{"preset": "slow"}, {"target": "moon"}])
def test_names_that_nobody_knows_are_refused_in_python_too(names: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="choose one of"):
        settled(names)


def test_there_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe can be read"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="no recipe can be read"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    "names", [{"target": target} for target in TARGETS] + [{"preset": preset} for preset in PRESETS]
)
def test_every_name_is_a_recipe(names: dict[str, str]) -> None:
    assert Recipe(**settled(names))
