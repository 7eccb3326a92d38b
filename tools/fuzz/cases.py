"""Cases to try: a random graph in random clothes, inputs for it, and a random recipe, all drawn from one seed."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx

from catonnx import recipe as recipes
from catonnx.errors import UsageError
from catonnx.recipe import Recipe
from catonnx.recipe.checks import GROUP_SIZES
from models.dressing import dress, halve
from models.random_extras import MORE_STEPS, ODD_WIDTHS
from models.random_graphs import random_graph
from models.random_pieces import DECODE, PREFILL, WIDTHS

Feeds = dict[str, np.ndarray]

OPSETS = (13, 14, 15, 16, 17, 18, 19, 20, 21, 21, 21, 23)
LEARNED = ("spinquant", "flatquant")
FLOAT_FIELDS = (
    "transform",
    "block_size",
    "hadamard_size",
    "permute",
    "online",
    "max_overhead",
    "caches",
    "exclude",
    "seed",
)
"""What a recipe that rounds nothing may ask for."""
RARE = {"max_overhead": 0.1, "w8": 0.15, "keep_8bit": 0.15, "include": 0.1, "exclude": 0.15}
"""How often fields are asked for that refuse many models."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and what is asked for.

    Attributes:
        model: The model.
        feeds: Inputs to calibrate on.
        checks: Inputs to compare on; none of them was calibrated on.
        caches: Input -> output of attention caches, both under their names in the model.
        wishes: Fields of the recipe, without the calibration.
        external: Whether tensors lie in a file beside the model.
    """

    model: onnx.ModelProto
    feeds: tuple[Feeds, ...]
    checks: tuple[Feeds, ...]
    caches: dict[str, str]
    wishes: dict[str, Any]
    external: bool = False

    @property
    def half(self) -> bool:
        """Whether the model computes in float16."""
        return any(array.dtype == np.float16 for feeds in self.feeds for array in feeds.values())

    def write(self, folder: Path) -> Path:
        """Write the model and its calibration to a new folder, and return the model's own folder in it."""
        place = folder / "model"
        place.mkdir(parents=True)
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        if self.external:
            onnx.save(
                model, place / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64
            )
        else:
            onnx.save(model, place / "model.onnx")
        arrays = {f"{index}/{name}": array for index, sample in enumerate(self.feeds) for name, array in sample.items()}
        np.savez(folder / "feeds.npz", allow_pickle=False, **arrays)
        return place

    def recipe(self, folder: Path) -> Recipe:
        """Return the recipe, with the calibration that `write` wrote there."""
        return Recipe(calibration=str(folder / "feeds.npz"), **self.wishes)


def draw(seed: int) -> Case:
    """Draw one case."""
    choose = random.Random(seed)
    widths = choose.choice((WIDTHS, ODD_WIDTHS))
    graph = random_graph(choose, opsets=OPSETS, widths=widths, more_steps=MORE_STEPS)
    model = graph.net.proto()
    half, empty = choose.random() < 0.2, choose.random() < 0.05
    if half:
        halve(model)
    lengths = [PREFILL] * 4 if graph.seq != "seq" else [choose.randint(1, 6) for _ in range(4)]
    samples = [_renewed(graph.feeds(length), seed + index, half) for index, length in enumerate(lengths)]
    if empty:
        samples[1] = {name: array[:0] for name, array in samples[1].items()}
    names = dress(model, choose)
    caches = {names.get(past, past): names.get(present, present) for past, present, _, _ in graph.caches}
    renamed = [{names.get(name, name): array for name, array in sample.items()} for sample in samples]
    count = choose.randint(1, 3)
    return Case(model, tuple(renamed[:count]), tuple(renamed[3:]), caches, wishes(choose), choose.random() < 0.2)


def _renewed(feeds: Feeds, seed: int, half: bool) -> Feeds:
    """Return other numbers of the same shapes."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(size=array.shape).astype(np.float16 if half else np.float32)
        for name, array in feeds.items()
    }


def decoding(case: Case, outputs: Feeds, feeds: Feeds) -> Feeds | None:
    """Return the inputs of one more row behind what gave these outputs, from the cache in them."""
    if not case.caches:
        return None
    more = {name: array[:, :DECODE] if array.ndim == 3 else array for name, array in feeds.items()}
    return more | {past: outputs[present] for past, present in case.caches.items()}


def wishes(choose: random.Random) -> dict[str, Any]:
    """Draw fields of a recipe that do not contradict each other; those left at their default are left out."""
    while True:
        everything = _drawn(choose)
        scheme = everything["scheme"] if choose.random() < 0.7 else "w4a16"
        fields = FLOAT_FIELDS if scheme == "float" else everything.keys()
        drawn = {name: everything[name] for name in fields if choose.random() < RARE.get(name, 0.4)}
        drawn |= {"scheme": scheme, "samples": 3, "lm_head": choose.random() < 0.8}
        if drawn.get("transform") in LEARNED and choose.random() < 0.95:
            continue  # they train, which takes as long as a hundred others
        try:
            Recipe(calibration="x.npz", **drawn)
        except UsageError:
            continue
        return drawn


def _drawn(choose: random.Random) -> dict[str, Any]:
    return {
        "scheme": choose.choice((*get_args(recipes.Scheme), "float", "float")),
        "group_size": choose.choice((*GROUP_SIZES, 16, None, None)),
        "transform": choose.choice(get_args(recipes.TransformName)),
        "block_size": choose.choice((1, 2, 3, 4, 7, 8, 32)),
        "hadamard_size": choose.choice((1, 2, 4, 12, 16, 20)),
        "permute": choose.random() < 0.7,
        "online": choose.choice(get_args(recipes.Online)),
        "max_overhead": choose.choice((0.0, 0.05, 0.3, 2.0)),
        "caches": choose.choice(get_args(recipes.Caches)),
        "rounding": choose.choice(get_args(recipes.Rounding)),
        "damping": choose.choice((0.01, 0.3, 1.0)),
        "correct_bias": choose.random() < 0.7,
        "scales": choose.choice(get_args(recipes.Scales)),
        "activations": choose.choice(get_args(recipes.Activations)),
        "activation_range": choose.choice(get_args(recipes.ActivationRange)),
        "activation_group_size": choose.choice((16, 32, None)),
        "clip": choose.choice((0.5, 0.9, 1.0)),
        "w8": choose.choice((("*",), ("*1*",), ("*node_2*", "*node_3*"))),
        "keep_8bit": choose.choice((0, 1, 2, 9)),
        "target_bits": choose.choice((4.0, 4.5, 6.0, 8.0)),
        "form": choose.choice(get_args(recipes.Form)),
        "accuracy_level": choose.choice((0, 1, 4)),
        "include": choose.choice((("*",), ("*1*", "*2*"))),
        "exclude": choose.choice((("*3*",), ("nothing",))),
        "seed": choose.randrange(5),
    }
