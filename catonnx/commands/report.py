"""`catonnx report`: what `optimize` told, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catonnx.commands.options import JsonOption, QuietOption, VerboseOption
from catonnx.commands.terminal import Terminal, guarded
from catonnx.files import check_json, check_kept, check_place

PAGE = "catonnx.html"

ReportHtmlOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the report as a page to look at: HTML, no network needed.")
]


def report_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that optimize wrote, or its report (.json).")],
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the page goes.", show_default=f"{PAGE} in OUT, or beside the report"),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write its pictures there, as SVG and PNG, for papers.")
    ] = None,
    png: Annotated[bool, typer.Option("--png/--no-png", help="PNG needs cairosvg: catonnx\\[pictures].")] = True,
    figures: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show what evaluate or compare wrote with --json, too.")
    ] = None,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what an optimization did: as tables here, and as one HTML page with pictures.

    The page needs no network and no script. With --pictures alone no page is written.
    """
    with guarded(verbose=verbose):
        from catonnx.commands.cells import written
        from catonnx.commands.tables import optimized
        from catonnx.reporting.files import write_page, write_pictures
        from catonnx.reporting.measured import load_measured
        from catonnx.reporting.reportfile import load_report

        check_json(json_file, out, figures)
        report = load_report(out)
        measured = () if figures is None else load_measured(figures)
        place = html if html is not None or pictures is not None else (out if out.is_dir() else out.parent) / PAGE
        if place is not None:
            check_place(place)
            if place.suffix != ".html":  # an earlier page may be replaced, in OUT too
                check_kept(place, out, figures)
        made = [] if pictures is None else write_pictures(pictures, report, png=png)
        if place is not None:
            write_page(place, report, measured)
            made.insert(0, place)
        Terminal().deliver(json_file, report.to_json(), [] if quiet else [*optimized(report), written(made)])
