"""``agegen eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agegen.cli.app import (
    AgeColumn,
    CacheDir,
    CropDetector,
    Device,
    GenderCodes,
    JsonOut,
    OtherData,
    Precision,
    Weights,
    app,
    make_notice_console,
    make_output_console,
    show_work,
    write_output,
)
from agegen.errors import AgegenError

if TYPE_CHECKING:
    from agegen.evaluate.evaluation import Evaluation


@app.command(name="eval")
def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(help="A run folder, that of --folds, or a checkpoint. Default: the newest in ./runs."),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The weights that ship for this model.")] = None,
    weights: Weights = None,
    data: OtherData = None,
    split: Annotated[str, typer.Option(metavar="test|val|train|all", help="Which faces.")] = "test",
    json_out: JsonOut = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one row per face, .parquet or .csv.")
    ] = None,
    distributions: Annotated[
        bool, typer.Option("--distributions", help="Rows hold P(age) over 0–116 too: soft labels for `agegen train`.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page: tables, figures, the largest errors."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    detector: CropDetector = None,
    age_column: AgeColumn = None,
    gender_codes: GenderCodes = None,
    cache_dir: CacheDir = None,
) -> None:
    """Evaluate a run: metrics with 95 % intervals, by group, beside the trivial baseline.

    Example: agegen eval runs/scratch-20260101-120000 --data other-faces --split all
    """
    notices = make_notice_console()
    with show_work(notices):
        from agegen.data.manifests import ReadOptions
        from agegen.evaluate.estimates import write_predictions
        from agegen.evaluate.evaluate import EvalConfig, evaluate_run
        from agegen.evaluate.study import is_study
        from agegen.render.progress import ProgressDisplay, show_notices

    if run is not None and is_study(run):
        if report is not None:
            raise AgegenError(f"{run} is a cross-validation; --report takes one of its runs")
        _show_folds(run, data, json_out, predictions)
        return
    reading = ReadOptions(age_column, gender_codes)
    if distributions and not (predictions and predictions.suffix == ".parquet"):
        raise AgegenError("--distributions belongs to --predictions FILE.parquet")
    config = EvalConfig(
        run, model, tuple(data or ()), split, device, precision, cache_dir, reading, detector, weights, distributions
    )
    with ProgressDisplay(notices) as progress:
        result = evaluate_run(config, progress)
    show_notices(notices, result.notices)
    if predictions:
        write_predictions(predictions, result.predictions, result.teacher)
    if report is not None:
        from agegen.evaluate.report import write_eval_report

        write_eval_report(report, result)
    title = f"{result.path} on the split '{result.split}' of {result.source}: {result.evaluation.n:,} faces"
    _show(result.evaluation, title, json_out)


def _show_folds(path: Path, data: list[str] | None, json_out: str | None, predictions: Path | None) -> None:
    """Show what a cross-validation's trainings estimate of the faces that they didn't see."""
    from agegen.evaluate.estimates import write_predictions
    from agegen.evaluate.study import evaluate_study

    if data:
        raise AgegenError(f"{path} is evaluated on its own faces; name one of its runs for other data")
    result = evaluate_study(path)
    if predictions:
        write_predictions(predictions, result.predictions)
    _show(result.evaluation, f"{path}, out of fold: {result.evaluation.n:,} faces", json_out)


def _show(evaluation: Evaluation, title: str, json_out: str | None) -> None:
    from agegen.evaluate.report import make_groups_table, make_metrics_table
    from agegen.files import format_json
    from agegen.render.tables import render_table

    if json_out:
        write_output(json_out, format_json(evaluation.to_json()))
    if json_out != "-":
        output = make_output_console()
        output.print(render_table(make_metrics_table(evaluation, title)))
        output.print(render_table(make_groups_table(evaluation)))
