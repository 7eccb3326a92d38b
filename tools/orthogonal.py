"""What another orthogonal factor than the Hadamard matrix would gain, were it chosen site by site.

    python -m tools.orthogonal                        # about four minutes on 2 cores

W4A4 behind the aligning factors of CAT, with scales per token and channel and with groups of 64. A factor is judged by
what it changes of the predicted noise, 1 / C(x) + 1 / C(W). It is chosen on every second row that calibration kept, and
judged on the others. In decibels over the Hadamard matrix that the recipe takes, means over the sites of a kind;
`chosen` takes the best factor of each site. `signs` is the best of twelve random sign patterns before the Hadamard
matrix: where the aligning scale is absorbed they cost nothing. DCT and random matrices are as wide as a scale reaches.

Exit codes: 0 done; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.fft import dct
from scipy.stats import ortho_group
from threadpoolctl import threadpool_limits

import models
from catonnx.analysis import selected_weights
from catonnx.graph.sites import Site
from catonnx.math.factors import Blocks, Hadamard, Scale, Transform
from catonnx.math.sqnr import concentration_rows, concentration_w
from catonnx.naming import kind_of
from catonnx.planning.plan import make_plan
from catonnx.planning.siteplan import SitePlan
from tools.arguments import add_calibration, add_places
from tools.bench_methods import GROUPS, SCHEMES, TOKEN
from tools.bench_workbench import Workbench
from tools.machine import surroundings
from tools.tables import aligned, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "orthogonal.json"
HADAMARD, NONE, DCT, RANDOM, SIGNS, CHOSEN = "hadamard", "none", "DCT", "random", "signs", "chosen"
PATTERNS = 12

Gains = Mapping[str, float]
"""Factor -> dB of predicted noise over the Hadamard matrix, on rows that chose nothing."""


def compare(bench: Workbench, scheme: str) -> dict[str, list[Gains]]:
    """Return for every kind of site what each factor gains at each of its sites."""
    opened = bench.open({**SCHEMES[scheme], "transform": "cat"})
    plan = make_plan(opened.recipe, opened.sites, opened.absorptions, bench.moments, selected_weights)
    plans = plan.by_site()
    found: dict[str, list[Gains]] = {}
    for site in opened.sites:
        gains = _gains(plans[site.name], bench.moments[site.name].rows, site, opened.recipe.group_size)
        found.setdefault(kind_of(tuple(linear.name for linear in site.selected)), []).append(gains)
    return found


def _gains(plan: SitePlan, rows: np.ndarray, site: Site, group_size: int | None) -> Gains:
    grid, matrix = plan.grid, next(factor for factor in plan.factors if isinstance(factor, Hadamard))
    assert grid is not None
    others = tuple(factor for factor in plan.factors if factor is not matrix)
    aligning = Transform(others) if others else Transform.identity(site.width)
    moved, weight = aligning.apply(rows), aligning.solve(np.concatenate(selected_weights(site), axis=1))
    noises: dict[str, tuple[float, float]] = {}  # on the rows that choose, on those that judge
    for name, factor in _candidates(matrix, group_size or site.width):
        x, of_weights = factor.apply(moved), 1 / concentration_w(factor.solve(weight), group_size)
        choosing, judging = (1 / concentration_rows(x[part::2], grid.group_size, grid.symmetric) for part in (0, 1))
        noise = choosing + of_weights, judging + of_weights
        noises[name] = min(noise, noises.get(name, noise))
    noises[CHOSEN] = min(noises.values())
    return {name: 10 * math.log10(noises[HADAMARD][1] / judged) for name, (_, judged) in noises.items()}


def _candidates(matrix: Hadamard, reach: int) -> Iterator[tuple[str, Transform]]:
    width, generator = matrix.width, np.random.default_rng(0)
    yield HADAMARD, Transform((matrix,))
    yield NONE, Transform.identity(width)
    for name, square in ((DCT, dct(np.eye(reach), norm="ortho")), (RANDOM, ortho_group.rvs(reach, random_state=0))):
        yield name, Transform((Blocks(np.repeat(square[None], width // reach, axis=0)),))
    for _ in range(PATTERNS):
        yield SIGNS, Transform((Scale(generator.choice(np.array([-1.0, 1.0]), width)), matrix))


def table(found: Mapping[str, Mapping[str, Sequence[Gains]]]) -> str:
    """Return a Markdown table: for each scheme a line for all sites and one for each kind."""
    names, lines = (NONE, DCT, RANDOM, SIGNS, CHOSEN), []
    for scheme, kinds in found.items():
        everything = {"all": [gains for own in kinds.values() for gains in own], **kinds}
        for label, own in everything.items():
            means = [f"{statistics.mean(gains[name] for gains in own):+.2f}" for name in names]
            lines.append((scheme if label == "all" else "", label, str(len(own)), *means))
    return aligned(("scheme", "sites", "how many", *names), lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="catonnx-orthogonal-") as place, threadpool_limits(1, "blas"):
        folder = options.model or models.path("smollm2")
        bench = Workbench(folder, models.path("news"), options.samples, options.seq_len, Path(place))
        found = {scheme: compare(bench, scheme) for scheme in (TOKEN, GROUPS)}
    head = surroundings() | {
        "model": str(options.model or "SmolLM2-135M-Instruct"),
        "samples": options.samples,
        "seq_len": options.seq_len,
        "gains_db": found,
    }
    write_json(options.json, head, [])
    print(table(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orthogonal", description="Compare orthogonal factors site by site; see the file's first lines."
    )
    add_calibration(parser)
    add_places(parser, RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
