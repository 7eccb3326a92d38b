"""Workers make things once and share them, and keep to their cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import workers

ROOT = Path(__file__).resolve().parent.parent

pinned = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to share."""
    monkeypatch.setenv(workers.FOLDER, str(tmp_path))
    return tmp_path


def test_a_failure_leaves_nothing_and_the_next_one_fills(folder: Path) -> None:
    def fail(place: Path) -> None:
        (place / "half").touch()
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  (its own)
        workers.once("thing", fail)
    assert [file.name for file in folder.iterdir()] == ["thing.lock"]
    place = workers.once("thing", lambda place: (place / "whole").touch())
    assert [file.name for file in place.iterdir()] == ["whole"]


@pytest.mark.skipif(os.name != "posix", reason="without a lock there is one worker")
def test_several_processes_fill_once(folder: Path) -> None:
    script = (
        "import sys, time\nfrom tests.workers import once\n"
        "def fill(place):\n    time.sleep(0.5)\n    print('filled')\n    (place / 'whole').touch()\n"
        "assert (once('thing', fill) / 'whole').exists()\n"
    )
    command = [sys.executable, "-c", script]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sorted(said) == ["", "", "filled\n"]


@pinned
def test_a_worker_keeps_to_a_core_until_it_is_given_all() -> None:
    with workers.all_cores():
        everything = os.sched_getaffinity(0)
        for worker, place in (("gw0", 0), ("gw1", 1), (f"gw{len(everything)}", 0)):
            workers.keep_to_a_core(worker)
            assert os.sched_getaffinity(0) == {sorted(everything)[place % len(everything)]}
            with workers.all_cores():
                assert os.sched_getaffinity(0) == everything
            assert len(os.sched_getaffinity(0)) == 1
        os.sched_setaffinity(0, everything)


@pinned
def test_as_many_workers_as_cores_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with workers.all_cores():
        assert workers.count() == min(len(os.sched_getaffinity(0)), workers.MOST)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        assert workers.count() == 1
    monkeypatch.setattr(workers, "usable_cores", lambda: 100)
    assert workers.count() == workers.MOST


@pinned
def test_a_test_has_one_core_and_may_ask_for_all(request: pytest.FixtureRequest) -> None:
    before = os.sched_getaffinity(0)
    with workers.all_cores():
        everything = os.sched_getaffinity(0)
    assert os.sched_getaffinity(0) == before
    assert len(before) == (1 if hasattr(request.config, "workerinput") else len(everything))
    request.getfixturevalue("all_cores")
    assert os.sched_getaffinity(0) == everything
