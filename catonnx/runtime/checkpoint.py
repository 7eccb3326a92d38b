"""What waits between two stages of a model, kept now and then, so that a run that was cut off goes on from there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from catonnx.errors import OutputError
from catonnx.graph.sites import Site
from catonnx.graph.stages import Stage
from catonnx.runtime.live import Live, Way

EVERY_SECONDS = 30.0
"""Time between two checkpoints: no more than this and one stage is lost."""

_INDEX = "index.json"


class Checkpoint:
    """Keeps the values between two stages in a folder.

    Args:
        folder: Made when it is needed; nothing else may lie there.
        every: Seconds that pass before the next checkpoint.
    """

    def __init__(self, folder: Path, every: float = EVERY_SECONDS) -> None:
        self._folder, self._every = folder, every
        self._latest = time.monotonic()

    def reached(self) -> int:
        """Return the number of the stage that was kept last; -1 if none was, or not as a whole."""
        done = [int(path.name) for path in self._folder.glob("*") if path.name.isdigit()]
        if not done:
            return -1
        place = self._folder / str(max(done))
        try:
            for file in _index(place):
                np.load(place / file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # cut off while it was cleared, or a power failure
            return -1
        return max(done)

    def check(self, stages: Sequence[Stage], lost: Callable[[Site], bool]) -> None:
        """Forget what was kept if a site before it is lost: its rows are not handed over any more.

        Args:
            stages: Of the model.
            lost: Whether something must still be found out about a site.
        """
        reached = self.reached()
        if any(lost(tap.site) for stage in stages if stage.number <= reached for tap in stage.arriving):
            self.clear()

    def restore(self, live: Live) -> int:
        """Bring back what was kept last, and return the number of the stage that it follows; -1 if there is nothing."""
        stage = self.reached()
        if stage < 0:
            self.clear()
            return -1
        place = self._folder / str(stage)
        for file, (way, name, sample) in _index(place).items():
            live.put(way, name, sample, np.load(place / file, allow_pickle=False))
        return stage

    def save(self, stage: int, live: Live) -> None:
        """Keep what waits behind a stage, if it is time to; what was kept before goes.

        Raises:
            OutputError: the disk is full.
        """
        if time.monotonic() - self._latest < self._every:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for rest in self._folder.glob("*.part"):
                shutil.rmtree(rest)
            old = list(self._folder.iterdir())
            part = self._folder / f"{stage}.part"
            part.mkdir()
            index = {}
            for number, (key, value) in enumerate(live.held()):
                index[f"{number}.npy"] = key
                np.save(part / f"{number}.npy", value, allow_pickle=False)
            (part / _INDEX).write_text(json.dumps(index), encoding="utf-8")
            part.replace(self._folder / str(stage))
            for place in old:
                shutil.rmtree(place)
        except OSError as error:
            raise OutputError(
                f"activations between two stages cannot be kept: {error.strerror or error}",
                where=self._folder,
                hint="free some space, or calibrate on fewer or shorter samples",
            ) from error
        self._latest = time.monotonic()

    def clear(self) -> None:
        """Forget everything: the last stage has run."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _index(place: Path) -> dict[str, tuple[Way, str, int]]:
    """Return which file holds which value: way, name and sample."""
    index: dict[str, tuple[Way, str, int]] = json.loads((place / _INDEX).read_text(encoding="utf-8"))
    return index
