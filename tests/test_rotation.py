"""`--rotate` on exported models: the same function, every linear rounded, and no channel of the stream stands out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import catonnx
import models
from catonnx import Recipe
from catonnx.analysis import analyse
from catonnx.errors import UsageError
from catonnx.graph import load
from catonnx.graph.outputs import with_outputs
from catonnx.graph.save import write_beside
from catonnx.math.sqnr import concentration_rows
from catonnx.planning.planfile import load_plan, save_plan
from models.dialects import calibration, file_of
from tests.small_models import catonnx_, first_sample, language_feeds, relative, run

TURNED = [
    "tiny-llama-opset23",
    "tiny-llama-script",
    "tiny-qwen2",
    "tiny-mistral",
    "tiny-opt",
    "tiny-gpt2",
    "tiny-gpt2-ort",
    "tiny-gpt-neox",
    "tiny-vit",
    "tiny-whisper/decoder_model",
    "tiny-t5/decoder_model",
]
REFUSED = {
    "tiny-bert": "what the norm before .* scales is also read by Add",
    "tiny-gemma2": "the constant vector of Mul .*post_attention_layernorm.* scales channels that go into the stream",
    "tiny-t5/encoder_model": "last_hidden_state is an output of the graph",
}
RECIPE = Recipe(samples=2, seq_len=32, rotate=True)


def recipe(name: str, folder: Path) -> Recipe:
    """Return a recipe that calibrates on what a model can read."""
    text = folder / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 20, encoding="utf-8")
    return dataclasses.replace(RECIPE, calibration=calibration(file_of(name), text))


@pytest.mark.parametrize("name", TURNED)
def test_the_function_stays_and_every_linear_is_rounded(name: str, tmp_path: Path) -> None:
    wanted = recipe(name, tmp_path)
    plain = analyse(load.load(file_of(name)), dataclasses.replace(wanted, rotate=False))
    report = catonnx.optimize(file_of(name), tmp_path / "out", wanted)
    assert report.verification["transform_relative_l2"] <= 1e-4  # measured: 3e-7 to 2e-6
    assert [row.linears for row in report.sites] == [
        tuple(linear.name for linear in site.selected) for site in plain.sites
    ]
    # What the graph takes up is no less than before: the norms still take a scaling.
    absorbed = [bool(plain.absorptions[site.name].width) for site in plain.sites]
    assert [bool(row.absorbed) for row in report.sites] == absorbed
    assert report.verification["fused"] == sum(len(row.linears) for row in report.sites)
    assert any("channels from" in line for line in report.turned)
    assert plain.turned == ()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_turned_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"cannot be turned: {REFUSED[name]}"):
        catonnx.optimize(file_of(name), tmp_path / "out", recipe(name, tmp_path))
    assert not (tmp_path / "out").exists()


def test_where_one_of_two_streams_turns_the_other_is_told_of(tmp_path: Path) -> None:
    report = catonnx.optimize(file_of("tiny-clip"), tmp_path / "out", recipe("tiny-clip", tmp_path))
    assert report.verification["transform_relative_l2"] <= 1e-4
    assert any(line.startswith("48 channels from") for line in report.turned)
    assert any(line.startswith("not 80 channels") and "LayerNormalization" in line for line in report.turned)


@pytest.mark.parametrize("name", ["tiny-llama-script", "tiny-gpt2", "tiny-vit"])
def test_outlier_channels_are_spread(name: str, tmp_path: Path) -> None:
    feeds = file_of(name).parent / "feeds.npz"
    sample = first_sample(feeds) if feeds.exists() else language_feeds(file_of(name))
    before, after = (norm_outputs(name, wanted, sample, tmp_path) for wanted in (Recipe(), Recipe(rotate=True)))
    assert len(before) == len(after) > 3
    for old, new in zip(before, after, strict=True):
        # Planted in the norms of these models; the largest channel of 64 against the mean of all.
        assert peak(new) < 0.5 * peak(old)
        assert concentration_rows(new) > concentration_rows(old)


def peak(rows: np.ndarray) -> float:
    """Return the energy of the strongest channel as a multiple of the mean."""
    energy = (rows.astype(np.float64) ** 2).mean(axis=0)
    return float(energy.max() / energy.mean())


def norm_outputs(name: str, wanted: Recipe, sample: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    """Return what the linears behind norms read, with the norm's scale, after a model was opened."""
    opened = analyse(load.load(file_of(name)), wanted)
    sites = [site for site in opened.sites if opened.absorptions[site.name].width == 1 and site.width == 64]
    path = folder / f"{wanted.rotate}.onnx"
    write_beside(with_outputs(opened.model, {site.name: site.dtype for site in sites}), path)
    outputs = run(path, sample)
    return [outputs[site.name].reshape(-1, site.width) for site in sites]


def test_the_command_line_says_what_was_turned(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = catonnx_(
        "optimize", models.path("tiny-llama-script"), "-o", out, "--rotate", "--samples", 2, "--seq-len", 32
    )
    assert result.exit_code == 0, result.output
    assert "64 channels from" in " ".join(result.output.split())
    refused = catonnx_("optimize", models.path("tiny-bert"), "-o", tmp_path / "bert", "--rotate")
    assert refused.exit_code == UsageError.exit_code


def test_a_plan_brings_its_rotation_along(tmp_path: Path) -> None:
    model, plan = models.path("tiny-llama-script"), tmp_path / "plan.npz"
    options = ["--samples", 2, "--seq-len", 32]
    first = catonnx_("optimize", model, "-o", tmp_path / "a", "--rotate", "--seed", 7, "--save-plan", plan, *options)
    assert first.exit_code == 0, first.output
    assert dict(load_plan(plan).shaping)["seed"] == 7
    second = catonnx_("optimize", model, "-o", tmp_path / "b", "--plan", plan, *options)
    assert second.exit_code == 0, second.output
    sample = language_feeds(model)
    one, other = (run(tmp_path / name, sample)["logits"] for name in "ab")
    assert relative(one, other) < 1e-6
    report = catonnx.optimize(model, tmp_path / "c", Recipe(samples=2, seq_len=32))
    save_plan(plan, report.plan, report.digest, report.recipe)
    assert "seed" not in load_plan(plan).shaping


def test_a_model_of_ours_is_still_told_apart(tmp_path: Path) -> None:
    catonnx_("optimize", models.path("tiny-llama-script"), "-o", tmp_path / "a", "--samples", 2, "--seq-len", 32)
    again = catonnx_("optimize", tmp_path / "a", "-o", tmp_path / "b", "--rotate")
    assert again.exit_code == 4
    assert "made this model already" in " ".join(again.output.split())


def test_a_turned_table_is_not_shared() -> None:
    with pytest.raises(UsageError, match="rotate gives embedding and output head tables of their own"):
        Recipe(rotate=True, tied_embeddings=8)
