"""Runs that are cut off anywhere go on from there, do nothing twice, and give what one run gives, to the byte."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import catonnx
from catonnx.errors import OutputError
from catonnx.graph.stages import Stage
from catonnx.kept import Kept
from catonnx.recipe import Recipe
from catonnx.runtime import checkpoint
from catonnx.runtime.checkpoint import Checkpoint
from tests.small_models import snapshot, write_feeds, write_mlp

RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "gptq": {"rounding": "gptq", "scheme": "w4a4", "form": "qdq"},
    "sequential": {"rounding": "sequential", "scheme": "w4a8"},
    "budget": {"max_overhead": 0.5, "keep_8bit": 1},
}


class _Cut:
    """Interrupts a run after so many results, and counts them over all runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: Counter[str] = Counter()
        self.left: int | None = None
        put = Kept.put

        def counted(kept: Kept, kind: str, name: str = "", arrays: Any = None) -> None:
            put(kept, kind, name, arrays)
            self.seen[f"{kind} {name}"] += 1
            if self.left is not None:
                self.left -= 1
                if not self.left:
                    raise KeyboardInterrupt

        monkeypatch.setattr(Kept, "put", counted)


def _cut_off_behind(monkeypatch: pytest.MonkeyPatch, kind: str, name: str) -> None:
    """Interrupt a run behind one result."""
    put = Kept.put

    def cut_off(kept: Kept, put_kind: str, put_name: str = "", arrays: Any = None) -> None:
        put(kept, put_kind, put_name, arrays)
        if (put_kind, put_name) == (kind, name):
            raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "put", cut_off)


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a model, its calibration and a place for outputs."""
    source = tmp_path / "source"
    source.mkdir()
    model = write_mlp(source / "model.onnx", activation="Relu")
    return source, write_feeds(tmp_path / "feeds.npz", 8, 64, samples=6), model


def _model(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in ("model.onnx", "model.onnx_data")]


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("every", [0.0, 1e9])
def test_cut_off_behind_every_result(
    name: str,
    every: float,
    case: tuple[Path, Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    source, feeds, _ = case
    recipe = Recipe(calibration=str(feeds), **RECIPES[name])
    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (every,))
    before = snapshot(source)
    cut = _Cut(monkeypatch)
    once = catonnx.optimize(source, tmp_path / "once", recipe)
    wanted, total = _model(tmp_path / "once"), dict(cut.seen)
    assert max(total.values()) == 1
    assert len(total) >= 8  # copy, feeds, and of two sites moments, plans and weights
    out = tmp_path / "out"
    for after in range(1, len(total) + 1):
        cut.seen.clear()
        cut.left = after
        with pytest.raises(KeyboardInterrupt):
            catonnx.optimize(source, out, recipe)
        assert not out.exists()
        cut.left = None
        again = catonnx.optimize(source, out, recipe)
        if after > 1:  # the copy of the model alone is not worth keeping
            assert dict(cut.seen) == total
        assert again.dampings == once.dampings
        assert _model(out) == wanted
        assert sorted(path.name for path in tmp_path.iterdir()) == ["feeds.npz", "once", "out", "source"]
        shutil.rmtree(out)
    assert snapshot(source) == before


@pytest.mark.parametrize("rounding", ["mse", "sequential"])
def test_stages_behind_a_checkpoint_do_not_run_again(
    rounding: str, case: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, feeds, _ = case
    recipe = Recipe(calibration=str(feeds), rounding=rounding)  # type: ignore[arg-type]
    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (0.0,))
    run: list[int] = []
    model, save = Stage.model, Checkpoint.save
    monkeypatch.setattr(Stage, "model", lambda stage, *given: run.append(stage.number) or model(stage, *given))  # type: ignore[func-returns-value]
    catonnx.optimize(source, tmp_path / "once", recipe)
    whole = list(run)

    def cut_off(self: Checkpoint, stage: int, live: Any) -> None:
        save(self, stage, live)
        if stage == 1:
            raise KeyboardInterrupt

    run.clear()
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", cut_off)
        with pytest.raises(KeyboardInterrupt):
            catonnx.optimize(source, tmp_path / "out", recipe)
    catonnx.optimize(source, tmp_path / "out", recipe)
    assert run == whole
    assert _model(tmp_path / "out") == _model(tmp_path / "once")


def test_sequential_rounding_goes_on_from_its_own_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = write_mlp(tmp_path / "m" / "model.onnx", (64, 48, 32, 64, 32, 48, 8))
    feeds = write_feeds(tmp_path / "feeds.npz", 8, 64, samples=6)
    recipe = Recipe(calibration=str(feeds), rounding="sequential")
    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (0.0,))
    run: list[int] = []
    model = Stage.model
    monkeypatch.setattr(Stage, "model", lambda stage, *given: run.append(stage.number) or model(stage, *given))  # type: ignore[func-returns-value]
    catonnx.optimize(source, tmp_path / "once", recipe)
    whole = list(run)
    run.clear()
    with monkeypatch.context() as patched:
        _cut_off_behind(patched, "rounded", "fc3")
        with pytest.raises(KeyboardInterrupt):
            catonnx.optimize(source, tmp_path / "out", recipe)
    catonnx.optimize(source, tmp_path / "out", recipe)
    assert run == whole
    assert _model(tmp_path / "out") == _model(tmp_path / "once")


@pytest.mark.parametrize("harm", ["no index", "no value", "an empty value", "lost moments"])
def test_a_checkpoint_that_is_not_whole_is_forgotten(
    harm: str, case: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, feeds, _ = case
    recipe = Recipe(calibration=str(feeds))
    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (0.0,))
    catonnx.optimize(source, tmp_path / "once", recipe)
    cut = _Cut(monkeypatch)
    cut.left = 4
    with pytest.raises(KeyboardInterrupt):
        catonnx.optimize(source, tmp_path / "out", recipe)
    cut.left = None
    folder = tmp_path / ".out.catonnx"
    (place,) = (folder / "live" / "measured").iterdir()
    match harm:
        case "no index":
            (place / "index.json").unlink()
        case "no value":
            (place / "0.npy").unlink()
        case "an empty value":
            (place / "0.npy").write_bytes(b"")
        case "lost moments":
            for file in (folder / "kept").glob("moments-*"):
                file.write_bytes(b"broken")
    catonnx.optimize(source, tmp_path / "out", recipe)
    assert _model(tmp_path / "out") == _model(tmp_path / "once")


@pytest.mark.parametrize("rounding", ["mse", "sequential"])
def test_rounded_weights_that_a_power_failure_broke_are_rounded_again(
    rounding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = write_mlp(tmp_path / "m" / "model.onnx", (64, 48, 32, 64, 32, 48, 8))
    recipe = Recipe(calibration=str(write_feeds(tmp_path / "feeds.npz", 8, 64, samples=6)), rounding=rounding)  # type: ignore[arg-type]
    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (0.0,))
    catonnx.optimize(source, tmp_path / "once", recipe)
    with monkeypatch.context() as patched:
        _cut_off_behind(patched, "rounded", "fc3")
        with pytest.raises(KeyboardInterrupt):
            catonnx.optimize(source, tmp_path / "out", recipe)
    broken = list((tmp_path / ".out.catonnx" / "kept").glob("rounded-*"))
    assert len(broken) >= 3
    for file in broken:
        file.write_bytes(b"broken")
    catonnx.optimize(source, tmp_path / "out", recipe)
    assert _model(tmp_path / "out") == _model(tmp_path / "once")


@pytest.mark.parametrize("what", ["model", "calibration", "recipe", "companion", "plan"])
def test_work_for_something_else_is_refused(
    what: str, case: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, feeds, model = case
    (source / "config.json").write_text("{}")
    recipe, out, plan = Recipe(calibration=str(feeds)), tmp_path / "out", None
    cut = _Cut(monkeypatch)
    cut.left = 4
    with pytest.raises(KeyboardInterrupt, match="goes on from"):
        catonnx.optimize(source, out, recipe)
    cut.left = None
    match what:
        case "model":
            write_mlp(model, activation="Tanh")
        case "calibration":
            write_feeds(feeds, 7, 64)
        case "recipe":
            recipe = Recipe(calibration=str(feeds), seed=1)
        case "companion":
            (source / "config.json").write_text('{"bos_token_id": 1}')
        case "plan":
            plan = catonnx.optimize(source, tmp_path / "other", recipe).plan
    with pytest.raises(OutputError, match="unfinished work of another run"):
        catonnx.optimize(source, out, recipe, plan=plan)
    assert not out.exists()
    shutil.rmtree(tmp_path / ".out.catonnx")
    catonnx.optimize(source, out, recipe, plan=plan)


def test_what_a_link_beside_the_model_points_at_is_not_read(
    case: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, feeds, _ = case
    (tmp_path / "secret.json").write_text("{}")
    (source / "generation_config.json").symlink_to(tmp_path / "secret.json")
    opened: list[str] = []
    real = Path.open

    def recorded(path: Path, *given: Any, **named: Any) -> Any:
        opened.append(path.name)
        return real(path, *given, **named)

    monkeypatch.setattr(Path, "open", recorded)
    catonnx.optimize(source, tmp_path / "out", Recipe(calibration=str(feeds)))
    assert "feeds.npz" in opened
    assert "generation_config.json" not in opened


def test_a_pipe_beside_the_model_is_not_waited_for(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    source, feeds, _ = case
    os.mkfifo(source / "tokenizer.json")
    catonnx.optimize(source, tmp_path / "out", Recipe(calibration=str(feeds)))
    assert (tmp_path / "out" / "model.onnx").exists()
