"""Stages run one after the other by hand, and compared with the model that they were cut from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from catonnx.graph.outputs import with_outputs
from catonnx.graph.segments import cut
from catonnx.graph.sites import Selection, Site, find_sites
from catonnx.graph.stages import Stage
from tests.graph.builder import Arrays, run

HEAD = Selection(head=True)


def sites_of(model: ir.Model, selection: Selection = HEAD) -> tuple[Site, ...]:
    return find_sites(model.graph, selection).sites


def follow(
    stages: Sequence[Stage],
    feeds: Arrays,
    weights: Mapping[str, np.ndarray] | None = None,
    change_rows: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> dict[str, np.ndarray]:
    """Run stages one after the other and return all that was handed over; what has ended cannot be read."""
    live, seen = dict(feeds), dict[str, np.ndarray]()
    for stage in stages:
        seen.update({tap.name: live[tap.name] for tap in stage.arriving})
        if stage.outputs:
            arrays = {str(value.name): live[str(value.name)] for value in stage.inputs}
            arrays |= {tap.rows: change_rows(live[tap.name]) for tap in stage.fed}
            own = {name: array for name, array in (weights or {}).items() if name in stage.linears}
            made = run(stage.model(arrays, own), arrays)
            assert list(made) == [value.name for value in stage.outputs]
            live |= made
            seen |= made
        for name in stage.ending:
            del live[name]
    assert live.keys() == feeds.keys(), "something was handed over and never ended"
    return seen


def whole(model: ir.Model, feeds: Arrays, values: Sequence[str]) -> dict[str, np.ndarray]:
    """Return values of the uncut model."""
    return run(with_outputs(model, dict.fromkeys(values, ir.DataType.FLOAT)), feeds)


def assert_faithful(model: ir.Model, sites: Sequence[Site], feeds: Arrays) -> tuple[Stage, ...]:
    """Check that stages give each site bit for bit what the whole model gives it."""
    stages = cut(model, sites)
    seen = follow(stages, feeds)
    taps = [tap.name for stage in stages for tap in stage.arriving]
    assert len(taps) == len([site for site in sites if site.selected])
    for name, expected in whole(model, feeds, taps).items():
        np.testing.assert_array_equal(seen[name], expected, err_msg=name)
    return stages


def rows(count: int = 3, width: int = 4) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(count, width)).astype(np.float32)}
