"""Plans in files: what comes back, what is refused, and that applying one again gives the same model."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catonnx.errors import OutputError, UsageError
from catonnx.math.factors import Blocks, Hadamard, Scale
from catonnx.pipeline import optimize
from catonnx.planning.planfile import SHAPING, load_plan, save_plan
from catonnx.planning.siteplan import Plan, SitePlan
from catonnx.recipe import Recipe

QUICK = Recipe(samples=4, seq_len=32)


@pytest.fixture
def plan() -> Plan:
    generator = np.random.default_rng(5)
    blocks = generator.normal(size=(2, 4, 4)) + 4 * np.eye(4)
    return Plan(
        (
            SitePlan("first", (Scale(generator.uniform(1, 2, 8)),), (Hadamard(8, 4),), "because"),
            SitePlan("second", (), (Blocks(blocks),)),
            SitePlan("third", (), ()),
        )
    )


@pytest.fixture
def saved(plan: Plan, tmp_path: Path) -> Path:
    path = tmp_path / "plan.npz"
    save_plan(path, plan, "abc", Recipe(transform="hadamard", online="none").to_json())
    return path


def test_a_plan_comes_back_as_it_was(plan: Plan, saved: Path) -> None:
    loaded = load_plan(saved)
    before, after = plan.to_arrays(), loaded.plan.to_arrays()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert loaded.digest == "abc"


def test_a_plan_settles_what_shaped_it_and_nothing_else(saved: Path) -> None:
    recipe = load_plan(saved).recipe(Recipe(group_size=64, transform="cat", online="all"))
    assert (recipe.transform, recipe.online, recipe.group_size) == ("hadamard", "none", 64)


def test_the_same_plan_makes_the_same_file(plan: Plan, saved: Path) -> None:
    before = saved.read_bytes()
    save_plan(saved, plan, "abc", Recipe(transform="hadamard", online="none").to_json())
    assert saved.read_bytes() == before


def test_a_plan_that_cannot_be_written_leaves_nothing(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        save_plan(tmp_path / "missing" / "plan.npz", plan, "abc", QUICK.to_json())
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder"):
        save_plan(tmp_path / "folder", plan, "abc", QUICK.to_json())
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def _written(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _about(**changes: Any) -> np.ndarray:
    shaping = {name: Recipe().to_json()[name] for name in SHAPING}
    return np.array(json.dumps({"format": 1, "digest": "abc", "shaping": shaping} | changes))


_SITES = np.array(["a"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a plan",
        b"PK\x03\x04 not a zip file either",
        _written(sites=_SITES),
        _written(about=np.array("[]"), sites=_SITES),
        _written(about=_about(format=99), sites=_SITES),
        _written(about=_about(digest=7), sites=_SITES),
        _written(about=_about(shaping={}), sites=_SITES),
        _written(about=_about(shaping=dict.fromkeys(SHAPING, "nonsense")), sites=_SITES),
        _written(about=_about(shaping=dict.fromkeys(SHAPING)), sites=_SITES),
        _written(about=_about()),
        _written(about=_about(), sites=np.array(3)),
        _written(about=_about(), sites=np.array([1.5])),
        _written(about=_about(), sites=_SITES),
        _written(about=_about(), sites=np.array([{"a": 1}], dtype=object)),
    ],
)
def test_nonsense_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "plan.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="plan"):
        load_plan(path)


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "plan.npy", np.ones(3))
    with pytest.raises(UsageError, match="single array"):
        load_plan(tmp_path / "plan.npy")


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such plan"):
        load_plan(tmp_path / "plan.npz")


def test_every_damaged_byte_and_every_cut_is_refused_or_harmless(plan: Plan, saved: Path) -> None:
    whole = saved.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        for content in (bytes(damaged), whole[:place]):
            saved.write_bytes(content)
            try:
                load_plan(saved)
            except UsageError:
                continue
            # What zip does not sum up (dates, attributes) may differ; what it says must not.
            with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(io.BytesIO(whole)) as original:
                assert all(archive.read(name) == original.read(name) for name in original.namelist())


def test_a_plan_applied_again_gives_the_same_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    report = optimize(tiny_llama, tmp_path / "first", QUICK)
    save_plan(tmp_path / "plan.npz", report.plan, report.digest, report.recipe)
    loaded = load_plan(tmp_path / "plan.npz")
    assert loaded.digest == report.digest
    again = optimize(tiny_llama, tmp_path / "second", loaded.recipe(Recipe(samples=2, seq_len=32)), plan=loaded.plan)
    for name in ("model.onnx", "model.onnx_data"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert again.calibration_rows == 0


@pytest.mark.parametrize("change", [lambda plan: plan.sites[1:], lambda plan: plan.sites[::-1][:3]])
def test_a_plan_for_other_sites_is_refused(
    change: Callable[[Plan], tuple[SitePlan, ...]], tiny_llama: Path, tmp_path: Path
) -> None:
    report = optimize(tiny_llama, tmp_path / "out", QUICK)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UsageError, match="the plan is for"):
        optimize(tiny_llama, tmp_path / "out", QUICK, plan=Plan(change(report.plan)))
    assert not any(tmp_path.iterdir())
