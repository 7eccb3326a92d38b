"""What is done at every site, as data that can be printed, saved and applied again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np

from catonnx.errors import UsageError
from catonnx.math.activations import ActivationGrid
from catonnx.math.factors import (
    Blocks,
    Factor,
    Hadamard,
    Kronecker,
    Permutation,
    Scale,
    Transform,
    transform_from_arrays,
    transform_to_arrays,
)
from catonnx.math.merging import merged


@dataclasses.dataclass(frozen=True, eq=False)
class SitePlan:
    """What is done at one site.

    Attributes:
        site: Name of the activation.
        absorbed: Factors that go into the nodes before the site, nearest the producer first.
        online: Factors that stay as nodes, after those.
        why: Why factors stay online, were left out or were narrowed; empty if there is nothing to say.
        bits: Of the weights.
        grid: How the activation is rounded before the linears; None leaves it in float.
    """

    site: str
    absorbed: tuple[Factor, ...]
    online: tuple[Factor, ...]
    why: str = ""
    bits: Literal[4, 8] = 4
    grid: ActivationGrid | None = None

    @property
    def factors(self) -> tuple[Factor, ...]:
        """All factors in order."""
        return (*self.absorbed, *self.online)

    def transform(self, width: int) -> Transform:
        """Return the whole change of basis."""
        return Transform(self.factors) if self.factors else Transform.identity(width)

    def summary(self) -> dict[str, Any]:
        """Return the choices without their numbers."""
        return {
            "absorbed": [describe(factor) for factor in self.absorbed],
            "online": [describe(factor) for factor in self.online],
            "why": self.why,
            "bits": self.bits,
            "activation": None if self.grid is None else dataclasses.asdict(self.grid),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """One `SitePlan` for each site that is changed or rounded, in graph order."""

    sites: tuple[SitePlan, ...]

    def by_site(self) -> dict[str, SitePlan]:
        """Return the plans by site name."""
        return {plan.site: plan for plan in self.sites}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return arrays that `from_arrays` reads back, for an .npz file."""
        arrays: dict[str, np.ndarray] = {"sites": np.array([plan.site for plan in self.sites], dtype=np.str_)}
        for index, plan in enumerate(self.sites):
            arrays[f"{index}.absorbed"] = np.array(len(plan.absorbed))
            arrays[f"{index}.why"] = np.array(plan.why, dtype=np.str_)
            arrays[f"{index}.bits"] = np.array(plan.bits)
            if plan.grid is not None:
                arrays[f"{index}.grid"] = _grid_array(plan.grid)
            if plan.factors:
                arrays.update(
                    {f"{index}.factor.{key}": a for key, a in transform_to_arrays(Transform(plan.factors)).items()}
                )
        return arrays

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> Plan:
        """Rebuild a plan from what `to_arrays` returned.

        Raises:
            UsageError: if the arrays are no plan.
        """
        try:
            return Plan(
                tuple(_site_from_arrays(arrays, index, str(name)) for index, name in enumerate(arrays["sites"]))
            )
        except (KeyError, ValueError, TypeError) as error:
            raise UsageError(f"this is no plan: {error}", hint="write one with --save-plan") from error


def _site_from_arrays(arrays: Mapping[str, np.ndarray], index: int, name: str) -> SitePlan:
    prefix = f"{index}.factor."
    own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    factors = transform_from_arrays(own).factors if own else ()
    absorbed, bits = int(arrays[f"{index}.absorbed"]), int(arrays[f"{index}.bits"])
    if bits not in (4, 8):
        raise ValueError(f"site {name} has weights of {bits} bits")
    grid = arrays.get(f"{index}.grid")
    return SitePlan(
        name,
        factors[:absorbed],
        factors[absorbed:],
        str(arrays[f"{index}.why"]),
        cast("Literal[4, 8]", bits),
        None if grid is None else _grid_from_array(grid),
    )


def _grid_array(grid: ActivationGrid) -> np.ndarray:
    scale, offset = grid.fixed or (math.nan, math.nan)
    return np.array([grid.bits, grid.symmetric, grid.group_size or 0, grid.clip, scale, offset])


def _grid_from_array(array: np.ndarray) -> ActivationGrid:
    bits, symmetric, group_size, clip, scale, offset = array.tolist()
    return ActivationGrid(
        cast("Literal[4, 8]", int(bits)),
        bool(symmetric),
        int(group_size) or None,
        clip,
        None if math.isnan(scale) else (scale, offset),
    )


def describe(factor: Factor) -> str:
    """Return a factor in a word or two."""
    match factor:
        case Scale():
            return "scale"
        case Blocks():
            return f"blocks {factor.matrices.shape[1]}"
        case Hadamard():
            return f"hadamard {factor.order}"
        case Permutation():
            return "permutation"
        case Kronecker():
            return f"kronecker {len(factor.first)} x {len(factor.second)}"


def describe_grid(grid: ActivationGrid) -> str:
    """Return how an activation is rounded, in a word or two."""
    shared = "static" if grid.fixed else f"group {grid.group_size}" if grid.group_size else "token"
    return f"{grid.bits} a {shared}" if grid.fixed is None else f"{grid.bits} static"


def online_multiply_adds(plan: SitePlan) -> int:
    """Return what the factors of a site that run as nodes cost per token."""
    return sum(factor.multiply_adds for factor in merged(plan.online))
