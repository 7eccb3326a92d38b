"""What a page tells, section by section: each is a function of the report that gives markup, or nothing."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from catonnx.naming import shortened, summed_up
from catonnx.report import Report, SiteRow
from catonnx.reporting.markup import beside, facts, number, paragraph, percent, table
from catonnx.reporting.measured import Answers, Measured
from catonnx.reporting.pictures import (
    depth,
    noise_percent,
    rounded,
    scatter,
    sizes,
    spelled,
    sqnr_legend,
    sqnr_panels,
)
from catonnx.reporting.svg import Picture, element, shown

_WORST = 8
"""Sites that are named as the most sensitive ones."""

_TWIN = "Measured on float32 twins: what bfloat16 models compute, not how far their kernels are from it."


def _done(report: Report, _: Sequence[Measured]) -> list[str]:
    linears = sum(len(row.linears) for row in report.sites)
    rows = [
        ("source", element("code", shown(report.source, 400))),
        ("result", element("code", shown(report.out, 400))),
        ("SHA-256 of the source", element("code", shown(report.digest))),
        ("linears rounded", f"{linears}, at {len(report.sites)} sites"),
        ("weights of these", f"{spelled(sum(row.bytes_before for row in report.sites))} before, "
                             f"{spelled(sum(row.bytes_after for row in report.sites))} after"),
        ("calibration", shown(_calibration(report.recipe), 400)),
        *([("residual streams", shown("; ".join(report.turned), 400))] if report.turned else []),
        *([("type", shown("; ".join(report.narrowed), 400))] if report.narrowed else []),
    ]  # fmt: skip
    if report.unchanged:
        rows = [*rows[:3], ("unchanged", shown(report.unchanged, 400))]
    return [_figure(sizes(report), "Weights of the rounded linears, and all the rest of the files.", "broad"),
            facts(rows, "Model and data")]  # fmt: skip


def _calibration(recipe: dict[str, Any]) -> str:
    given = recipe.get("calibration") or "self"
    texts = given if isinstance(given, str) else ", ".join(map(str, given))
    return f"{texts}, {recipe.get('samples')} sequences of {recipe.get('seq_len')} tokens"


def _quality(report: Report, measured: Sequence[Measured]) -> list[str]:
    checked = report.verification
    content = []
    if checked.get("deployed"):
        rows = [
            (shown(name), number(row["sqnr_db"], 1), number(row["kl_nats"], 4), percent(row["top1_agreement"]))
            for name, row in checked["deployed"].items()
        ]
        columns = ("", ">SQNR of outputs, dB", ">KL, nats", ">same top token")
        content.append(table("The saved model against its source, on calibration text", columns, rows))
    if "transform_relative_l2" in checked and checked["transform_relative_l2"] is not None:
        difference = f"{checked['transform_relative_l2']:.1e}".replace("-", "\u2212")
        content.append(
            paragraph(f"Before rounding the transformed model is the same function: relative L2 {difference}.")
        )
    if checked.get("float32_twin"):
        content.append(paragraph(_TWIN))
    if report.recipe["rounding"] in ("gptq", "sequential") and content:
        content.append(paragraph("Mind: this is the text that rounding was fitted to."))
    if any(row.perplexity is not None or row.kl_nats is not None for row in measured):
        rows = [
            (shown(row.model), number(row.perplexity, 3), number(row.kl_nats, 4), percent(row.top1_agreement))
            for row in measured
        ]
        content.append(table("On a text of its own", ("", ">perplexity", ">KL, nats", ">same top token"), rows))
    return [*content, *_tasks([row for row in measured if row.tasks])]


def _tasks(asked: Sequence[Measured]) -> list[str]:
    found = [{(answer.task, answer.metric): answer for answer in row.tasks} for row in asked]
    rows = []
    for task, metric in dict.fromkeys(key for figures in found for key in figures):
        own = [figures.get((task, metric)) for figures in found]
        rows.append((shown(task), shown(metric), *(_answer(answer) for answer in own)))
    columns = ("", "figure", *(f">{shown(row.model)}" for row in asked))
    return [table("Questions of tasks, with standard errors", columns, rows)] if rows else []


def _answer(answer: Answers | None) -> str:
    if answer is None:
        return number(None, 4)
    return number(answer.value, 4) + (f" \u00b1 {number(answer.error, 4)}" if answer.error else "")


def _speed(report: Report, measured: Sequence[Measured]) -> list[str]:
    if report.unchanged:
        return []
    share = report.online_multiply_adds / max(1, report.multiply_adds)
    content = [paragraph(f"What stays online adds {percent(share)} to the linears' multiply-adds.")] if share else []
    timed = [row for row in measured if row.prefill_tokens_per_second or row.decode_tokens_per_second]
    if timed:
        rows = [
            (shown(row.model), number(row.prefill_tokens_per_second, 1), number(row.decode_tokens_per_second, 1),
             "\u2013" if row.disk_bytes is None else spelled(row.disk_bytes)) for row in timed
        ]  # fmt: skip
        columns = ("", ">prefill, tokens/s", ">decode, tokens/s", ">size")
        content.append(table("Speed where it was measured", columns, rows))
    else:
        command = shlex.join(["catonnx", "evaluate", report.out, "--against", report.source, "--text", "FILE.txt"])
        told = f"Not measured here. {element('code', shown(command, 400))} measures perplexity and speed; with "
        content.append(paragraph(f"{told}{element('code', '--json FILE')}, and {element('code', 'catonnx report')} "
                                 f"with {element('code', '--figures FILE')}, they stand here."))  # fmt: skip
    return content


def _layers(report: Report, _: Sequence[Measured]) -> list[str]:
    panels, legend = sqnr_panels(report), sqnr_legend(report)
    if not panels or legend is None:
        return []
    caption = (
        "Signal over rounding noise, predicted before and after the change of basis, and as really rounded. Higher "
    )
    caption += "is better: 6 dB are worth one bit."
    if len({row.bits for row in report.sites}) > 1:
        caption += " Sites that keep 8 bits are shown in 8 bits, before and after: they stand about 25 dB higher."
    grid = element("div", *(panel.inline() for panel in panels), class_="panels")
    inner = element("div", legend.inline(), class_="legend") + grid
    return [element("figure", inner, element("figcaption", caption))]


def _theory(report: Report, _: Sequence[Measured]) -> list[str]:
    picture = scatter(report)
    if picture is not None:
        caption = (
            "Rotations move a site up; only scales and blocks move it to the right. Each line leads from a site as "
        )
        caption += "it was (hollow) to what it is now (filled)."
        return [_figure(picture, caption, "broad")]
    if any(row.sqnr_before is not None for row in report.sites):
        return [paragraph("This report does not tell concentration and alignment: an older catonnx made it.")]
    return []


def _sensitivity(report: Report, _: Sequence[Measured]) -> list[str]:
    picture = depth(report)
    if picture is None:
        return []
    known = [(row, value) for row in report.sites for value in [rounded(row)] if value is not None]
    worst = sorted(known, key=lambda pair: pair[1])[:_WORST]
    rows = [(_linears(row), number(value, 2), f"{noise_percent(value):.2g} %", str(row.bits)) for row, value in worst]
    columns = ("=linears", ">SQNR, dB", ">noise", ">bits")
    caption = "Errors add up on their way to the outputs: what stands out here is where more bits would help most."
    return [_figure(picture, caption, "broad"), table("The most sensitive sites", columns, rows)]


def _plan(report: Report, _: Sequence[Measured]) -> list[str]:
    kinds = report.kinds()
    if not kinds:
        return []
    names = shortened([kind.kind for kind in kinds])
    columns = ("=linears", ">sites", ">linears", "=absorbed", "=online", "bits", ">SQNR before", ">after", ">rounded",
               ">before", ">after")  # fmt: skip
    rows: list[tuple[str, ...]] = [
        (shown(name, 200), str(kind.sites), str(kind.linears), shown(kind.absorbed) or "\u2013",
         shown(kind.online) or "\u2013", "<br/>".join(map(_unbroken, kind.bits.split(", "))),
         *(number(value, 1) for value in (kind.sqnr_before, kind.sqnr_after)),
         number(kind.sqnr_weights if kind.sqnr_outputs is None else kind.sqnr_outputs, 1),
         spelled(kind.bytes_before), spelled(kind.bytes_after))
        for name, kind in zip(names, kinds, strict=True)
    ]  # fmt: skip
    rows.append(
        ("total", str(len(report.sites)), str(sum(kind.linears for kind in kinds)), *[""] * 6,
         spelled(sum(kind.bytes_before for kind in kinds)), spelled(sum(kind.bytes_after for kind in kinds)))
    )  # fmt: skip
    every = element("details", element("summary", f"every site ({len(report.sites)})"), _every_site(report.sites))
    return [table("Sites that are treated alike, means of their SQNR in dB", columns, rows, total=True), every]


def _unbroken(text: str) -> str:
    return shown(text).replace(" ", "&#160;")


def _every_site(sites: Sequence[SiteRow]) -> str:
    columns = ("=linears", "shapes", "=absorbed", "=online", "bits", ">SQNR before", ">after", ">rounded", ">C before",
               ">C after", ">A before", ">A after", "=remarks")  # fmt: skip
    rows = [
        (_linears(row), "<br/>".join(f"{inputs} \u2192 {outputs}" for inputs, outputs in dict.fromkeys(row.shapes)),
         shown(", ".join(row.absorbed)) or "\u2013", shown(", ".join(row.online)) or "\u2013",
         shown(" x ".join(filter(None, [str(row.bits), row.activation]))),
         *(number(value, 2) for value in (row.sqnr_before, row.sqnr_after, rounded(row), row.concentration_before,
                                          row.concentration_after, row.alignment_before, row.alignment_after)),
         shown(row.why, 400))
        for row in sites
    ]  # fmt: skip
    return table("Every site in graph order, figures in dB", columns, rows)


def _skipped(report: Report, _: Sequence[Measured]) -> list[str]:
    content = []
    if report.left:
        reasons = summed_up(reason for _, _, reason in report.left)
        rows = [(str(count), shown(reason, 400)) for reason, count in reasons]
        content.append(table("Left alone, and why", ("number", "=why"), rows))
        every = [
            (shown(name) or "(no name)", shown(operator), shown(reason, 400)) for name, operator, reason in report.left
        ]
        listed = table("Left alone, one by one", ("=node", "operator", "=why"), every)
        content.append(element("details", element("summary", f"one by one ({len(report.left)})"), listed))
    unfused = summed_up(report.verification.get("not_fused", ()))
    if unfused:
        rows = [(str(count), shown(reason, 400)) for reason, count in unfused]
        content.append(table("Rounded, but not run by an int4 kernel", ("number", "=why"), rows))
    if report.not_copied:
        names = ", ".join(element("code", shown(name)) for name in report.not_copied)
        content.append(paragraph(f"Not copied, since they are links out of the model's folder: {names}."))
    return content


def _remarks(report: Report, _: Sequence[Measured]) -> list[str]:
    told = [*report.verification.get("remarks", ()), *(row.why for row in report.sites if row.why)]
    items = [
        f"{shown(text, 400)} ({count} \u00d7)" if count > 1 else shown(text, 400) for text, count in summed_up(told)
    ]
    if report.changed_caches:
        names = ", ".join(element("code", shown(name)) for name, _ in summed_up(report.changed_caches))
        items.append(f"The caches {names} ({len(report.changed_caches)}) are in a basis of their own: do not hand them "
                     f"to another model. {element('code', '--caches exact')} keeps the source's.")  # fmt: skip
    if report.dampings:
        names = ", ".join(element("code", shown(name)) for name, _ in summed_up(report.dampings))
        items.append(f"{len(report.dampings)} sites were damped more than asked for: {names}.")
    return [element("ul", *(element("li", item) for item in items))] if items else []


def _run(report: Report, _: Sequence[Measured]) -> list[str]:
    steps = [(shown(step), number(seconds, 1)) for step, seconds in report.steps]
    steps.append(("in all", number(sum(seconds for _, seconds in report.steps), 1)))
    wishes = [
        (element("code", shown(name)), element("code", shown(_plain(wish), 400)))
        for name, wish in report.recipe.items()
    ]
    versions = [(shown(name), shown(version)) for name, version in report.versions.items()]
    return [
        beside(table("Time", ("step", ">seconds"), steps, total=True), facts(versions, "Versions")),
        paragraph(f"Largest memory {spelled(report.peak_memory)}; {report.calibration_rows} rows of calibration."),
        element("details", element("summary", "the whole recipe"), facts(wishes, "Recipe")),
    ]


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _linears(row: SiteRow) -> str:
    names = list(row.linears) or [row.site]
    return element("code", shown(names[0], 160)) + "".join(
        f"<br/>{element('code', shown(name, 160))}" for name in names[1:4]
    ) + (f"<br/>and {len(names) - 4} more" if len(names) > 4 else "")  # fmt: skip


def _figure(picture: Picture, caption: str, kind: str) -> str:
    return element("figure", picture.inline(), element("figcaption", caption), class_=kind)


SECTIONS: tuple[tuple[str, str, Callable[[Report, Sequence[Measured]], list[str]]], ...] = (
    ("done", "What was done", _done),
    ("quality", "Quality", _quality),
    ("speed", "Speed", _speed),
    ("layers", "SQNR, layer by layer", _layers),
    ("theory", "Concentration and alignment", _theory),
    ("sensitivity", "Sensitivity by depth", _sensitivity),
    ("plan", "The plan", _plan),
    ("skipped", "What was skipped, and why", _skipped),
    ("remarks", "Remarks", _remarks),
    ("run", "The run", _run),
)
"""Name, heading and content of every section; one without content is left out."""
