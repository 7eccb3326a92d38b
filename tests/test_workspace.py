"""The folder beside the output: what becomes of it when a run ends well, badly, or not at all."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from catonnx.errors import ModelError, OutputError
from catonnx.graph.save import RESULT_MARK
from catonnx.workspace import Workspace, working


def open_(out: Path, key: str = "key", *, force: bool = False) -> AbstractContextManager[Workspace]:
    return working(out, force=force, key=lambda: key)


def test_the_output_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with open_(out) as space:
        (space.result / "file").write_text("content")
        assert not out.exists()
    assert (out / "file").read_text() == "content"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with contextlib.suppress(error), open_(tmp_path / "out") as space:
        (space.result / "file").write_text("content")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), open_(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused_and_replaced_whole_with_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / RESULT_MARK).write_text("old")
    with pytest.raises(OutputError, match=r"exists.*--force"), open_(out):
        pytest.fail("the block must not run")
    with contextlib.suppress(ValueError), open_(out, force=True) as space:
        (space.result / "new").write_text("new")
        raise ValueError
    assert [path.name for path in out.iterdir()] == [RESULT_MARK]
    with open_(out, force=True) as space:
        (space.result / "new").write_text("new")
        assert (out / RESULT_MARK).exists()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_is_no_result_of_ours_is_not_replaced_with_force(tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    with open_(out, force=True) as space:
        (space.result / "mine").write_text("an empty folder may be replaced")
    with pytest.raises(OutputError, match="no result of catonnx"), open_(out, force=True):
        pytest.fail("the block must not run")
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_file_in_the_place_of_the_output_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(OutputError, match="not a folder"), open_(out, force=True):
        pytest.fail("the block must not run")
    assert out.read_text() == "mine"


def test_a_link_in_the_place_of_the_output_is_replaced_and_what_it_pointed_at_stays(tmp_path: Path) -> None:
    target, out = tmp_path / "target", tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("mine")
    out.symlink_to(target)
    with open_(out, force=True) as space:
        (space.result / "new").write_text("new")
    assert (target / "mine").read_text() == "mine"
    assert not out.is_symlink()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "target"]


def test_a_place_where_no_folder_can_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="nothing can be written"), open_(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


def _end(out: Path, error: BaseException, key: str = "key") -> None:
    """Let a run end so after something was done."""
    with open_(out, key) as space:
        (space.result / "half").write_text("")
        space.kept.put("moments", "a", {"x": 1})
        raise error


def _cut_off(out: Path, key: str = "key") -> Path:
    with contextlib.suppress(KeyboardInterrupt):
        _end(out, KeyboardInterrupt(), key)
    return out.with_name(f".{out.name}.catonnx")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(28, "No space left on device")])
def test_work_that_is_cut_off_is_kept_and_found_again(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises((KeyboardInterrupt, MemoryError, OutputError)):
        _end(out, error)
    assert [path.name for path in out.parent.iterdir()] == [".out.catonnx"]
    with open_(out) as space:
        assert (space.kept.get("moments", "a") or {})["x"] == 1
        assert not any(space.result.iterdir())
        (space.result / "whole").write_text("")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["whole"]


def test_a_refusal_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        _end(tmp_path / "out", ModelError("the model is wrong"))
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_says_how_to_go_on_only_if_something_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"^$"), open_(tmp_path / "out"):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match=r"goes on from .*\.out\.catonnx"):
        _end(tmp_path / "out", KeyboardInterrupt())


@pytest.mark.parametrize("force", [False, True])
def test_work_of_another_run_is_refused_and_stays(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    folder = _cut_off(out, "other")
    with pytest.raises(OutputError, match=r"work of another run.*delete the folder"), open_(out, force=force):
        pytest.fail("the block must not run")
    with open_(out, "other") as space:
        assert space.kept.get("moments", "a")
    assert not folder.exists()


def test_another_run_that_had_only_copied_its_model_is_no_obstacle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = _cut_off(out, "other")
    for file in (folder / "kept").iterdir():
        file.unlink()
    with open_(out, "key") as space:
        assert not any(space.source.iterdir())
        space.kept.put("copy", "", {"x": 1})
    assert not folder.exists()


@pytest.mark.parametrize("about", [None, "", "{}", '{"format": 0, "key": "key"}', "\0"])
def test_a_folder_that_is_not_ours_is_refused_and_stays(tmp_path: Path, about: str | None) -> None:
    folder = _cut_off(tmp_path / "out")
    if about is None:
        (folder / "about.json").unlink()
    else:
        (folder / "about.json").write_text(about)
    with pytest.raises(OutputError, match=r"not ours|another run"), open_(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert (folder / "kept").exists()


def test_a_link_in_the_place_of_the_work_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / ".out.catonnx").symlink_to(tmp_path / "target")
    with pytest.raises(OutputError, match="stands where the work folder would be"), open_(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert not any((tmp_path / "target").iterdir())


def test_two_runs_for_one_output_exclude_each_other(tmp_path: Path) -> None:
    with open_(tmp_path / "out") as space:
        (space.result / "file").write_text("")
        with pytest.raises(OutputError, match="another process"), open_(tmp_path / "out"):
            pytest.fail("the block must not run")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


@pytest.mark.parametrize("new_stands", [False, True])
def test_a_run_that_was_killed_while_it_replaced_an_output(tmp_path: Path, new_stands: bool) -> None:
    out = tmp_path / "out"
    folder = _cut_off(out)
    (folder / "old").mkdir()
    (folder / "old" / RESULT_MARK).write_text("old")
    if new_stands:
        out.mkdir()
        (out / RESULT_MARK).write_text("new")
    with pytest.raises(OutputError, match="output exists"), open_(out):
        pytest.fail("the block must not run")
    assert (out / RESULT_MARK).read_text() == ("new" if new_stands else "old")
    with open_(out, force=True) as space:
        (space.result / "last").write_text("")
    assert [path.name for path in out.iterdir()] == ["last"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_that_was_moved_aside_comes_back_before_another_run_is_refused(tmp_path: Path) -> None:
    folder = _cut_off(tmp_path / "out", "other")
    (folder / "old").mkdir()
    (folder / "old" / RESULT_MARK).write_text("old")
    with pytest.raises(OutputError, match="work of another run"), open_(tmp_path / "out", force=True):
        pytest.fail("the block must not run")
    assert (tmp_path / "out" / RESULT_MARK).read_text() == "old"
    assert not (folder / "old").exists()


def test_the_copy_is_made_once_and_what_lay_beside_it_in_passing_goes(tmp_path: Path) -> None:
    out, made = tmp_path / "out", []

    def bring(space: Workspace) -> Path:
        made.append(1)
        (space.source / "deep").mkdir()
        (space.source / "deep" / "data").write_text("data")
        (space.source / "model.onnx").write_text("model")
        return space.source / "model.onnx"

    with contextlib.suppress(KeyboardInterrupt), open_(out) as space:
        path = space.copied(lambda: bring(space))
        (space.source / "passing").mkdir()
        (space.source / "passing" / "file").write_text("")
        space.kept.put("moments", "a", {})
        raise KeyboardInterrupt
    with open_(out) as space:
        assert space.copied(lambda: bring(space)) == path
        assert sorted(str(file.relative_to(space.source)) for file in space.source.rglob("*")) == [
            "deep",
            "deep/data",
            "model.onnx",
        ]
    assert made == [1]


def test_half_a_copy_is_made_again(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), open_(tmp_path / "out") as space:
        (space.source / "half").write_text("")
        space.kept.put("moments", "a", {})
        raise KeyboardInterrupt
    with open_(tmp_path / "out") as space:
        assert space.copied(lambda: space.source / "model.onnx") == space.source / "model.onnx"
        assert not any(space.source.iterdir())
