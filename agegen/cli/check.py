"""``agegen data check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import (
    add_command,
    confirm_report,
    data_app,
    make_notice_console,
    make_output_console,
    show_work,
    write_output,
)
from agegen.datatools.config import CheckConfig
from agegen.errors import format_count
from agegen.options import OUTPUT, JsonOption, ReportOption, with_options


@add_command("check", "agegen data check data/utkface --report check.html --fix clean.csv", group=data_app)
@with_options(CheckConfig)
def check(
    config: CheckConfig,
    *,
    json_out: JsonOption = None,
    report: ReportOption = None,
    html: Annotated[Path | None, typer.Option("--html", hidden=True)] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Write a clean manifest, and the reasons for the rows that it omits.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Find duplicates, label conflicts, heaped ages and data leakage.

    With --run or --model, also label errors that a trained model finds likely.
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.datatools.check import check_data, write_clean_manifest
        from agegen.datatools.report import render_check, write_check_page
        from agegen.files import format_json
        from agegen.render.progress import ProgressDisplay

    with ProgressDisplay(notices) as progress:
        found = check_data(config, progress)
    if page := report or html:
        write_check_page(page, found)
        confirm_report(page)
    if fix:
        kept, omitted = write_clean_manifest(fix, found)
        notices.print(f"{fix}: {format_count(kept, 'row')} kept, {omitted:,} omitted", soft_wrap=True)
    if json_out:
        write_output(json_out, format_json(found.to_json()))
    if json_out != "-":
        make_output_console().print(render_check(found))
