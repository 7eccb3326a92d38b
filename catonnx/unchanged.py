"""A model with nothing to optimize, handed on as it is: what toolchains that treat every model alike ask for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from catonnx.errors import NothingToOptimizeError, OutputError
from catonnx.graph import load
from catonnx.graph.save import RESULT_MARK, copy_companions, write_model
from catonnx.measures import Clock, bytes_of, peak_memory, versions
from catonnx.planning.siteplan import Plan
from catonnx.recipe import Recipe
from catonnx.report import Report


def hand_on(
    source: load.Source,
    out: Path,
    stage: Path,
    recipe: Recipe,
    left: tuple[tuple[str, str, str], ...],
    why: NothingToOptimizeError,
    clock: Clock,
) -> Report:
    """Copy a model and what lies beside it; nothing in it changes.

    Args:
        source: The model.
        out: What the report calls the output.
        stage: Where the copy goes, as `model.onnx`; its data keep their names.
        recipe: What was asked for.
        left: What looks like a linear, and why it is none of ours.
        why: Why there is nothing to do.
        clock: Of the run.

    Raises:
        OutputError: if the copy cannot be written.
    """
    names = {source.path: "model.onnx"} | {source.path.parent / place: place for place in source.locations}
    with clock("save"):
        if {"model.onnx", RESULT_MARK, source.path.name} & set(source.locations):  # names that are taken
            write_model(load.read(source.path), stage / "model.onnx")
        else:
            _copy(names, stage)
        skip = {*source.own_files, RESULT_MARK}
        not_copied = () if source.folder is None else copy_companions(source.path, stage, skip)
    size = bytes_of(source.path.parent, [source.path.name, *source.locations])
    return Report(
        source=str(source.folder or source.path),
        out=str(out),
        digest=source.digest,
        recipe=recipe.to_json(),
        unchanged=str(why.what),
        sites=(),
        left=left,
        turned=(),
        changed_caches=(),
        not_copied=not_copied,
        verification={},
        steps=tuple(clock.seconds.items()),
        size_before=size,
        size_after=size,
        peak_memory=peak_memory(),
        multiply_adds=0,
        online_multiply_adds=0,
        dampings={},
        calibration_rows=0,
        versions=versions(),
        plan=Plan(()),
    )


def _copy(names: Mapping[Path, str], stage: Path) -> None:
    try:
        for file, name in names.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, stage / name)
    except OSError as error:
        raise OutputError(
            f"the model cannot be copied: {error.strerror}", where=stage, hint="free some space"
        ) from error
