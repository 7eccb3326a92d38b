"""Kill `optimize` with SIGKILL at random moments, let the same command go on, and check that nothing is lost.

    python -m tools.kill_trials --model FOLDER --trials 50      # FOLDER: a model with tokenizer, or give --calibration

Each trial kills one run, once or several times, at moments spread evenly over the time that a whole run takes. After
every kill: no output stands, or the whole one; the source is as it was. In the end: the output is that of a run that
nobody killed, to the byte; nothing else is left.

Exit codes: 0 nothing was lost; 1 something was; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tools.machine import surroundings
from tools.tables import Row, all_well, markdown, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tools" / "results" / "kills.json"
MOST_KILLS = 3


class LostError(Exception):
    """Something is not as it should be after a kill."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    choose, tally, machine = random.Random(options.seed), Tally(), surroundings() | {"seed": options.seed}
    with tempfile.TemporaryDirectory(prefix="catonnx-kills-", dir=options.work) as place:
        source = Path(place, "source")
        shutil.copytree(options.model, source)
        before, wanted = _digests(source), Path(place, "wanted")
        begin = time.perf_counter()
        _command(source, wanted, options).wait()
        tally.seconds = time.perf_counter() - begin
        digests = _model(wanted)
        for trial in range(options.trials):
            try:
                for moment in sorted(choose.uniform(0.3, tally.seconds) for _ in range(choose.randint(1, MOST_KILLS))):
                    tally.after_the_end += _killed(source, Path(place, "out", "result"), moment, options, digests)
                    tally.kills += 1
                _finished(source, Path(place, "out", "result"), options, digests)
                if _digests(source) != before:
                    raise LostError("the source has changed")
            except LostError as error:
                tally.failures.append(f"trial {trial}: {error}")
                print(tally.failures[-1], file=sys.stderr)
            shutil.rmtree(Path(place, "out"), ignore_errors=True)
            tally.trials += 1
            write_json(options.out, machine, [tally.row()])  # what is known, should this be cut off as well
    print(markdown([tally.row()]))
    return 0 if all_well([tally.row()]) else 1


@dataclass
class Tally:
    """What was tried so far, and how long a whole run takes."""

    trials: int = 0
    kills: int = 0
    after_the_end: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> Row:
        """Return it as a row of the table."""
        lost = f"{len(self.failures)} of {self.trials} ({self.kills} kills, {self.after_the_end} of them after the end)"
        return Row("kill -9", "trials with something lost", lost, "0", not self.failures, asdict(self))


def _killed(source: Path, out: Path, moment: float, options: argparse.Namespace, wanted: list[str]) -> bool:
    """Start a run, kill it after so many seconds, and return whether it had ended before."""
    process = _command(source, out, options)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.kill()
    process.wait()
    ended = out.exists()
    if ended and _model(out) != wanted:
        raise LostError("the output that stands is not whole")
    if process.returncode > 0:
        raise LostError(f"the run ended by itself with exit code {process.returncode}")
    return ended


def _finished(source: Path, out: Path, options: argparse.Namespace, wanted: list[str]) -> None:
    """Let the run go on to its end, and check what is there then."""
    process = _command(source, out, options)
    if process.wait():
        raise LostError(f"the run that goes on ended with exit code {process.returncode}")
    if _model(out) != wanted:
        raise LostError("the output differs from that of a run that nobody killed")
    if [path.name for path in out.parent.iterdir()] != [out.name]:
        raise LostError(f"beside the output lie {sorted(path.name for path in out.parent.iterdir())}")


def _command(source: Path, out: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "catonnx", "optimize", str(source), "-o", str(out), "--force", "--quiet"]
    command += ["--calibration", options.calibration, "--samples", str(options.samples), "--rounding", options.rounding]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _model(out: Path) -> list[str]:
    return [digest for name, digest in _digests(out).items() if name.startswith("model.onnx")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kill_trials", description="Kill optimize at random moments.")
    parser.add_argument("--model", type=Path, required=True, help="folder of a small model")
    parser.add_argument("--calibration", default="self", help="as --calibration of optimize (default self)")
    parser.add_argument("--samples", type=int, default=32, help="calibration texts (default 32)")
    parser.add_argument("--rounding", default="gptq", help="as --rounding of optimize (default gptq)")
    parser.add_argument("--trials", type=int, default=50, help="default 50")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--work", type=Path, help="folder for outputs in passing (default: the system's temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes (default tools/results/)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
