"""``agegen compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agegen.cli.app import (
    CacheDir,
    Device,
    JsonOut,
    OtherData,
    app,
    make_notice_console,
    make_output_console,
    show_work,
    write_output,
)


@app.command()
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|MODEL…",
            help="Runs, folders of --seeds, hf://OWNER/NAME, or weights that ship, NAME or NAME/WEIGHTS (with --data). "
            "Default: each model's newest run in ./runs.",
        ),
    ] = None,
    data: OtherData = None,
    split: Annotated[str, typer.Option(metavar="test|val|train|all", help="Which faces.")] = "test",
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write one self-contained page.")] = None,
    json_out: JsonOut = None,
    device: Device = "auto",
    cache_dir: CacheDir = None,
) -> None:
    """Compare runs, or weights that ship, on the same faces: metrics with paired intervals, cost, groups, a verdict.

    Example: agegen compare --report comparison.html
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.compare.compare import CompareConfig, compare_runs
        from agegen.compare.report import render_comparison, write_html_report
        from agegen.files import format_json
        from agegen.render.progress import ProgressDisplay, show_notices

    config = CompareConfig(tuple(runs or ()), tuple(data or ()), split, device, cache_dir)
    with ProgressDisplay(notices) as progress:
        result = compare_runs(config, progress)
    show_notices(notices, result.notices)
    if report:
        write_html_report(report, result)
    if json_out:
        write_output(json_out, format_json(result.to_json()))
    if json_out != "-":
        make_output_console().print(render_comparison(result))
