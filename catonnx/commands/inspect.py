"""`catonnx inspect`: the linear layers of a model, as they are and as a recipe would treat them."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from catonnx.commands.options import (
    ActivationGroupSizeOption,
    ActivationRangeOption,
    ActivationsOption,
    BlockSizeOption,
    CachesOption,
    ExcludeOption,
    GroupSizeOption,
    HadamardSizeOption,
    IncludeOption,
    JsonOption,
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
    SamplesOption,
    SchemeOption,
    SeedOption,
    SeqLenOption,
    TargetOption,
    TiedEmbeddingsOption,
    TransformOption,
    VerboseOption,
)
from catonnx.commands.terminal import Terminal, guarded
from catonnx.commands.wishes import check_idle, spelled_as_options, wishes_of, with_plan
from catonnx.files import check_json
from catonnx.recipe import Recipe


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
    permute: PermuteOption = None,
    rotate: RotateOption = None,
    refine: RefineOption = None,
    online: OnlineOption = None,
    max_overhead: MaxOverheadOption = None,
    caches: CachesOption = None,
    activations: ActivationsOption = None,
    activation_range: ActivationRangeOption = None,
    activation_group_size: ActivationGroupSizeOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    lm_head: LmHeadOption = None,
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
    asked = dict(locals())
    with guarded(verbose=verbose, options=spelled_as_options(asked)):
        wishes = wishes_of(asked)
        check_json(json_file, model, plan, recipe_file)
        terminal = Terminal(quiet=quiet)
        if runtime:
            check_idle(wishes, "--runtime")
            from catonnx.commands.tables import run_by
            from catonnx.inspection import inspect_runtime

            found = inspect_runtime(model, provider or Recipe().provider)
            terminal.deliver(json_file, {"kernels": [dataclasses.asdict(kernel) for kernel in found]}, run_by(found))
            return
        recipe, saved = with_plan(wishes, plan, model, terminal)

        from catonnx.commands.tables import inspected
        from catonnx.inspection import inspect

        with terminal.progress() as progress:
            inspection = inspect(model, recipe, plan=saved, progress=progress)
        terminal.deliver(json_file, inspection.to_json(), inspected(inspection))
