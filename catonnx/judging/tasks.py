"""`evaluate --tasks`: tests of knowledge by lm-eval, on models as ONNX Runtime runs them."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from catonnx.errors import CalibrationError, RuntimeUnavailableError, UsageError
from catonnx.graph import load
from catonnx.progress import Progress, silent
from catonnx.runtime.divergence import json_number
from catonnx.runtime.library import open_model
from catonnx.runtime.scoring import Scorer
from catonnx.runtime.text import TokenStream, configured_ends, configured_length

_TOKENS = 256
"""Tokens that a task may have written where it does not say how many: as everywhere in lm-eval."""

_UNDERSTOOD = {"until", "max_gen_toks", "do_sample", "temperature"}
"""What of a task's wishes for written text is followed."""

_RESAMPLES = 1000
"""For the standard errors of figures that have no formula for it."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One figure of one task.

    Attributes:
        task: Name of the task.
        metric: Name of the figure; that of a filter behind it, if the task has one.
        value: The figure.
        error: Its standard error, None if it has none.
        samples: Questions asked; None for a group of tasks.
    """

    task: str
    metric: str
    value: float
    error: float | None
    samples: int | None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data; a figure that is not finite becomes None."""
        data = dataclasses.asdict(self)
        return data | {"value": json_number(self.value), "error": json_number(self.error)}


@dataclasses.dataclass(frozen=True)
class Tasks:
    """What is asked.

    Attributes:
        names: Names of tasks or groups, shell patterns too.
        folders: Where more tasks lie, as YAML files; what they name to run is run.
        shots: Solved examples before each question; as each task has it unless given.
        limit: Questions of each task; all unless given.
    """

    names: tuple[str, ...]
    folders: tuple[Path, ...] = ()
    shots: int | None = None
    limit: int | None = None


def evaluate_on_tasks(
    model: str | os.PathLike[str],
    tasks: Tasks,
    *,
    spare: str | os.PathLike[str] | None = None,
    provider: str = "cpu",
    progress: Progress = silent,
) -> tuple[Result, ...]:
    """Ask a language model the questions of tasks.

    Every text begins as the model's texts begin (BOS): figures of tools that leave it out differ a little.

    Args:
        model: An .onnx file, or a folder with `model.onnx`; tokenizer.json and config.json lie beside it.
        tasks: What is asked.
        spare: A model whose tokenizer is taken where there is none.
        provider: Where it runs, "cpu" or "cuda".
        progress: Told of every question.

    Raises:
        CatonnxError: one of its subclasses, see `catonnx.errors`.
    """
    harness = _harness()
    path = load.find(Path(model)).path
    homes = [path.parent, *([] if spare is None else [load.find(Path(spare)).path.parent])]
    home = next((folder for folder in homes if (folder / "tokenizer.json").is_file()), path.parent)
    for folder in tasks.folders:
        if not folder.is_dir():
            raise UsageError("there is no such folder of tasks", where=folder, hint="name one that holds .yaml files")
    manager, names = _chosen(harness, tasks)
    scorer = Scorer(
        open_model(path, provider=provider), TokenStream.load(home), configured_ends(home), configured_length(home)
    )
    with _hushed():
        told = _asked(harness, manager, names, tasks, _language_model(harness, scorer, progress))
    return tuple(_results(told))


@contextmanager
def _hushed() -> Iterator[None]:
    """Let lm-eval log errors only: what it assumes where a task is silent fills the screen."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _harness() -> Any:
    try:
        import lm_eval
        import lm_eval.api.model
        import lm_eval.tasks
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"tasks need lm-eval, which cannot be imported: {error}", hint='pip install "catonnx[tasks]"'
        ) from error
    return lm_eval


def _chosen(harness: Any, tasks: Tasks) -> tuple[Any, list[str]]:
    """Return what knows the tasks, and their names: the folders alone if they hold all, for lm-eval's own are many."""
    manager_of = functools.partial(harness.tasks.TaskManager, include_path=[str(folder) for folder in tasks.folders])
    manager = manager_of(include_defaults=False) if tasks.folders else None
    if manager is None or not all(manager.match_tasks([name]) for name in tasks.names):
        manager = manager_of(include_defaults=True)
    found: dict[str, None] = {}
    for name in tasks.names:
        matches = manager.match_tasks([name])
        if not matches:
            raise UsageError(
                f"lm-eval knows no task {name!r}", hint="list them with `lm-eval ls tasks`, or name their --task-folder"
            )
        found |= dict.fromkeys(matches)
    return manager, list(found)


def _asked(harness: Any, manager: Any, names: Sequence[str], tasks: Tasks, model: Any) -> dict[str, Any]:
    try:
        told: dict[str, Any] = harness.simple_evaluate(
            model=model,
            tasks=list(names),
            task_manager=manager,
            num_fewshot=tasks.shots,
            limit=tasks.limit,
            bootstrap_iters=_RESAMPLES,
            log_samples=False,
        )
    # Whatever a task's files and the libraries that fetch its data raise; our own errors pass.
    except (ArithmeticError, AssertionError, LookupError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CalibrationError(
            f"a task cannot be asked: {reason}",
            where=", ".join(names),
            hint="most tasks fetch their data from a hub; --task-folder takes tasks whose data lie in files",
        ) from error
    return told


def _results(told: dict[str, Any]) -> Iterable[Result]:
    for task, figures in told["results"].items():
        counted = told.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in figures.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{metric}_stderr,{chosen}")
            name = metric if chosen == "none" else f"{metric} ({chosen})"
            yield Result(task, name, float(value), float(error) if isinstance(error, int | float) else None, counted)


def _language_model(harness: Any, scorer: Scorer, progress: Progress) -> Any:
    """Return a model as lm-eval wants it: a class of its own kind, which asks `scorer`."""

    def counted(requests: Sequence[Any], what: str) -> Iterable[Any]:
        for index, request in enumerate(requests):
            yield request.args
            progress(what, index + 1, len(requests))

    def loglikelihood(_: Any, requests: Sequence[Any], **__: Any) -> list[tuple[float, bool]]:
        return [scorer.continuation(context, words) for context, words in counted(requests, "ask")]

    def loglikelihood_rolling(_: Any, requests: Sequence[Any], **__: Any) -> list[float]:
        return [scorer.text(text) for (text,) in counted(requests, "read")]

    def generate_until(_: Any, requests: Sequence[Any], **__: Any) -> list[str]:
        return [scorer.write(context, **_wishes(wishes)) for context, wishes in counted(requests, "write")]

    methods = {
        "loglikelihood": loglikelihood,
        "loglikelihood_rolling": loglikelihood_rolling,
        "generate_until": generate_until,
    }
    return type("OnnxModel", (harness.api.model.LM,), methods)()


def _wishes(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what a task wishes of written text as arguments of `Scorer.write`."""
    unknown = asked.keys() - _UNDERSTOOD
    sampled = bool(asked.get("do_sample")) and float(asked.get("temperature", 1.0)) > 0
    if sampled and unknown:
        raise CalibrationError(f"a task wants text drawn with {', '.join(sorted(unknown))}", hint="take another task")
    until = asked.get("until") or []
    return {
        "until": [until] if isinstance(until, str) else list(until),
        "tokens": int(asked.get("max_gen_toks", _TOKENS)),
        "temperature": float(asked.get("temperature", 1.0)) if sampled else 0.0,
    }
