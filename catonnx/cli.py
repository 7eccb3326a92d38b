"""The command line: arguments in, rows out. What it calls is imported when it is called, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from catonnx import __version__
from catonnx.command_compare import compare_command
from catonnx.command_evaluate import evaluate_command
from catonnx.command_report import ReportHtmlOption, report_command
from catonnx.errors import CatonnxError, RuntimeUnavailableError, UsageError
from catonnx.files import STDOUT, check_json, check_place
from catonnx.options import (
    ActivationGroupSizeOption,
    ActivationRangeOption,
    ActivationsOption,
    BlockSizeOption,
    CachesOption,
    ClipOption,
    CorrectBiasOption,
    DampingOption,
    EightOption,
    ExcludeOption,
    FileNameOption,
    FormOption,
    GenaiOption,
    GroupSizeOption,
    HadamardSizeOption,
    IncludeOption,
    JsonOption,
    Keep8bitOption,
    LmHeadOption,
    MaxOverheadOption,
    Model,
    OnlineOption,
    PermuteOption,
    PlanOption,
    PresetOption,
    ProviderOption,
    QuietOption,
    RecipeOption,
    RefineOption,
    RotateOption,
    RoundingOption,
    SamplesOption,
    ScalesOption,
    SchemeOption,
    SeedOption,
    SeqLenOption,
    TargetBitsOption,
    TargetOption,
    TiedEmbeddingsOption,
    TransformOption,
    VerboseOption,
)
from catonnx.recipe import Recipe
from catonnx.recipe.presets import for_genai
from catonnx.terminal import INTERRUPTED, Terminal, forgive_encodings, guarded
from catonnx.wishes import check_idle, wishes_of, with_plan

_DEFAULT = Recipe()
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


@app.command(
    name="inspect",
    epilog=_examples("inspect llama", "inspect llama --calibration mine.txt --scheme w4a8", "inspect out --runtime"),
)
def inspect_command(
    model: Model,
    calibration: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|self", help="Measure activations too, and predict what rounding does; repeatable."),
    ] = None,
    samples: SamplesOption = None,
    seq_len: SeqLenOption = None,
    plan: PlanOption = None,
    recipe_file: RecipeOption = None,
    target: TargetOption = None,
    preset: PresetOption = None,
    scheme: SchemeOption = None,
    group_size: GroupSizeOption = None,
    transform: TransformOption = None,
    block_size: BlockSizeOption = None,
    hadamard_size: HadamardSizeOption = None,
    permute: PermuteOption = False,
    rotate: RotateOption = False,
    refine: RefineOption = False,
    online: OnlineOption = None,
    max_overhead: MaxOverheadOption = None,
    caches: CachesOption = None,
    activations: ActivationsOption = None,
    activation_range: ActivationRangeOption = None,
    activation_group_size: ActivationGroupSizeOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    lm_head: LmHeadOption = False,
    tied_embeddings: TiedEmbeddingsOption = None,
    runtime: Annotated[
        bool, typer.Option("--runtime", help="Show which kernel runs each linear of the model as it is, and why.")
    ] = False,
    provider: ProviderOption = None,
    seed: SeedOption = None,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show linear layers: shape, what stands before them, what that could absorb, and why not more."""
    with guarded(verbose=verbose):
        wishes = wishes_of(locals())
        check_json(json_file, model, plan, recipe_file)
        terminal = Terminal(quiet=quiet)
        if runtime:
            check_idle(wishes, "--runtime")
            from catonnx.inspection import inspect_runtime
            from catonnx.tables import run_by

            found = inspect_runtime(model, provider or _DEFAULT.provider)
            terminal.deliver(json_file, {"kernels": [dataclasses.asdict(kernel) for kernel in found]}, run_by(found))
            return
        recipe, saved = with_plan(wishes, plan, model, terminal)

        from catonnx.inspection import inspect
        from catonnx.tables import inspected

        with terminal.progress() as progress:
            inspection = inspect(model, recipe, plan=saved, progress=progress)
        terminal.deliver(json_file, inspection.to_json(), inspected(inspection))


@app.command(
    name="optimize",
    epilog=_examples(
        "optimize llama -o out",
        "optimize llama -o out --target cpu --calibration mine.txt",
        "optimize llama -o out --scheme w4a4 --preset best --lm-head",
        "optimize llama -o out --recipe recipe.toml --json -",
    ),
)
def optimize_command(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The new folder.")],
    recipe_file: RecipeOption = None,
    target: TargetOption = None,
    preset: PresetOption = None,
    scheme: SchemeOption = None,
    group_size: GroupSizeOption = None,
    transform: TransformOption = None,
    block_size: BlockSizeOption = None,
    hadamard_size: HadamardSizeOption = None,
    permute: PermuteOption = False,
    rotate: RotateOption = False,
    refine: RefineOption = False,
    online: OnlineOption = None,
    max_overhead: MaxOverheadOption = None,
    caches: CachesOption = None,
    activations: ActivationsOption = None,
    activation_range: ActivationRangeOption = None,
    activation_group_size: ActivationGroupSizeOption = None,
    clip: ClipOption = None,
    w8: EightOption = None,
    keep_8bit: Keep8bitOption = None,
    target_bits: TargetBitsOption = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|self",
            help="A .txt, an .npz of feeds, or text that the model writes; repeatable, and better mixed.",
            show_default="self",
        ),
    ] = None,
    samples: SamplesOption = None,
    seq_len: SeqLenOption = None,
    form: FormOption = None,
    accuracy_level: Annotated[
        int | None,
        typer.Option(
            min=0, max=4, metavar="0..4", help="Of form nbits; 4 rounds activations to int8.", show_default="0"
        ),
    ] = None,
    rounding: RoundingOption = None,
    damping: DampingOption = None,
    correct_bias: CorrectBiasOption = False,
    scales: ScalesOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    lm_head: LmHeadOption = False,
    tied_embeddings: TiedEmbeddingsOption = None,
    provider: ProviderOption = None,
    seed: SeedOption = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", "--report-json", metavar="FILE|-", help="Write the report there too; - shows it alone."),
    ] = None,
    report_html: ReportHtmlOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    allow_unchanged: Annotated[
        bool, typer.Option("--allow-unchanged", help="Copy a model that holds nothing to optimize.")
    ] = False,
    genai: GenaiOption = False,
    file_name: FileNameOption = None,
    plan: PlanOption = None,
    save_plan: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan to an .npz file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Transform a model, round it to 4 bits, verify it, and save it as a new folder."""
    with guarded(verbose=verbose):
        wishes = wishes_of(locals())
        _check_places(None if json_file == STDOUT else json_file, report_html, save_plan, source=model)
        terminal = Terminal(quiet=quiet)
        chosen = model / file_name if file_name else model
        recipe, saved = with_plan(wishes, plan, chosen, terminal)

        from catonnx.pipeline import optimize
        from catonnx.planfile import save_plan as write_plan
        from catonnx.tables import allotted, optimized

        with terminal.progress() as progress:
            report = optimize(
                model,
                out,
                recipe,
                file_name=file_name,
                plan=saved,
                force=force,
                allow_unchanged=allow_unchanged,
                genai=genai or for_genai(wishes),
                progress=progress,
                announce=lambda rows: None if quiet or json_file == STDOUT else terminal.show(*allotted(rows)),
            )
        if save_plan and not report.unchanged:
            write_plan(save_plan, report.plan, report.digest, report.recipe)
        if report_html:
            from catonnx.reportfile import load_report
            from catonnx.reporting.files import write_page

            write_page(report_html, load_report(out))
        terminal.deliver(json_file, report.to_json(), [] if quiet else optimized(report))


@app.command(name="doctor", epilog=_examples("doctor", "doctor --json -"))
def doctor_command(json_file: JsonOption = None, verbose: VerboseOption = False) -> None:
    """Show what is installed, which providers and kernels really work, and what to install."""
    with guarded(verbose=verbose):
        check_json(json_file)

        from catonnx.doctor import examine, to_json, works
        from catonnx.tables import examined

        findings = examine()
        Terminal().deliver(json_file, to_json(findings), examined(findings))
        if not works(findings):
            raise RuntimeUnavailableError("no model runs here", hint="what was found says what to do")


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


def _check_places(*files: Path | None, source: Path) -> None:
    places = [file for file in files if file is not None]
    for file in places:
        check_place(file, source)
    if len({file.resolve() for file in places}) < len(places):
        raise UsageError("two files are to be written to one place", hint="give each a name of its own")


def main() -> None:
    """Run the command line."""
    forgive_encodings()
    app()
