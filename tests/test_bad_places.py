"""Places where no output can be, full disks and plans that do not fit: refused in one line, nothing is left behind."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import catonnx
from catonnx import Recipe, pipeline
from catonnx.graph import load
from catonnx.kept import Kept
from catonnx.math.factors import Blocks, Scale
from catonnx.planning.planfile import save_plan
from catonnx.planning.siteplan import Plan, SitePlan
from catonnx.runtime import running, stage_sessions
from catonnx.runtime.verify import Verifier
from tests.refusals import assert_refused
from tests.small_models import QUICK, catonnx_, write_feeds, write_mlp

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_mlp(tmp_path / "m" / "model.onnx")


@pytest.fixture
def feeds(tmp_path: Path) -> tuple[object, ...]:
    (tmp_path / "data").mkdir()
    return "--calibration", write_feeds(tmp_path / "data" / "feeds.npz", 16, 64)


def _standing(place: Path) -> Path:
    (place / "out").mkdir()
    (place / "out" / "old.txt").write_text("old")
    (place / "out" / "catonnx.json").write_text("{}")
    return place / "out"


def _precious(place: Path) -> Path:
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").write_text("old")
    return place / "out"


def _file(place: Path) -> Path:
    (place / "out").write_text("old")
    return place / "out"


def _below_a_file(place: Path) -> Path:
    return _file(place) / "below"


def _broken_link(place: Path) -> Path:
    (place / "out").symlink_to("nothing")
    return place / "out"


PLACES: dict[str, tuple[str, Callable[[Path], Path], list[str]]] = {
    "stands": ("the output exists (", _standing, []),
    "is a file": ("the output exists (", _file, []),
    "is not ours, forced": ("the output exists and is no result of catonnx", _precious, ["--force"]),
    "is the current folder": ("the output is the current folder, or holds it (", lambda _: Path(), ["--force"]),
    "is a file, forced": ("the output exists and is not a folder (", _file, ["--force"]),
    "below a file": ("nothing can be written there: ", _below_a_file, ["--force"]),
    "broken link": ("the output exists (", _broken_link, []),
    "broken link, forced": ("the output exists and is not a folder (", _broken_link, ["--force"]),
    "no such device": ("nothing can be written there: ", lambda _: Path("/proc/sys/nothing/out"), []),
    "long name": ("nothing can be written there: File name too long (", lambda place: place / ("x" * 300), []),
    "in the model": ("the output lies inside the model's folder (", lambda place: place / "m" / "out", ["--force"]),
    "is the model": ("the output lies inside the model's folder (", lambda place: place / "m", ["--force"]),
    "around the model": ("the model lies inside the output folder (", lambda place: place, ["--force"]),
    "root": ("the model lies inside the output folder (", lambda _: Path("/"), ["--force"]),
}


@pytest.mark.parametrize("case", PLACES)
def test_places_where_no_output_can_be(
    case: str, model: Path, feeds: tuple[object, ...], tmp_path: Path, capfd: Capture
) -> None:
    said, place, options = PLACES[case]
    assert_refused(capfd, 6, said, model.parent, place(tmp_path), *feeds, *options)
    if (tmp_path / "out").is_dir():
        assert {path.name for path in (tmp_path / "out").iterdir()} in ({"catonnx.json", "old.txt"}, {"thesis.txt"})


def test_a_link_to_the_model_is_the_model(
    model: Path, feeds: tuple[object, ...], tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "link").symlink_to("m")
    said = "the output lies inside the model's folder"
    assert_refused(capfd, 6, said, tmp_path / "link", tmp_path / "m" / "out", *feeds)
    assert_refused(capfd, 6, said, model.parent, tmp_path / "link" / "out", *feeds)
    assert_refused(capfd, 6, "the model lies inside", model, tmp_path / "link", *feeds, "--force")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_may_not_be_written(
    model: Path, feeds: tuple[object, ...], tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    said = "nothing can be written there: Permission denied ("
    assert_refused(capfd, 6, said, model, tmp_path / "shut" / "out", *feeds)


def test_folders_made_for_an_output_that_fails_are_removed(model: Path, tmp_path: Path, capfd: Capture) -> None:
    options = "--calibration", tmp_path / "nothing.npz"
    assert_refused(capfd, 5, "the file does not exist (", model, tmp_path / "a" / "b" / "out", *options)
    assert not (tmp_path / "a").exists()


def test_what_stands_is_kept_when_a_forced_run_fails(model: Path, tmp_path: Path, capfd: Capture) -> None:
    out = _standing(tmp_path)
    assert_refused(capfd, 5, "does not exist", model, out, "--calibration", tmp_path / "nothing.npz", "--force")
    assert (out / "old.txt").read_text() == "old"


@contextmanager
def _full_disk(free: int) -> Iterator[None]:
    """Let no file grow beyond some bytes; Python ignores the signal, so that writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        with _full_disk(1000):
            return function(*arguments, **options)

    return run


STEPS: dict[str, tuple[object, str, str]] = {
    "copy of the source": (load, "bring", "the model cannot be copied: File too large ("),
    "stage to calibrate": (stage_sessions, "write_beside", "the model cannot be written: File too large ("),
    "moments": (Kept, "put", "results in passing cannot be kept: File too large ("),
    "transformed model": (running, "write_beside", "the model cannot be written: File too large ("),
    "rounded weights": (pipeline, "write_rounded", "kept: File too large ("),
    "outputs of the source": (Verifier, "__enter__", "the reference's outputs cannot be kept: "),
    "result": (pipeline, "write_model", "the model cannot be written: File too large ("),
    "optimized graph": (Verifier, "check_deployed", "ONNX Runtime cannot write the graph that it would run ("),
    "companions": (pipeline, "copy_companions", "the file cannot be carried along: File too large ("),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_disk_that_is_full(
    step: str, tiny_llama: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, name, said = STEPS[step]
    monkeypatch.setattr(room, name, _limited(getattr(room, name)))
    done = step != "copy of the source"
    assert_refused(capfd, 6, said, tiny_llama, tmp_path / "out", *QUICK, keeps=done)


def _changed(plans: Sequence[SitePlan], change: Callable[[Any], Any]) -> list[SitePlan]:
    return [dataclasses.replace(plan, absorbed=tuple(map(change, plan.absorbed))) for plan in plans]


def _negative(factor: Any) -> Any:
    return Scale(-factor.vector) if isinstance(factor, Scale) else factor


def _untied(factor: Any) -> Any:
    if not isinstance(factor, Blocks):
        return factor
    return Blocks(factor.matrices * np.linspace(1, 2, len(factor.matrices))[:, None, None])


PLANS: dict[str, tuple[str, Callable[[list[SitePlan]], list[SitePlan]]]] = {
    "site missing": ("the plan is for 11 sites, the model has 12 (", lambda plans: plans[1:]),
    "site twice": ("the plan is for 13 sites, the model has 12", lambda plans: [*plans, plans[0]]),
    "another name": ("the plan lacks a site (", lambda p: [dataclasses.replace(p[0], site="nobody"), *p[1:]]),
    "sites exchanged": ("the plan is for another width than ", lambda p: _exchanged(p)),
    "too much absorbed": ("the plan absorbs a hadamard 32 that does not fit here: only a scaling", lambda p: _all(p)),
    "negative scale": ("the plan absorbs a scale that does not fit here: ", lambda p: _changed(p, _negative)),
    "ties ignored": ("the plan absorbs a blocks 16 that does not fit here: ", lambda p: _changed(p, _untied)),
}


def _exchanged(plans: list[SitePlan]) -> list[SitePlan]:
    return [dataclasses.replace(plan, site=other.site) for plan, other in zip(plans, plans[::-1], strict=True)]


def _all(plans: list[SitePlan]) -> list[SitePlan]:
    return [dataclasses.replace(plan, absorbed=plan.factors, online=()) for plan in plans]


@pytest.fixture(scope="module")
def good_plan(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> catonnx.Report:
    return catonnx.optimize(tiny_llama, tmp_path_factory.mktemp("plan") / "out", Recipe(samples=2, seq_len=16))


@pytest.mark.parametrize("case", PLANS)
def test_plans_that_do_not_fit(
    case: str, good_plan: catonnx.Report, tiny_llama: Path, tmp_path: Path, capfd: Capture
) -> None:
    said, change = PLANS[case]
    plan = Plan(tuple(change(list(good_plan.plan.sites))))
    save_plan(tmp_path / "plan.npz", plan, good_plan.digest, good_plan.recipe)
    assert_refused(capfd, 2, said, tiny_llama, tmp_path / "out", *QUICK, "--plan", tmp_path / "plan.npz")


def test_a_plan_with_changed_caches_and_a_wish_for_exact_ones(
    good_plan: catonnx.Report, tiny_llama: Path, tmp_path: Path, capfd: Capture
) -> None:
    save_plan(tmp_path / "plan.npz", good_plan.plan, good_plan.digest, good_plan.recipe)
    options = *QUICK, "--plan", tmp_path / "plan.npz", "--caches", "exact"
    assert_refused(capfd, 2, "the plan absorbs a blocks 16", tiny_llama, tmp_path / "out", *options)


def test_a_plan_whose_numbers_leave_the_type(model: Path, feeds: tuple[object, ...], tmp_path: Path) -> None:
    report = catonnx.optimize(model, tmp_path / "first", Recipe(calibration=str(feeds[1])))
    tiny = (Scale(np.full(64, 1e-300)),)
    plans = [dataclasses.replace(report.plan.sites[0], absorbed=(), online=tiny), *report.plan.sites[1:]]
    save_plan(tmp_path / "plan.npz", Plan(tuple(plans)), report.digest, report.recipe)
    result = catonnx_("optimize", model, "-o", tmp_path / "out", *feeds, "--plan", tmp_path / "plan.npz")
    assert result.exit_code == 7
    assert "does not survive float" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--save-plan", "--report-json"])
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx_data", "new.json"])
def test_no_extra_file_is_written_into_the_model(
    option: str, name: str, model: Path, feeds: tuple[object, ...], tmp_path: Path, capfd: Capture
) -> None:
    place = model.parent / name
    assert_refused(capfd, 6, "would write into the model", model.parent, tmp_path / "out", *feeds, option, place)


def test_a_model_file_is_not_replaced_by_a_report(
    model: Path, feeds: tuple[object, ...], tmp_path: Path, capfd: Capture
) -> None:
    assert_refused(capfd, 6, "would write into the model", model, tmp_path / "out", *feeds, "--report-json", model)
