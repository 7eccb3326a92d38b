"""All commands, with their examples. What they call is imported when it is called, so that `--help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from catonnx import __version__
from catonnx.commands.compare import compare_command
from catonnx.commands.doctor import doctor_command
from catonnx.commands.evaluate import evaluate_command
from catonnx.commands.inspect import inspect_command
from catonnx.commands.optimize import optimize_command
from catonnx.commands.report import report_command
from catonnx.commands.terminal import forgive_encodings
from catonnx.errors import INTERRUPTED, CatonnxError

_CODES = [
    "0  done",
    "1  a bug in catonnx; the traceback says where",
    *(f"{kind.exit_code}  {(kind.__doc__ or '').strip()}" for kind in CatonnxError.__subclasses__()),
    f"{INTERRUPTED}  Interrupted; there is no output, and the same command goes on from what was done.",
]
_EPILOG = "Begin with: catonnx doctor; catonnx optimize FOLDER -o OUT\n\nExit codes:\n\n" + "\n\n".join(_CODES)
_SEE = "Exit codes are listed by `catonnx --help`."


def _examples(*lines: str) -> str:
    return "\n\n".join(["Examples:", *(f"  catonnx {line}" for line in lines), _SEE])


app = typer.Typer(
    name="catonnx",
    help="Make ONNX models 4-bit: Concentration-Alignment Transforms, then rounding, for ONNX Runtime.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"catonnx {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del version


app.command(
    name="inspect",
    epilog=_examples("inspect llama", "inspect llama --calibration mine.txt --scheme w4a8", "inspect out --runtime"),
)(inspect_command)
app.command(
    name="optimize",
    epilog=_examples(
        "optimize llama -o out",
        "optimize llama -o out --target cpu --calibration mine.txt",
        "optimize llama -o out --scheme w4a4 --preset best --lm-head",
        "optimize llama -o out --recipe recipe.toml --json -",
    ),
)(optimize_command)
app.command(name="doctor", epilog=_examples("doctor", "doctor --json -"))(doctor_command)
app.command(
    name="evaluate",
    epilog=_examples(
        "evaluate out --against llama --text other.txt", "evaluate out --tasks my_task --task-folder my_tasks"
    ),
)(evaluate_command)
app.command(
    name="compare",
    epilog=_examples("compare llama out --text other.txt", "compare a b c --text other.txt --prompt Once"),
)(compare_command)
app.command(
    name="report",
    epilog=_examples("report out", "report out --html page.html", "report out --pictures figures"),
)(report_command)


def run() -> None:
    """Run what was typed."""
    forgive_encodings()
    app()
