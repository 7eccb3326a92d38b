"""`catonnx optimize`: a model in, a 4-bit model and its report out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catonnx.commands.options import (
    ActivationGroupSizeOption,
    ActivationRangeOption,
    ActivationsOption,
    BlockSizeOption,
    CachesOption,
    ClipOption,
    CorrectBiasOption,
    DampingOption,
    DtypeOption,
    EightOption,
    ExcludeOption,
    FileNameOption,
    FormOption,
    GenaiOption,
    GroupSizeOption,
    HadamardSizeOption,
    IncludeOption,
    Keep8bitOption,
    LmHeadOption,
    MaxOverheadOption,
    Model,
    OnlineOption,
    PermuteOption,
    PlanOption,
    PresetOption,
    ProviderOption,
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
from catonnx.commands.report import ReportHtmlOption
from catonnx.commands.terminal import Terminal, guarded
from catonnx.commands.wishes import spelled_as_options, wishes_of, with_plan
from catonnx.errors import UsageError
from catonnx.files import STDOUT, check_place
from catonnx.recipe.presets import for_genai


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
    permute: PermuteOption = None,
    rotate: RotateOption = None,
    refine: RefineOption = None,
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
    correct_bias: CorrectBiasOption = None,
    scales: ScalesOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    lm_head: LmHeadOption = None,
    tied_embeddings: TiedEmbeddingsOption = None,
    dtype: DtypeOption = None,
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
    genai: GenaiOption = None,
    file_name: FileNameOption = None,
    plan: PlanOption = None,
    save_plan: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan to an .npz file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Transform a model, round it to 4 bits, verify it, and save it as a new folder."""
    asked = dict(locals())
    with guarded(verbose=verbose, options=spelled_as_options(asked)):
        wishes = wishes_of(asked)
        _check_places(None if json_file == STDOUT else json_file, report_html, save_plan, source=model)
        terminal = Terminal(quiet=quiet)
        chosen = model / file_name if file_name else model
        recipe, saved = with_plan(wishes, plan, chosen, terminal)

        from catonnx.commands.tables import allotted, optimized
        from catonnx.pipeline import optimize
        from catonnx.planning.planfile import save_plan as write_plan

        with terminal.progress() as progress:
            report = optimize(
                model,
                out,
                recipe,
                file_name=file_name,
                plan=saved,
                force=force,
                allow_unchanged=allow_unchanged,
                genai=for_genai(wishes) if genai is None else genai,
                progress=progress,
                announce=lambda rows: None if quiet or json_file == STDOUT else terminal.show(*allotted(rows)),
            )
        if save_plan and not report.unchanged:
            write_plan(save_plan, report.plan, report.digest, report.recipe)
        if report_html:
            from catonnx.reporting.files import write_page
            from catonnx.reporting.reportfile import load_report

            write_page(report_html, load_report(out))
        terminal.deliver(json_file, report.to_json(), [] if quiet else optimized(report))


def _check_places(*files: Path | None, source: Path) -> None:
    places = [file for file in files if file is not None]
    for file in places:
        check_place(file, source)
    if len({file.resolve() for file in places}) < len(places):
        raise UsageError("two files are to be written to one place", hint="give each a name of its own")
