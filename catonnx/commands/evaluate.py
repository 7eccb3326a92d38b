"""`catonnx evaluate`: a model, and the one that it was made from, on a text, on tasks, or on both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from catonnx.commands.options import JsonOption, ProviderOption, QuietOption, VerboseOption
from catonnx.commands.terminal import Terminal, guarded
from catonnx.errors import UsageError
from catonnx.files import check_json
from catonnx.progress import Progress


def evaluate_command(
    model: Annotated[Path, typer.Argument(metavar="OUT", help="The model to judge: a folder, or an .onnx file.")],
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plain text in UTF-8, other than it was calibrated on.")
    ] = None,
    against: Annotated[Path | None, typer.Option(metavar="MODEL", help="The model that it was made from.")] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences of text.")] = 16,
    seq_len: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens in each, BOS included.")] = 512,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Ask the questions of these tasks, by lm-eval (catonnx\\[tasks])."),
    ] = None,
    task_folder: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="More tasks, as YAML files of lm-eval that may run code; repeatable."),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Solved examples first.", show_default="the task's")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Questions of each task.", show_default="all")
    ] = None,
    provider: ProviderOption = None,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure perplexity, divergence from the source, speed and size on --text; answers to questions on --tasks."""
    with guarded(verbose=verbose):
        asked = [name for name in (tasks or "").split(",") if name.strip()]
        if text is None and not asked:
            raise UsageError("there is nothing to evaluate on", hint="give a --text, or --tasks")
        if not asked and (task_folder or shots is not None or limit is not None):
            raise UsageError(
                "--task-folder, --shots and --limit are for --tasks", hint="name a task, or leave them out"
            )
        check_json(json_file, model, text, against, *(task_folder or []))
        terminal = Terminal(quiet=quiet)
        runs_on = provider or "cpu"
        models = [model, *([] if against is None else [against])]

        from catonnx.commands.tables import answered, judged
        from catonnx.judging.evaluation import evaluate_on_text

        told: dict[str, Any] = {"models": [{"model": str(name)} for name in models]}
        shown = []
        with terminal.progress() as progress:
            if text is not None:
                result = evaluate_on_text(
                    model, text, against=against, samples=samples, seq_len=seq_len, provider=runs_on, progress=progress
                )
                told = result.to_json()
                shown += judged(result)
            if asked:
                given = [name.strip() for name in asked], task_folder or [], shots, limit
                results = _answers(models, *given, runs_on, progress)
                for row, found in zip(told["models"], results, strict=True):
                    row["tasks"] = [each.to_json() for each in found]
                shown += answered([str(name) for name in models], results)
        terminal.deliver(json_file, told, shown)


def _answers(
    models: Sequence[Path],
    names: Sequence[str],
    folders: Sequence[Path],
    shots: int | None,
    limit: int | None,
    provider: str,
    progress: Progress,
) -> list[Any]:
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's own bars; read when it is imported
    from catonnx.judging.tasks import Tasks, evaluate_on_tasks

    tasks = Tasks(tuple(names), tuple(folders), shots, limit)
    return [evaluate_on_tasks(each, tasks, spare=models[-1], provider=provider, progress=progress) for each in models]
