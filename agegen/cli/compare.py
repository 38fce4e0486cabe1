"""``agegen compare``."""

from __future__ import annotations

from agegen.cli.app import (
    TRAIN,
    add_command,
    confirm_report,
    make_notice_console,
    make_output_console,
    show_work,
    write_output,
)
from agegen.evaluate.config import CompareConfig
from agegen.options import JsonOption, ReportOption, with_options


@add_command("compare", "agegen compare --report comparison.html", TRAIN)
@with_options(CompareConfig)
def compare(
    config: CompareConfig,
    *,
    report: ReportOption = None,
    json_out: JsonOption = None,
) -> None:
    """Compare models on the same faces: metrics, costs, a verdict.

    Differences have paired 95 % intervals; results are also shown by group."""
    notices = make_notice_console()
    with show_work(notices):
        from agegen.compare.compare import compare_runs
        from agegen.compare.report import render_comparison, write_html_report
        from agegen.files import format_json
        from agegen.render.progress import ProgressDisplay, show_notices

    with ProgressDisplay(notices) as progress:
        result = compare_runs(config, progress)
    show_notices(notices, result.notices)
    if report:
        write_html_report(report, result)
        confirm_report(report)
    if json_out:
        write_output(json_out, format_json(result.to_json()))
    if json_out != "-":
        make_output_console().print(render_comparison(result))
