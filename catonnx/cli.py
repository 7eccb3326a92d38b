"""The command line: arguments in, rows out. What it calls is imported when it is called, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from catonnx import __version__
from catonnx.errors import CatonnxError, UsageError
from catonnx.files import check_place, write_json
from catonnx.recipe import Caches, Form, Online, Provider, Recipe, Rounding, Scheme, TransformName
from catonnx.terminal import INTERRUPTED, Terminal, forgive_encodings, guarded

if TYPE_CHECKING:
    from catonnx.plan import Plan

GroupSize = Literal["16", "32", "64", "128", "256", "channel"]

_DEFAULT = Recipe()
_CODES = [
    "0  done",
    "1  a bug in catonnx; the traceback says where",
    *(f"{kind.exit_code}  {(kind.__doc__ or '').strip()}" for kind in CatonnxError.__subclasses__()),
    f"{INTERRUPTED}  Interrupted; no output is left behind.",
]
_EPILOG = "Exit codes:\n\n" + "\n\n".join(_CODES)
_SEE = "Exit codes are listed by `catonnx --help`."

app = typer.Typer(
    name="catonnx",
    help="Make ONNX models 4-bit: Concentration-Alignment Transforms, then rounding, for ONNX Runtime.",
    epilog=_EPILOG,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="An .onnx file, or a folder with model.onnx, config and tokenizer.")
]
GroupSizeOption = Annotated[
    GroupSize,
    typer.Option(metavar="N", help="16, 32, 64, 128 or 256 rows of a weight share a scale, or all of a `channel`."),
]
TransformOption = Annotated[
    TransformName | None,
    typer.Option(metavar="NAME", help="none, scale, hadamard or cat.", show_default=_DEFAULT.transform),
]
BlockSizeOption = Annotated[
    int | None, typer.Option(metavar="K", help="Width of CAT's blocks; 1 is a scaling.", show_default="what is free")
]
HadamardSizeOption = Annotated[
    int | None, typer.Option(metavar="K", help="Width of the Hadamard matrix.", show_default="group size, or all")
]
OnlineOption = Annotated[
    Online | None,
    typer.Option(help="May factors that cannot be absorbed stay as nodes?", show_default=_DEFAULT.online),
]
CachesOption = Annotated[
    Caches, typer.Option(metavar="NAME", help="transformed: caches may be handed out in another basis; or exact.")
]
IncludeOption = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Round only linears with such names; repeatable.")
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Leave linears with such names in float; repeatable.")
]
LmHeadOption = Annotated[bool, typer.Option("--lm-head", help="Round the output head too.")]
SamplesOption = Annotated[int, typer.Option(min=1, metavar="N", help="Sequences of text.")]
SeqLenOption = Annotated[int, typer.Option(min=2, metavar="N", help="Tokens in each, BOS included.")]
ProviderOption = Annotated[Provider, typer.Option(help="Where ONNX Runtime runs.")]
SeedOption = Annotated[int, typer.Option(metavar="N", help="Of everything random.")]
PlanOption = Annotated[Path | None, typer.Option(metavar="FILE", help="A plan that --save-plan wrote.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all of it as JSON too.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")]


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


@app.command(name="inspect", epilog=_SEE)
def inspect_command(
    model: Model,
    calibration: Annotated[
        str | None, typer.Option(metavar="FILE|self", help="Measure activations too, and predict what rounding does.")
    ] = None,
    samples: SamplesOption = _DEFAULT.samples,
    seq_len: SeqLenOption = _DEFAULT.seq_len,
    plan: PlanOption = None,
    group_size: GroupSizeOption = "32",
    transform: TransformOption = None,
    block_size: BlockSizeOption = None,
    hadamard_size: HadamardSizeOption = None,
    online: OnlineOption = None,
    caches: CachesOption = _DEFAULT.caches,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    lm_head: LmHeadOption = False,
    provider: ProviderOption = _DEFAULT.provider,
    seed: SeedOption = _DEFAULT.seed,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show linear layers: shape, what stands before them, what that could absorb, and why not more."""
    with guarded(verbose=verbose):
        recipe = Recipe(
            group_size=_group_size(group_size),
            calibration=calibration,
            samples=samples,
            seq_len=seq_len,
            caches=caches,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            lm_head=lm_head,
            provider=provider,
            seed=seed,
        )
        _check_places(json_file)
        terminal = Terminal(quiet=quiet)
        shaping = {"transform": transform, "block_size": block_size, "hadamard_size": hadamard_size, "online": online}
        recipe, saved = _with_plan(recipe, shaping, plan, model, terminal)

        from catonnx.inspection import inspect
        from catonnx.tables import inspected

        with terminal.progress() as progress:
            inspection = inspect(model, recipe, plan=saved, progress=progress)
        if json_file:
            write_json(json_file, inspection.to_json())
        terminal.show(*inspected(inspection))


@app.command(name="optimize", epilog=_SEE)
def optimize_command(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The new folder.")],
    scheme: Annotated[
        Scheme, typer.Option(help="w4a16 rounds weights to int4; float applies the transforms only.")
    ] = _DEFAULT.scheme,
    group_size: GroupSizeOption = "32",
    transform: TransformOption = None,
    block_size: BlockSizeOption = None,
    hadamard_size: HadamardSizeOption = None,
    online: OnlineOption = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|self", help="A .txt, an .npz of feeds, or text that the model writes.", show_default="self"
        ),
    ] = None,
    samples: SamplesOption = _DEFAULT.samples,
    seq_len: SeqLenOption = _DEFAULT.seq_len,
    form: Annotated[Form, typer.Option(help="qdq is standard ONNX; nbits writes MatMulNBits.")] = _DEFAULT.form,
    accuracy_level: Annotated[
        int, typer.Option(min=0, max=4, metavar="0..4", help="Of form nbits; 4 rounds activations to int8.")
    ] = _DEFAULT.accuracy_level,
    rounding: Annotated[
        Rounding, typer.Option(help="How scales are chosen: by search, or by the largest magnitude.")
    ] = _DEFAULT.rounding,
    caches: CachesOption = _DEFAULT.caches,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    lm_head: LmHeadOption = False,
    provider: ProviderOption = _DEFAULT.provider,
    seed: SeedOption = _DEFAULT.seed,
    report_json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report there too.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    plan: PlanOption = None,
    save_plan: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan to an .npz file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Transform a model, round it to 4 bits, verify it, and save it as a new folder."""
    with guarded(verbose=verbose):
        recipe = Recipe(
            scheme=scheme,
            group_size=_group_size(group_size),
            caches=caches,
            rounding=rounding,
            calibration=calibration,
            samples=samples,
            seq_len=seq_len,
            form=form,
            accuracy_level=accuracy_level,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            lm_head=lm_head,
            provider=provider,
            seed=seed,
        )
        _check_places(report_json, save_plan, source=model)
        terminal = Terminal(quiet=quiet)
        shaping = {"transform": transform, "block_size": block_size, "hadamard_size": hadamard_size, "online": online}
        recipe, saved = _with_plan(recipe, shaping, plan, model, terminal)

        from catonnx.pipeline import optimize
        from catonnx.planfile import save_plan as write_plan
        from catonnx.tables import optimized

        with terminal.progress() as progress:
            report = optimize(model, out, recipe, plan=saved, force=force, progress=progress)
        if save_plan:
            write_plan(save_plan, report.plan, report.digest, report.recipe)
        if report_json:
            write_json(report_json, report.to_json())
        if not quiet:
            terminal.show(*optimized(report))


@app.command(name="evaluate", epilog=_SEE)
def evaluate_command(
    model: Annotated[Path, typer.Argument(metavar="OUT", help="The model to judge: a folder, or an .onnx file.")],
    text: Annotated[Path, typer.Option(metavar="FILE", help="Plain text in UTF-8, other than it was calibrated on.")],
    against: Annotated[Path | None, typer.Option(metavar="MODEL", help="The model that it was made from.")] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences of text.")] = 16,
    seq_len: SeqLenOption = 512,
    provider: ProviderOption = "cpu",
    json_file: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure perplexity, divergence from the source, speed and size."""
    with guarded(verbose=verbose):
        _check_places(json_file)
        terminal = Terminal(quiet=quiet)

        from catonnx.evaluation import evaluate_on_text
        from catonnx.tables import judged

        with terminal.progress() as progress:
            result = evaluate_on_text(
                model, text, against=against, samples=samples, seq_len=seq_len, provider=provider, progress=progress
            )
        if json_file:
            write_json(json_file, result.to_json())
        terminal.show(*judged(result))


def _group_size(text: GroupSize) -> int | None:
    return None if text == "channel" else int(text)


def _check_places(*files: Path | None, source: Path | None = None) -> None:
    for file in files:
        if file is not None:
            check_place(file, source)


def _with_plan(
    recipe: Recipe, shaping: Mapping[str, Any], file: Path | None, model: Path, terminal: Terminal
) -> tuple[Recipe, Plan | None]:
    """Return the whole recipe, and the plan if one was given: it settles what the options in `shaping` would."""
    given = {name: value for name, value in shaping.items() if value is not None}
    if file is None:
        return dataclasses.replace(recipe, **given), None
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{names} and --plan contradict each other", hint="a plan has settled that already")

    from catonnx.graph.load import find
    from catonnx.planfile import load_plan

    saved = load_plan(file)
    if saved.digest != find(model).digest:
        terminal.note("the plan was made for another model; it is taken if it fits this one")
    return saved.recipe(recipe), saved.plan


def main() -> None:
    """Run the command line."""
    forgive_encodings()
    app()
