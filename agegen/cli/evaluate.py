"""``agegen eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agegen.cli.app import (
    TRAIN,
    add_command,
    confirm_report,
    make_notice_console,
    make_output_console,
    show_work,
    write_output,
)
from agegen.errors import AgegenError
from agegen.evaluate.config import EvalConfig
from agegen.options import OUTPUT, JsonOption, ReportOption, with_options

if TYPE_CHECKING:
    from agegen.evaluate.evaluation import Evaluation


@add_command("eval", "agegen eval runs/scratch-20260101-120000 --data other-faces --split all", TRAIN)
@with_options(EvalConfig)
def evaluate(
    config: EvalConfig,
    *,
    json_out: JsonOption = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one row per face, .parquet or .csv.", rich_help_panel=OUTPUT),
    ] = None,
    report: ReportOption = None,
) -> None:
    """Evaluate a model: metrics with 95 % intervals, also by group."""
    notices = make_notice_console()
    with show_work(notices):
        from agegen.evaluate.estimates import write_predictions
        from agegen.evaluate.evaluate import evaluate_run
        from agegen.evaluate.study import is_study
        from agegen.render.progress import ProgressDisplay, show_notices

    if config.run is not None and is_study(config.run):
        if report is not None:
            raise AgegenError(f"{config.run} is a cross-validation; --report requires one of its runs")
        _show_folds(config.run, config.data, json_out, predictions)
        return
    if config.distributions and not (predictions and predictions.suffix == ".parquet"):
        raise AgegenError("--distributions requires --predictions FILE.parquet")
    with ProgressDisplay(notices) as progress:
        result = evaluate_run(config, progress)
    show_notices(notices, result.notices)
    if predictions:
        write_predictions(predictions, result.predictions, result.teacher)
    if report is not None:
        from agegen.evaluate.report import write_eval_report

        write_eval_report(report, result)
        confirm_report(report)
    _show(result.evaluation, result.name, f"{result.split} split of {result.source}", json_out)


def _show_folds(path: Path, data: tuple[str, ...], json_out: str | None, predictions: Path | None) -> None:
    """Show the out-of-fold metrics of a cross-validation."""
    from agegen.evaluate.estimates import write_predictions
    from agegen.evaluate.study import evaluate_study

    if data:
        raise AgegenError(f"{path} is evaluated on its own faces; for other data, give one of its runs")
    result = evaluate_study(path)
    if predictions:
        write_predictions(predictions, result.predictions)
    _show(result.evaluation, path.resolve().name, "out of fold", json_out)


def _show(evaluation: Evaluation, name: str, faces: str, json_out: str | None) -> None:
    """Show a verdict and tables; ``name`` is the model's, and ``faces`` says which faces it was evaluated on."""
    from agegen.evaluate.report import make_groups_table, make_metrics_table, write_verdict
    from agegen.files import format_json
    from agegen.render.tables import render_table

    if json_out:
        write_output(json_out, format_json(evaluation.to_json()))
    if json_out != "-":
        output = make_output_console()
        output.print(write_verdict(name, evaluation))
        output.print(render_table(make_metrics_table(evaluation, f"{name}, {faces}")))
        output.print(render_table(make_groups_table(evaluation)))
