"""`optimize`: the whole way from a model to its verified 4-bit form, read from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from catonnx.analysis import MARK, Opened, analyse, check_something_to_do, check_types, check_weights, selected_weights
from catonnx.calibrating import calibration_feeds, measure_sites
from catonnx.errors import NothingToOptimizeError, OutputError, UsageError
from catonnx.genai.folder import check_folder, prepare
from catonnx.graph import load
from catonnx.graph.absorb_walk import continued_input
from catonnx.graph.outputs import with_outputs
from catonnx.graph.save import RESULT_MARK, copy_companions, is_inside, spilling, write_model
from catonnx.measures import Clock, bytes_of, peak_memory, versions
from catonnx.narrowing import narrowed
from catonnx.outcome import Shifts, observer, rows_of
from catonnx.planning.allocation import Allotment, decide
from catonnx.planning.plancheck import check_form, check_plan
from catonnx.planning.quality import RoundedSite, predict
from catonnx.planning.siteplan import Plan, online_multiply_adds
from catonnx.progress import Progress, silent
from catonnx.recipe import SELF, Recipe
from catonnx.report import Report
from catonnx.rewriting import transform, write_rounded
from catonnx.rounders import Dampings, make_rounder
from catonnx.runtime.blame import blaming
from catonnx.runtime.checkpoint import Checkpoint
from catonnx.runtime.compare import SitePair
from catonnx.runtime.decoding import can_be_continued
from catonnx.runtime.feeds import Feeds, graph_inputs
from catonnx.runtime.lengths import blaming_length
from catonnx.runtime.running import Unwritten
from catonnx.runtime.samples import shortened
from catonnx.runtime.stage_sessions import free_path
from catonnx.runtime.verify import Verifier
from catonnx.unchanged import hand_on
from catonnx.workspace import working

_COMPANIONS = ("*config.json", "tokenizer*", "special_tokens_map.json")
"""Files beside a model that say how text becomes its inputs."""

VERIFIED_RUNS = 2
VERIFIED_TOKENS = 256
"""Calibration runs, and the tokens of each, on which source and result are compared."""


def optimize(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    file_name: str | None = None,
    plan: Plan | None = None,
    force: bool = False,
    allow_unchanged: bool = False,
    genai: bool = False,
    progress: Progress = silent,
    announce: Callable[[Sequence[Allotment]], None] = lambda _: None,
) -> Report:
    """Transform, round, verify and save a model.

    Args:
        model: An .onnx file, or a folder with `model.onnx`, its config and tokenizer.
        out: A new folder; it appears when everything is verified, or not at all.
        recipe: What to do; the default rounds weights to int4 in groups of 32 after CAT.
        file_name: Of the model in a folder that holds several; the others stay behind.
        plan: A plan made before for this model and recipe; nothing is fitted then.
        force: Replace `out` if it exists.
        allow_unchanged: Copy a model that holds nothing to optimize, instead of refusing it.
        genai: Make `out` a folder that onnxruntime-genai opens; what is missing for that stands in the report.
        progress: Told of long steps.
        announce: Told which sites keep 8 bits before anything is changed.

    Returns:
        What was done and how well it held; its `plan` can be applied again.

    Raises:
        CatonnxError: one of its subclasses, see `catonnx.errors`; `out` is untouched then.
    """
    recipe, out, clock = recipe or Recipe(), Path(out), Clock()
    source = load.find(Path(model), file_name)
    _check_places(source, out)
    if genai:
        check_folder(source)
    key = functools.partial(_key, source, recipe, plan)
    # BLAS threads beside ONNX Runtime's own fight for the cores: small products became up to 100 times slower.
    # Numbers that grow beyond what a type holds are met where they matter, as NaN or Inf of an activation or output.
    with (
        threadpool_limits(1, "blas"),
        np.errstate(over="ignore"),
        working(out, force=force, key=key) as space,
        ExitStack() as cleanup,
    ):
        work, stage, kept = space.source, space.result, space.kept
        cleanup.enter_context(load.naming(work / load.COPY, source.path))
        with clock("load"):
            reference = space.copied(lambda: load.bring(source, work))
            cleanup.enter_context(blaming(reference, recipe.provider))
            cleanup.enter_context(blaming_length(source.path.parent))
            locations = source.locations  # read here, where memory is still free
            opened = analyse(load.load(reference), recipe)
            try:
                check_something_to_do(opened)
            except NothingToOptimizeError as error:
                if not allow_unchanged:
                    raise
                report = hand_on(source, out, stage, recipe, opened.left_alone(), error, clock)
                report = dataclasses.replace(report, genai=prepare(stage, source, recipe, wanted=genai))
                _write_report(report, stage)
                return report
            check_types(opened)
            check_weights(opened)
        with clock("calibrate"):
            fits = recipe.needs_moments if plan is None else recipe.rounds_by_data
            samples = recipe.samples if fits else VERIFIED_RUNS
            feeds = calibration_feeds(reference, source, opened, recipe, samples, progress, kept)
            verified = [shortened(run, VERIFIED_TOKENS, graph_inputs(opened.model)) for run in feeds[:VERIFIED_RUNS]]

        if recipe.dtype == "float16":
            with clock("narrow"):
                opened = narrowed(opened, reference, verified, work, progress)
        if plan is not None:
            check_plan(plan, opened.sites, opened.absorptions, opened.tied)
            check_form(plan, recipe, opened.sites)
        graph_model, linears = opened.model, tuple(linear for site in opened.sites for linear in site.selected)

        with clock("calibrate"):
            measured = Checkpoint(space.live / "measured")
            moments = measure_sites(opened, work, feeds, recipe, progress, kept, measured) if fits else {}

        with clock("plan"):
            chosen = decide(opened, moments, recipe, announce, kept) if plan is None else plan
            predictions = predict(opened.sites, chosen, moments, recipe, selected_weights)
            changed_caches = _changed_caches(opened, chosen)
            _check_caches_are_empty(opened, changed_caches, feeds[:VERIFIED_RUNS])

        with clock("transform"):
            transform(opened, chosen)
            graph_model.metadata_props[MARK] = recipe.scheme
            transformed = Unwritten(graph_model, work)
            if not recipe.rounds:
                write_model(graph_model, stage / "model.onnx")
                transformed = _result(stage)

        compared = [str(value.name) for value in graph_model.graph.outputs if value.name not in changed_caches]
        verifying = Verifier(
            Unwritten(load.runnable(reference), work, reference),
            verified,
            compared,
            # The branch that continues from a cache is seen in no other way.
            continued=bool(changed_caches)
            or (any(site.inside for site in opened.sites) and can_be_continued(graph_model)),
            provider=recipe.provider,
            scratch=work,
            progress=progress,
        )
        with clock("verify"):
            verifier = cleanup.enter_context(verifying)
            verification = verifier.check_equivalent(
                transformed,
                {site.dtype.name.lower() for site in opened.sites},
                lambda: _site_models(opened, chosen, work),
                *(["--dtype source keeps float32"] if opened.narrowed else []),
            )

        rounded: dict[str, RoundedSite] = {}
        dampings: Dampings = {}
        if recipe.rounds:
            with clock("round"):
                rounder = make_rounder(
                    opened,
                    chosen,
                    moments,
                    recipe,
                    feeds=feeds,
                    scratch=work,
                    dampings=dampings,
                    kept=kept,
                    checkpoint=Checkpoint(space.live / "rounded"),
                    progress=progress,
                )
                shifts: Shifts | None = {} if recipe.correct_bias else None
                observe = observer(opened, chosen, moments, rounded, shifts)
                spill = spilling(free_path(work).with_suffix(".bin"))
                write_rounded(opened, chosen, rounder, observe, shifts, progress, spill)
            with clock("save"):
                write_model(graph_model, stage / "model.onnx")
            with clock("verify"):
                verification |= verifier.check_deployed(
                    _result(stage),
                    [linear.name for linear in linears],
                    rounds_activations=recipe.form == "qdq" and recipe.provider == "cpu",
                )

        with clock("save"):
            skip = {*source.own_files, RESULT_MARK}
            not_copied = () if source.folder is None else copy_companions(source.path, stage, skip)
            for_genai = prepare(stage, source, recipe, wanted=genai)
        report = Report(
            source=str(model),
            out=str(out),
            digest=source.digest,
            recipe=recipe.to_json(),
            unchanged="",
            sites=rows_of(opened, chosen, predictions, rounded),
            left=opened.left_alone(),
            turned=opened.turned,
            narrowed=opened.narrowed,
            changed_caches=changed_caches,
            not_copied=not_copied,
            genai=for_genai,
            verification=verification,
            steps=tuple(clock.seconds.items()),
            size_before=bytes_of(source.path.parent, [source.path.name, *locations]),
            size_after=bytes_of(stage, ["model.onnx", "model.onnx_data"]),
            peak_memory=peak_memory(),
            multiply_adds=sum(linear.inputs * linear.outputs for linear in linears),
            online_multiply_adds=sum(online_multiply_adds(item) for item in chosen.sites),
            dampings=dampings,
            calibration_rows=max((item.count for item in moments.values()), default=0),
            versions=versions(),
            plan=chosen,
        )
        cleanup.close()
        _write_report(report, stage)
    return report


def _write_report(report: Report, stage: Path) -> None:
    (stage / RESULT_MARK).write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")


def _key(source: load.Source, recipe: Recipe, plan: Plan | None) -> str:
    """Return a digest of all that the output depends on: model and companions, calibration, recipe, plan, versions."""
    with blaming(source.path, recipe.provider):
        digest = hashlib.sha256(source.digest.encode())
    files = [Path(text) for text in recipe.texts if text != SELF]
    beside = {file for pattern in _COMPANIONS for file in source.path.parent.glob(pattern)}
    files += sorted(file for file in beside if is_inside(file, source.path))
    for file in filter(Path.is_file, files):  # a pipe would wait for somebody to write
        with contextlib.suppress(OSError), file.open("rb") as stream:  # whoever needs it says what is wrong
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    for name, array in {} if plan is None else plan.to_arrays().items():
        digest.update(name.encode() + array.tobytes())
    digest.update(json.dumps([recipe.to_json(), versions()], sort_keys=True).encode())
    return digest.hexdigest()


def _check_places(source: load.Source, out: Path) -> None:
    try:
        target = out.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL
        raise OutputError(f"this is no place for an output: {error}", where=out, hint="choose another place") from error
    if source.folder is not None and target.is_relative_to(source.folder.resolve()):
        raise OutputError("the output lies inside the model's folder", where=out, hint="choose another place")
    if source.path.resolve().is_relative_to(target) or source.path.absolute().is_relative_to(out.absolute()):
        raise OutputError("the model lies inside the output folder", where=out, hint="choose another place")
    if Path.cwd().resolve().is_relative_to(target):
        raise OutputError("the output is the current folder, or holds it", where=out, hint="name a new folder")


def _changed_caches(opened: Opened, plan: Plan) -> tuple[str, ...]:
    plans = plan.by_site()
    changed = (opened.absorptions[site.name].changed_caches(plans[site.name].absorbed) for site in opened.sites)
    return tuple(dict.fromkeys(name for names in changed for name in names))


def _check_caches_are_empty(opened: Opened, changed: Sequence[str], feeds: Sequence[Feeds]) -> None:
    """Refuse inputs with a filled cache: it is in the source's basis, and the result wants it in another."""
    outputs = [value for value in opened.model.graph.outputs if value.name in changed]
    for state in filter(None, map(continued_input, outputs)):
        if any(sample[str(state.name)].size for sample in feeds if state.name in sample):
            raise UsageError(
                "the calibration inputs hold a filled cache, whose basis would change",
                where=f"input {state.name}",
                hint="pass --caches exact, or inputs with an empty cache",
            )


def _result(stage: Path) -> Unwritten:
    """Return the saved model, read afresh."""
    path = stage / "model.onnx"
    return Unwritten(load.read(path), stage, path)


def _site_models(opened: Opened, plan: Plan, work: Path) -> tuple[Unwritten, Unwritten, list[SitePair]]:
    """Return the source and the transformed model with the activation that every linear reads as outputs."""
    before = analyse(load.load(work / load.COPY), opened.recipe)
    plans = plan.by_site()
    sources = {linear.name: site for site in before.sites for linear in site.linears}
    sites = [site for site in opened.sites if not site.inside]  # the others are no values of the main graph
    # What became float16 has the sites of the source, under other names where a Cast stands before them.
    old_sites = [sources[site.linears[0].name] for site in sites]
    new_values = [site.linears[0].node.inputs[0] for site in sites]
    new_names = [str(value.name) for value in new_values if value is not None]
    old = with_outputs(before.model, {site.name: site.dtype for site in old_sites})
    new = with_outputs(opened.model, dict(zip(new_names, (site.dtype for site in sites), strict=True)))
    pairs = [
        SitePair(site.name, old_site.name, name, plans[site.name].transform(site.width).apply)
        for site, old_site, name in zip(sites, old_sites, new_names, strict=True)
    ]
    return Unwritten(old, work), Unwritten(new, work), pairs
