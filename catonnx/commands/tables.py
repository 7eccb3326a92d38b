"""What commands show at the end, as tables of at most 100 columns, plain ASCII but for the lines."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from catonnx.commands.cells import fact_grid, figure, new_table, percent, unit_of
from catonnx.naming import in_common, kind_of, shortened, summed_up, without_numbers

if TYPE_CHECKING:
    from catonnx.doctor import Finding
    from catonnx.inspection import Inspection, SiteView
    from catonnx.judging.evaluation import Judged
    from catonnx.judging.tasks import Result
    from catonnx.planning.allocation import Allotment
    from catonnx.report import KindRow, Report
    from catonnx.runtime.kernels import Kernel

_REASONS_SHOWN = 6

_TWIN = "on float32 twins: what bfloat16 models compute, not how far their kernels are from it"


def optimized(report: Report) -> list[RenderableType]:
    """Return what `optimize` shows: a table by kind of layer, one of the deployed model's figures, and facts."""
    if report.unchanged:
        return [fact_grid([("unchanged", report.unchanged), ("", f"copied to {report.out}"), *_genai(report)])]
    shown: list[RenderableType] = [_kinds(report)]
    if report.verification.get("deployed"):
        shown.append(_deployed(report.verification["deployed"]))
    return [*shown, fact_grid(_report_facts(report))]


def inspected(inspection: Inspection) -> list[RenderableType]:
    """Return what `inspect` shows: sites that are alike in one row, the plan, predictions, and what is left alone."""
    if not inspection.sites:
        return [Text("no linear layer to optimize"), _left_alone(inspection.left)]
    tables: list[RenderableType] = [_structure(inspection.sites)]
    if inspection.planned:
        tables.append(_plan(inspection.sites))
    if any(site.figures for site in inspection.sites):
        tables.append(_predictions(inspection.sites))
    return [*tables, _left_alone(inspection.left)]


def run_by(kernels: Sequence[Kernel]) -> list[RenderableType]:
    """Return what `inspect --runtime` shows: linears that run alike in one row."""
    if not kernels:
        return [Text("no linear layer runs")]
    groups: dict[tuple[object, ...], list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault((kind_of([kernel.linear]), *dataclasses.astuple(kernel)[1:]), []).append(kernel)
    names = shortened([kind_of([group[0].linear]) for group in groups.values()])
    table = new_table("linears, K -> N", ">number", "runs as", "weight", "activation", "why")
    for name, (first, *others) in zip(names, groups.values(), strict=True):
        sizes = f"{first.inputs} -> {first.outputs}"
        table.add_row(
            f"{name}\n{sizes}", str(1 + len(others)), first.operator, first.weight, first.activation, first.why
        )
    return [table]


def examined(findings: Sequence[Finding]) -> list[RenderableType]:
    """Return what `doctor` shows: everything that was looked at, and what to do about what is not well."""
    table = new_table("=what", "=", "found, and what to do")
    first: dict[str, str] = {}
    for finding in findings:
        given = first.setdefault(finding.advice, finding.what)
        advice = finding.advice if given == finding.what else f"as for {given}"
        told = f"{finding.found}; {advice}" if finding.advice else finding.found
        table.add_row(finding.what, finding.state, told, style="bold" if finding.state == "broken" else None)
    return [table]


def judged(result: Judged) -> list[RenderableType]:
    """Return what `evaluate` shows: figures down, models across."""
    rows = [result.model, *([] if result.against is None else [result.against])]
    table = new_table(f"{result.model.rows} rows of {result.tokens} tokens", *result.names)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, field, digits in (
        ("perplexity", "perplexity", 3),
        ("KL divergence, nats", "kl_nats", 4),
        ("same most likely token", "top1_agreement", None),
        ("prefill, tokens/s", "prefill_tokens_per_second", 1),
        ("decode, tokens/s", "decode_tokens_per_second", 1),
    ):
        values = [getattr(row, field) for row in rows]
        if any(value is not None for value in values):
            table.add_row(label, *(percent(value) if digits is None else figure(value, digits) for value in values))
    for name, value in (result.model.cosine or {}).items():
        table.add_row(f"cosine of {name}", figure(value, 4), *[""] * (len(rows) - 1))
    sizes = [row.disk_bytes for row in rows]
    unit, scale = unit_of(sizes)
    table.add_row(f"size on disk, {unit}", *(f"{size / scale:.1f}" for size in sizes))
    return [table, *([Text(f"measured {_TWIN}")] if any(row.float32_twin for row in rows) else [])]


def answered(names: Sequence[str], results: Sequence[Sequence[Result]]) -> list[RenderableType]:
    """Return what `evaluate --tasks` shows: a figure a row, models across."""
    table = new_table("=task", "=figure", ">questions", *shortened(names))
    for column in table.columns[3:]:
        column.justify = "right"
    for rows in zip(*results, strict=True):
        values = (figure(row.value, 4) + (f" +- {row.error:.4f}" if row.error else "") for row in rows)
        first = rows[0]
        table.add_row(first.task, first.metric, "-" if first.samples is None else str(first.samples), *values)
    return [table]


def _kinds(report: Report) -> Table:
    kinds = report.kinds()
    names = shortened([kind.kind for kind in kinds])
    unit, scale = unit_of([kind.bytes_before for kind in kinds])
    rounds = any(row.activation or row.bits != report.sites[0].bits for row in report.sites)
    table = new_table(
        *("linears", ">n", "=absorbed", "=online", *(["=bits"] if rounds else [])),
        *(">SQNR\nbefore", ">dB\nafter", ">\nrounded", f">{unit}\nbefore", ">\nafter"),
    )
    for name, kind in zip(names, kinds, strict=True):
        table.add_row(
            name,
            str(kind.linears),
            kind.absorbed.replace(", ", "\n") or "-",
            kind.online.replace(", ", "\n") or "-",
            *([kind.bits.replace(", ", "\n")] if rounds else []),
            *(figure(value, 1) for value in (kind.sqnr_before, kind.sqnr_after, _measured(kind))),
            f"{kind.bytes_before / scale:.1f}",
            f"{kind.bytes_after / scale:.1f}",
        )
    sizes = (sum(kind.bytes_before for kind in kinds), sum(kind.bytes_after for kind in kinds))
    table.add_section()
    table.add_row(
        "total",
        str(sum(kind.linears for kind in kinds)),
        *[""] * (5 + rounds),
        *(f"{size / scale:.1f}" for size in sizes),
    )
    return table


def _measured(kind: KindRow) -> float | None:
    return kind.sqnr_weights if kind.sqnr_outputs is None else kind.sqnr_outputs


def allotted(rows: Sequence[Allotment]) -> list[RenderableType]:
    """Return what is shown before bits are given out: the sites that keep 8, and what 4 would cost them."""
    table = new_table("keeps 8 bits", ">weights", ">SQNR dB in 4 bits\npredicted", ">\nmeasured")
    chosen = sorted((row for row in rows if row.bits == 8), key=lambda row: row.measured_db)
    for row in chosen:
        table.add_row(row.site, str(row.weights), figure(row.predicted_db, 1), figure(row.measured_db, 1))
    weights = sum(row.weights for row in rows)
    mean = sum(row.bits * row.weights for row in rows) / weights if weights else 4
    return [table, Text(f"{len(chosen)} of {len(rows)} sites keep 8 bits: {mean:.2f} bits a weight, scales apart")]


def _deployed(figures: dict[str, Any]) -> Table:
    table = new_table("against the source", ">output SQNR dB", ">KL nats", ">top-1")
    for name, row in figures.items():
        table.add_row(name, figure(row["sqnr_db"], 1), figure(row["kl_nats"], 4), percent(row["top1_agreement"]))
    return table


def _report_facts(report: Report) -> list[tuple[str, str]]:
    checked = report.verification
    before, after = report.size_before, report.size_after
    unit, scale = unit_of([before])
    facts = [
        ("verified", f"the same function before rounding: relative L2 {checked['transform_relative_l2']:.1e}"),
    ]
    if checked.get("float32_twin"):
        facts.append(("", _TWIN))
    if "fused" in checked:
        facts.append(("", f"{checked['fused']} of {checked['linears']} rounded linears run as {_product(report)}"))
        facts += [("", f"{count} x {reason}") for reason, count in summed_up(checked["not_fused"])[:_REASONS_SHOWN]]
    facts += _reasons("left alone", [reason for _, _, reason in report.left])
    facts += _reasons("remarks", [*checked.get("remarks", ()), *(row.why for row in report.sites if row.why)])
    facts += [("" if index else "turned", text) for index, text in enumerate(report.turned)]
    facts += [("" if index else "type", text) for index, text in enumerate(report.narrowed)]
    if report.changed_caches:
        names = ", ".join(name for name, _ in summed_up(report.changed_caches))
        count = len(report.changed_caches)
        facts.append(("caches", f"{names} ({count}) are in a basis of their own; --caches exact keeps the source's"))
    if report.not_copied:
        facts.append(("not copied", f"{', '.join(report.not_copied)}: links out of the model's folder"))
    facts += _genai(report)
    times = ", ".join(f"{step} {seconds:.1f}" for step, seconds in report.steps)
    total = sum(seconds for _, seconds in report.steps)
    fitted = report.recipe["rounding"] in ("gptq", "sequential")
    share = report.online_multiply_adds / max(1, report.multiply_adds)
    smaller = f", {before / after:.1f} x smaller" if before > after > 0 else ""
    facts += [
        ("seconds", f"{times}; {total:.1f} in all"),
        *([("mind", "divergence is measured on the text that rounding was fitted to")] if fitted else []),
        *([("online", f"{percent(share)} more multiply-adds than the linears alone")] if share else []),
        *([("damped", f"{len(report.dampings)} sites more than asked for")] if report.dampings else []),
        ("memory", f"{report.peak_memory / 1e6:.0f} MB at most"),
        ("size", f"{before / scale:.1f} -> {after / scale:.1f} {unit} on disk{smaller}"),
        ("saved", report.out),
        ("try it", shlex.join(["catonnx", "evaluate", report.out, "--against", report.source, "--text", "FILE.txt"])),
    ]
    return facts


def _genai(report: Report) -> list[tuple[str, str]]:
    return [("" if index else "genai", text) for index, text in enumerate(report.genai)]


def _product(report: Report) -> str:
    if report.recipe["form"] == "op" and report.recipe["scheme"] in ("w4a8", "w4a4"):
        return "QuantizedMatMul, or MatMulNBits where our library is not there"
    return "MatMulInteger" if report.recipe["form"] == "integer" else "MatMulNBits"


def _structure(sites: Sequence[SiteView]) -> Table:
    alike = _alike(sites, lambda site: (site.inputs, site.outputs, site.path, site.width, site.ties))
    names = [f"{name}\n{group[0].inputs} -> {', '.join(map(str, group[0].outputs))}" for name, group in alike]
    table = new_table("layers, K -> N", ">sites", "=absorbs", "stands before, nearest first; why no more")
    for name, (_, group) in zip(names, alike, strict=True):
        story = [" < ".join(group[0].path), in_common([site.reason for site in group])]
        caches = [cache for site in group for cache in site.caches]
        story += [f"changes {', '.join(dict(summed_up(caches)))}"] if caches else []
        table.add_row(name, str(len(group)), _absorbs(group[0]), "\n".join(filter(None, story)))
    return table


def _alike(
    sites: Sequence[SiteView], look: Callable[[SiteView], tuple[object, ...]]
) -> list[tuple[str, list[SiteView]]]:
    """Return a name, and all sites that look the same but for numbers in their names and reasons."""
    groups: dict[tuple[object, ...], list[SiteView]] = {}
    for site in sites:
        words = (kind_of(site.linears), without_numbers(site.reason), without_numbers(site.why))
        groups.setdefault((*words, *look(site)), []).append(site)
    names = shortened([kind_of(group[0].linears) for group in groups.values()])
    return list(zip(names, groups.values(), strict=True))


def _absorbs(site: SiteView) -> str:
    if site.width == 0:
        return "nothing"
    tied = "" if site.ties == 1 else (f",\ntied by {site.ties}" if site.ties else ",\npartly tied")
    return ("scale" if site.width == 1 else f"blocks of {site.width}") + tied


def _plan(sites: Sequence[SiteView]) -> Table:
    alike = _alike(sites, lambda site: (site.absorbed, site.online))
    table = new_table("plan", ">sites", "=absorbed", "=online", "remarks")
    for name, group in alike:
        site, why = group[0], in_common([one.why for one in group])
        table.add_row(name, str(len(group)), "\n".join(site.absorbed) or "-", "\n".join(site.online) or "-", why)
    return table


def _predictions(sites: Sequence[SiteView]) -> Table:
    table = new_table("predicted, dB", ">SQNR\nbefore", ">\nafter", ">C(x)", ">C(W)", ">A")
    names = shortened([_joined_names(site) for site in sites])
    for name, site in zip(names, sites, strict=True):
        if site.figures is None:
            table.add_row(name, "-", "-", "-", "-", "-")
            continue
        own = site.figures
        values = (own.sqnr_before, own.sqnr_after, own.x_concentration, own.w_concentration, own.alignment)
        table.add_row(name, *(figure(value, 1) for value in values))
    return table


def _joined_names(site: SiteView) -> str:
    """Return the name of the first linear, and how many others read the same value."""
    more = f" (+{len(site.linears) - 1})" if len(site.linears) > 1 else ""
    return site.linears[0] + more


def _left_alone(left: Sequence[tuple[str, str, str]]) -> RenderableType:
    if not left:
        return Text("nothing that looks like a linear is left alone")
    table = new_table("left alone", "operator", "why")
    for name, operator, reason in left:
        table.add_row(name or "(no name)", operator, reason)
    return table


def _reasons(title: str, reasons: Sequence[str]) -> list[tuple[str, str]]:
    counted = summed_up(reasons)
    rows = [f"{count} x {reason}" for reason, count in counted[:_REASONS_SHOWN]]
    if len(counted) > _REASONS_SHOWN:
        rows.append(f"and {len(counted) - _REASONS_SHOWN} others; catonnx.json lists all")
    return [(title if index == 0 else "", row) for index, row in enumerate(rows)]
