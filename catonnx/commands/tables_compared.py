"""What `compare` shows: figures with a model a row, and texts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from catonnx.commands.cells import fact_grid, figure, new_table, percent, unit_of
from catonnx.naming import shortened, summed_up

if TYPE_CHECKING:
    from catonnx.judging.comparing import Compared, Comparison

_MOST_BESIDE = 3
"""More models than this have their texts below each other."""


def compared(result: Comparison) -> list[RenderableType]:
    """Return what `compare` shows."""
    names = dict(
        zip([row.model for row in result.models], shortened([row.model for row in result.models]), strict=True)
    )
    shown: list[RenderableType] = [_figures(result, names)]
    shown += [Text(f"{count} x {reason}") for reason, count in summed_up(row.why for row in result.models if row.why)]
    prompts = [text.prompt for text in result.models[0].texts]
    for index, prompt in enumerate(prompts):
        shown.append(fact_grid([("prompt", prompt)]))
        shown.append((_beside if len(result.models) <= _MOST_BESIDE else _below)(result.models, names, index))
    return shown


def _figures(result: Comparison, names: dict[str, str]) -> RenderableType:
    unit, scale = unit_of([row.figures.disk_bytes for row in result.models])
    table = new_table(
        f"{result.rows} x {result.tokens} tokens\n{result.text_bytes / 1e3:.1f} kB of text",
        *(">perplexity\n", ">bits\na byte", ">KL\nnats", ">top-1\n", ">prefill\ntokens/s", ">decode\ntokens/s"),
        f">size\n{unit}",
    )
    for row in result.models:
        own = row.figures
        top1 = "reference" if row.model == result.reference else percent(own.top1_agreement)
        table.add_row(
            names[row.model],
            *(figure(own.perplexity, 3), figure(row.bits_per_byte, 4), figure(own.kl_nats, 4), top1),
            *(figure(own.prefill_tokens_per_second, 1), figure(own.decode_tokens_per_second, 1)),
            f"{own.disk_bytes / scale:.1f}",
        )
        for name, cosine in (own.cosine or {}).items():
            table.add_row(f"  cosine of {name}: {cosine:.4f}")
    return table


def _beside(models: Sequence[Compared], names: dict[str, str], prompt: int) -> RenderableType:
    table = new_table(*(names[row.model] for row in models))
    for column in table.columns:
        column.ratio = 1
    table.expand = True
    table.add_row(*(row.texts[prompt].text.strip() for row in models))
    table.add_row(*(_same(row, prompt) for row in models))
    return table


def _below(models: Sequence[Compared], names: dict[str, str], prompt: int) -> RenderableType:
    table = new_table("model", "text")
    for row in models:
        told = "\n".join(filter(None, [row.texts[prompt].text.strip(), _same(row, prompt)]))
        table.add_row(names[row.model], told, end_section=True)
    return table


def _same(row: Compared, prompt: int) -> str:
    text = row.texts[prompt]
    return "" if text.same is None else f"[the first {text.same} of {len(text.ids)} tokens are the reference's]"
