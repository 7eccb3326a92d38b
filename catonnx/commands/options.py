"""The options of the command line that more than one command has, or that only say something of the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from catonnx.recipe import (
    ActivationRange,
    Activations,
    Caches,
    Dtype,
    Form,
    Online,
    Provider,
    Recipe,
    Rounding,
    Scales,
    Scheme,
    TransformName,
)
from catonnx.recipe.presets import Preset, Target

GroupSize = Literal["16", "32", "64", "128", "256", "channel"]
ActivationGroupSize = Literal["16", "32", "64", "128", "256", "token"]

_DEFAULT = Recipe()


def _flag(name: str, told: str) -> Any:
    """Return an option that is on, off, or not said: then a recipe file, a preset or a target may say it."""
    # A panel of its own: one flag with two names would widen the table of all other options.
    panel = "On or off, whatever recipe, target and preset say"
    return typer.Option(f"--{name}/--no-{name}", help=told, rich_help_panel=panel)


Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="An .onnx file, or a folder with model.onnx, config and tokenizer.")
]
SchemeOption = Annotated[
    Scheme | None,
    typer.Option(
        help="Bits of weights and activations: w4a16 leaves activations in float, float rounds nothing.",
        show_default=_DEFAULT.scheme,
    ),
]
PresetOption = Annotated[
    Preset | None,
    typer.Option(
        help="By effort: fast takes 8 texts, best rounds by gptq and corrects biases.", show_default="balanced"
    ),
]
TargetOption = Annotated[
    Target | None,
    typer.Option(
        help="By where it will run: standard ONNX for anywhere, or what the kernels of CPU or CUDA want.",
        show_default="portable",
    ),
]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="Options as TOML; what is typed goes before them.")
]
GroupSizeOption = Annotated[
    GroupSize | None,
    typer.Option(
        metavar="N",
        help="16, 32, 64, 128 or 256 rows of a weight share a scale, or all of a `channel`.",
        show_default="32; channel for form integer",
    ),
]
TransformOption = Annotated[
    TransformName | None,
    typer.Option(metavar="NAME", help=", ".join(get_args(TransformName)), show_default=_DEFAULT.transform),
]
BlockSizeOption = Annotated[
    int | None,
    typer.Option(metavar="K", help="Width of the blocks of cat and wush; 1 is a scaling.", show_default="what is free"),
]
HadamardSizeOption = Annotated[
    int | None,
    typer.Option(metavar="K", help="Width of the Hadamard matrix.", show_default="what shares a scale"),
]
PermuteOption = Annotated[bool | None, _flag("permute", "Gather channels that are alike into blocks.")]
RotateOption = Annotated[
    bool | None, _flag("rotate", "First turn the residual stream, at no cost, so that no channel stands out.")
]
RefineOption = Annotated[
    bool | None, _flag("refine", "Train scales, blocks and clip ratios further, site by site (needs torch).")
]
CorrectBiasOption = Annotated[
    bool | None, _flag("correct-bias", "Add the mean of the error of rounding to what linears give out.")
]
OnlineOption = Annotated[
    Online | None,
    typer.Option(help="May factors that cannot be absorbed stay as nodes?", show_default=_DEFAULT.online),
]
MaxOverheadOption = Annotated[
    str | None,
    typer.Option(metavar="P%", help="Most multiply-adds of such nodes, as a part of the linears'.", show_default="any"),
]
CachesOption = Annotated[
    Caches | None,
    typer.Option(
        metavar="NAME",
        help="transformed: caches may be handed out in another basis; or exact.",
        show_default=_DEFAULT.caches,
    ),
]
RoundingOption = Annotated[
    Rounding | None,
    typer.Option(
        help="Of weights: by the largest magnitude, by searched scales, row by row (gptq), or also site by site.",
        show_default=_DEFAULT.rounding,
    ),
]
DampingOption = Annotated[
    float | None,
    typer.Option(
        metavar="D",
        help="Of gptq and sequential, 0 to 1: more trusts the text less.",
        show_default=str(_DEFAULT.damping),
    ),
]
ScalesOption = Annotated[
    Scales | None, typer.Option(help="May scales of weights be negative?", show_default=_DEFAULT.scales)
]
ActivationsOption = Annotated[
    Activations | None,
    typer.Option(help="Ranges of activations: as they come, or from calibration.", show_default=_DEFAULT.activations),
]
ActivationRangeOption = Annotated[
    ActivationRange | None,
    typer.Option(help="From smallest to largest, or zero in the middle.", show_default=_DEFAULT.activation_range),
]
ActivationGroupSizeOption = Annotated[
    ActivationGroupSize | None,
    typer.Option(
        metavar="N",
        help="16 to 256 channels of an activation share a scale, or a `token`.",
        show_default="token",
    ),
]
ClipOption = Annotated[
    float | None,
    typer.Option(metavar="R", help="Part of the range of activations that is kept, up to 1.", show_default="searched"),
]
EightOption = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Linears with such names keep 8 bits; repeatable.")
]
Keep8bitOption = Annotated[
    int | None, typer.Option(metavar="N", help="Sites that keep 8 bits: those where 4 hurt most.", show_default="0")
]
TargetBitsOption = Annotated[
    float | None, typer.Option(metavar="B", help="Mean bits of a weight, instead of --keep-8bit.", show_default="4")
]
FormOption = Annotated[
    Form | None,
    typer.Option(
        help="qdq is standard ONNX; nbits is MatMulNBits; integer is MatMulInteger; op is our own operators.",
        show_default="qdq",
    ),
]
IncludeOption = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Round only linears with such names; repeatable.")
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Leave linears with such names in float; repeatable.")
]
LmHeadOption = Annotated[bool | None, _flag("lm-head", "Round the output head too.")]
TiedEmbeddingsOption = Annotated[
    Literal["4", "8"] | None,
    typer.Option(
        metavar="N",
        help="Bits of a table that embedding and output head share; stored once for both.",
        show_default="in float",
    ),
]
FileNameOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The .onnx file, where MODEL is a folder with several of them.")
]
GenaiOption = Annotated[bool | None, _flag("genai", "Let onnxruntime-genai open OUT; MODEL is a folder then.")]
SamplesOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Sequences of text.", show_default=str(_DEFAULT.samples))
]
SeqLenOption = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="Tokens in each, BOS included.", show_default=str(_DEFAULT.seq_len)),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        help="Of what is float32: as in the source, or float16 where that holds its numbers, caches included.",
        show_default="source; float16 for provider cuda",
    ),
]
ProviderOption = Annotated[
    Provider | None, typer.Option(help="Where ONNX Runtime runs.", show_default=_DEFAULT.provider)
]
SeedOption = Annotated[
    int | None, typer.Option(metavar="N", help="Of everything random.", show_default=str(_DEFAULT.seed))
]
PlanOption = Annotated[Path | None, typer.Option(metavar="FILE", help="A plan that --save-plan wrote.")]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE|-", help="Write all of it as JSON too; - shows that alone."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")]
