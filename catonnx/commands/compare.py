"""`catonnx compare`: any number of models on one text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catonnx.commands.options import JsonOption, ProviderOption, QuietOption, VerboseOption
from catonnx.commands.terminal import Terminal, guarded
from catonnx.files import check_json


def compare_command(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Folders or .onnx files; the first is the reference.")
    ],
    text: Annotated[
        Path, typer.Option(metavar="FILE", help="Plain text in UTF-8, other than they were calibrated on.")
    ],
    against: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Another reference.", show_default="the first model")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Passages of the text.")] = 16,
    seq_len: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens of the reference in each.")] = 512,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Let each go on from these words; repeatable.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The most tokens that each writes.")] = 48,
    temperature: Annotated[
        float, typer.Option(min=0, metavar="T", help="0 takes the most likely token, more draws one.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the draw, the same for all models.")] = 0,
    provider: ProviderOption = None,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare models on one text: perplexity, divergence, speed, size, and what they write.

    Models with other tokenizers are compared by the bits that a byte of the text costs them.
    """
    with guarded(verbose=verbose):
        check_json(json_file, *models, text, against)
        terminal = Terminal(quiet=quiet)

        from catonnx.commands.tables_compared import compared
        from catonnx.judging.comparing import Prompts, compare_on_text

        prompts = Prompts(tuple(prompt or ()), tokens, temperature, seed)
        with terminal.progress() as progress:
            result = compare_on_text(
                models,
                text,
                against=against,
                prompts=prompts,
                samples=samples,
                seq_len=seq_len,
                provider=provider or "cpu",
                progress=progress,
            )
        terminal.deliver(json_file, result.to_json(), compared(result))
