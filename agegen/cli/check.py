"""``agegen data check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import (
    AgeColumn,
    Device,
    GenderCodes,
    JsonOut,
    Weights,
    data_app,
    make_notice_console,
    make_output_console,
    show_work,
    write_output,
)


@data_app.command(name="check")
def check(
    path: Annotated[
        list[str],
        typer.Argument(metavar="PATH…", help="Folders in a known layout, tables of pictures, or 'demo'."),
    ],
    run: Annotated[
        Path | None, typer.Option(help="A run or checkpoint; its model points out labels that are likely wrong.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The same with the weights that ship for this model.")
    ] = None,
    weights: Weights = None,
    json_out: JsonOut = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write one self-contained page.")] = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Write a clean manifest, and the reasons for what it leaves out."),
    ] = None,
    age_column: AgeColumn = None,
    gender_codes: GenderCodes = None,
    device: Device = "auto",
) -> None:
    """Tell what a data set hides: duplicates, conflicting labels, heaped ages, leaks, likely wrong labels.

    Example: agegen data check data/utkface --html check.html --fix clean.csv
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.data.manifests import ReadOptions
        from agegen.datatools.check import CheckConfig, check_data, write_clean_manifest
        from agegen.datatools.report import render_check, write_check_page
        from agegen.files import format_json
        from agegen.render.progress import ProgressDisplay

    config = CheckConfig(tuple(path), run, model, device, ReadOptions(age_column, gender_codes), weights)
    with ProgressDisplay(notices) as progress:
        report = check_data(config, progress)
    if html:
        write_check_page(html, report)
    if fix:
        kept, left_out = write_clean_manifest(fix, report)
        notices.print(f"{fix}: {kept:,} rows kept, {left_out:,} left out", soft_wrap=True)
    if json_out:
        write_output(json_out, format_json(report.to_json()))
    if json_out != "-":
        make_output_console().print(render_check(report))
