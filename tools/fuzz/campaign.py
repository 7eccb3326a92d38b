"""Many cases in processes that may die: counted, timed, and written down while it goes on."""

from __future__ import annotations

import collections
import dataclasses
import json
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from catonnx.files import write_json
from tools.child import ROOT
from tools.machine import surroundings

WORKER = (sys.executable, "-m", "tools.fuzz.work")

BLOCK = 500
"""Cases of one process; a new one forgets whatever libraries kept."""

WRITTEN_EVERY = 15.0
"""Seconds between two writes of the results."""

KEPT_FAILURES = 50

SAYS_NOTHING = ("source not runnable", "source ill-conditioned")


@dataclasses.dataclass
class Campaign:
    """One run over a range of seeds.

    Attributes:
        kind: `graphs` or `files`.
        seed: The first.
        count: How many cases.
        jobs: Processes at once.
        seconds: No new case is begun after that; None for no bound.
        limit: Seconds that one case may take.
        keep: Folder for failing cases.
        result: File that is written all the while; what else stands in it stays.
    """

    kind: str
    seed: int
    count: int
    jobs: int = 1
    seconds: float | None = None
    limit: float = 120.0
    keep: Path | None = None
    result: Path | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._next = self.seed
        self._kinds: collections.Counter[str] = collections.Counter()
        self._mutations: collections.Counter[str] = collections.Counter()
        self._together: collections.Counter[str] = collections.Counter()
        self._failures: list[dict[str, Any]] = []
        self._worst: tuple[float, int] = (0.0, self.seed)
        self._slowest: tuple[float, int] = (0.0, self.seed)
        self._begin = self._written = time.monotonic()
        self._head = surroundings() | {"commit": _commit()}

    def run(self) -> dict[str, Any]:
        """Run all of it and return the figures."""
        threads = [threading.Thread(target=self._job) for _ in range(self.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._write(done=True)
        return self.figures(done=True)

    def figures(self, *, done: bool = False) -> dict[str, Any]:
        """Return what is known by now."""
        tried = sum(self._kinds.values())
        return self._head | {
            "seeds": [self.seed, self.seed + self.count],
            "done": done,
            "seconds": round(time.monotonic() - self._begin, 1),
            "tried": tried,
            "judged": tried - sum(self._kinds[kind] for kind in SAYS_NOTHING),
            "failed": sum(number for kind, number in self._kinds.items() if kind.startswith("FAILED")),
            "outcomes": dict(self._kinds.most_common()),
            **(_sorted(mutations=self._mutations, mutations_in_one_file=self._together) if self._mutations else {}),
            "worst_relative_l2": {"value": self._worst[0], "seed": self._worst[1]},
            "slowest": {"seconds": self._slowest[0], "seed": self._slowest[1]},
            "failures": self._failures[:KEPT_FAILURES],
        }

    def _job(self) -> None:
        while (block := self._block()) is not None:
            first, end = block
            while first < end and not self._over():
                first = self._child(first, end)

    def _block(self) -> tuple[int, int] | None:
        with self._lock:
            first, last = self._next, self.seed + self.count
            if first >= last or self._over():
                return None
            self._next = min(first + BLOCK, last)
            return first, self._next

    def _over(self) -> bool:
        return self.seconds is not None and time.monotonic() - self._begin > self.seconds

    def _child(self, first: int, end: int) -> int:
        """Run cases in one process until it is done, dies or hangs; return the first seed that is left."""
        command = [*WORKER, self.kind, str(first), str(end - first)]
        command.append("-" if self.keep is None else str(self.keep.absolute()))
        # Unbuffered: what waits in a buffer of ours would be invisible to the selector.
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as child:
            assert child.stdout is not None
            seed, running, hung = self._follow(child.stdout, first)
            if hung or self._over():
                child.kill()
            code = child.wait()
        if self._over():
            return end
        if hung:
            self._count(seed, {"kind": f"FAILED no end within {self.limit:.0f} s"})
        elif running or (code and seed < end):
            self._count(seed, {"kind": f"FAILED process ended with code {code}"})
        else:
            return seed
        return seed + 1

    def _follow(self, lines: IO[bytes], first: int) -> tuple[int, bool, bool]:
        """Read what a process tells; return the seed it came to, whether that one was running, and whether it hung."""
        seed, running = first, False
        with selectors.DefaultSelector() as selector:
            selector.register(lines, selectors.EVENT_READ)
            while not self._over():
                if not selector.select(self.limit):
                    return seed, running, True
                line = lines.readline()
                if not line:
                    break
                told = json.loads(line)
                running = "kind" not in told
                seed = told["seed"] + (not running)
                if not running:
                    self._count(told["seed"], told)
        return seed, running, False

    def _count(self, seed: int, told: dict[str, Any]) -> None:
        with self._lock:
            kind = told["kind"]
            self._kinds[kind] += 1
            if "mutation" in told:
                single = told["mutation"].split(" + ")
                self._mutations.update(single)
                self._together[str(len(single))] += 1
            if told.get("error") is not None:
                self._worst = max(self._worst, (told["error"], seed))
            self._slowest = max(self._slowest, (told.get("seconds", self.limit), seed))
            if kind.startswith("FAILED"):
                detail = told.get("detail", "")
                self._failures.append({"seed": seed, "kind": kind, "mutation": told.get("mutation"), "detail": detail})
                print(f"seed {seed}: {kind}: {' '.join(detail.split())[-300:]}", file=sys.stderr, flush=True)
        if time.monotonic() - self._written > WRITTEN_EVERY:
            self._write()

    def _write(self, *, done: bool = False) -> None:
        with self._lock:
            self._written = time.monotonic()
            if self.result is None:
                return
            before = json.loads(self.result.read_text(encoding="utf-8")) if self.result.is_file() else {}
            write_json(self.result, before | {self.kind: self.figures(done=done)})


def _sorted(**counted: collections.Counter[str]) -> dict[str, dict[str, int]]:
    return {name: dict(sorted(counter.items())) for name, counter in counted.items()}


def _commit() -> str:
    """Return the commit that is checked out, with a + behind it if anything was changed."""
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return run.stdout.strip()
