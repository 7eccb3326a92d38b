"""A small chain of linears to stream through, and a visitor that notes what it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from catonnx.graph.segments import cut
from catonnx.graph.sites import Selection, Site, find_sites
from catonnx.graph.stages import Stage
from catonnx.runtime.stream import Batches, Decision, Rows, Visit
from tests.graph.builder import Net

Pairs = dict[str, list[Rows]]


def recorder(decide: Mapping[str, Decision] | None = None) -> tuple[Pairs, Visit]:
    """Return where rows are noted by site, and a visitor that notes them and decides as told."""
    seen: Pairs = {}

    def visit(site: Site, batches: Batches) -> Decision:
        seen[site.name] = [Rows(rows.exact.copy(), rows.rounded.copy()) for rows in batches]
        assert len(batches) == len(seen[site.name])
        return (decide or {}).get(site.name, Decision())

    return seen, visit


def feeds(*counts: int, width: int = 4) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"x": random.normal(size=(count, width)).astype(np.float32)} for count in counts]


class Chain:
    """x -> Relu -> a; a W0 + a W1 (not selected) + a -> Sin -> b; b W2 -> Exp -> c; c W3 -> y."""

    def __init__(self) -> None:
        net = Net()
        weights = [net.normal(4, 4) for _ in range(4)]
        site = net.op("Relu", net.input("x", ["rows", 4]), result="a")
        products = [net.op("MatMul", site, weight) for weight in weights[:2]]
        middle = net.op("Sin", net.op("Add", net.op("Add", *products), site), result="b")
        last = net.op("Exp", net.op("MatMul", middle, weights[2]), result="c")
        net.output(net.op("MatMul", last, weights[3], result="y"))
        self.weights = [net.initializers[weight] for weight in weights]
        self.model = net.model()
        linears = [str(node.name) for node in self.model.graph if node.op_type == "MatMul"]
        self.names = [linears[0], *linears[2:]]
        self.sites = find_sites(self.model.graph, Selection(exclude=[linears[1]], head=True)).sites

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The model, cut."""
        return cut(self.model, self.sites)

    def expected(
        self, x: np.ndarray, weights: Mapping[int, np.ndarray] | None = None, rounding: Callable[..., np.ndarray] = abs
    ) -> list[np.ndarray]:
        """Return a, b, c in float64, with other weights and a rounding of what enters the selected linear of a."""
        w = dict(enumerate(self.weights)) | dict(weights or {})
        a = np.maximum(x.astype(np.float64), 0)
        b = np.sin(rounding(a) @ w[0] + a @ w[1] + a)
        return [a, b, np.exp(b @ w[2])]
