"""An evaluation as tables for the terminal and as an HTML page."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.evaluate.evaluate import EvalResult
from agegen.evaluate.evaluation import Evaluation, GroupMetrics, list_metrics
from agegen.files import write_text
from agegen.model.calibration import COVERAGE
from agegen.render.figures import COLORS, draw_calibration, draw_scatter, make_figure
from agegen.render.html import Figure, encode_figure, render_page, show_worst_faces
from agegen.render.tables import METRIC_TITLES, PlainTable, format_bounds, format_value

if TYPE_CHECKING:
    from agegen.evaluate.metrics import AnyMetrics, Metric

# The groups by true and by estimated age, with the names of their axes.
_AGE_BANDS = {"age_band": "true age", "estimated_age": "estimated age"}
# The title of the axis, and the value at which a line is drawn, of each metric shown by age band.
_BAND_AXES: dict[str, tuple[str, float | None]] = {
    "mae": ("mean absolute error (years)", None),
    "bias": ("bias (years)", 0),
    "coverage": ("coverage", COVERAGE),
}


def write_eval_report(path: Path, result: EvalResult) -> None:
    """Write the report of an evaluation as one self-contained HTML page."""
    write_text(path, render_html(result))


def render_html(result: EvalResult) -> str:
    """Return the report as an HTML document; faces are shown if their images are available."""
    evaluation = result.evaluation
    return render_page(
        "eval.html.j2",
        result=result,
        group_count=len(evaluation.groups),
        tables=[make_metrics_table(evaluation, "Metrics"), make_groups_table(evaluation)],
        figures=draw_figures(result),
        gallery=show_worst_faces(result.model, result.predictions, result.records),
    )


def make_metrics_table(evaluation: Evaluation, title: str) -> PlainTable:
    """Return the overall metrics with their intervals, next to those of the constant baseline."""
    counts, baseline = evaluation.counts, evaluation.baseline
    parts = [
        _list_metric_rows("age", counts["age"], [evaluation.age, evaluation.interval], baseline[0]),
        _list_metric_rows("age bracket", counts["bracket"], [evaluation.bracket], baseline[1]),
        _list_metric_rows("gender", counts["gender"], [evaluation.gender, evaluation.confident], baseline[2]),
    ]
    shown = [part for part in parts if part]
    ends = frozenset(itertools.accumulate(len(part) for part in shown[:-1]))
    columns = ["", "faces", "metric", "value", "95 % interval", "baseline"]
    rows = [row for part in shown for row in part]
    return PlainTable(title, columns, rows, left=3, sections=frozenset(end - 1 for end in ends))


def _list_metric_rows(label: str, faces: int, measured: list[AnyMetrics], baseline: AnyMetrics) -> list[list[str]]:
    """Return a row per metric; none without faces. Only the first row has the label and the number of faces."""
    if not faces:
        return []
    trivial = dict(list_metrics(baseline))
    rows: list[list[str]] = []
    for name, metric in (pair for metrics in measured for pair in list_metrics(metrics)):
        plain = format_value(name, trivial[name].value) if name in trivial else ""
        cells = [METRIC_TITLES[name], format_value(name, metric.value), format_interval(name, metric), plain]
        rows.append([*(("", "") if rows else (label, f"{faces:,}")), *cells])
    return rows


def make_groups_table(evaluation: Evaluation) -> PlainTable:
    """Return MAE, age intervals and accuracy by group; groups of fewer than 30 faces are marked."""
    groups = evaluation.groups
    exact, brackets = evaluation.counts["age"] > 0, evaluation.counts["bracket"] > 0
    starts = [index for index, group in enumerate(groups) if not index or groups[index - 1].column != group.column]
    rows = [
        [group.column if index in starts else "", *_list_group_cells(group, exact, brackets)]
        for index, group in enumerate(groups)
    ]
    columns = ["group", "value", "faces"]
    columns += ["MAE", "95 % interval", "bias", "90 % coverage", "width"] if exact else []
    columns += ["in bracket", "95 % interval"] if brackets else []
    columns += ["accuracy", "95 % interval"]
    ends = frozenset(start - 1 for start in starts[1:])
    return PlainTable("by group (* fewer than 30 faces)", columns, rows, left=2, sections=ends)


def _list_group_cells(group: GroupMetrics, exact: bool, brackets: bool) -> list[str]:
    cells = [group.value, f"{group.n:,}{'*' if group.small else ' '}"]
    shown: list[tuple[str, Metric, bool]] = []
    if exact:
        shown += [
            ("mae", group.age.mae, True),
            ("bias", group.age.bias, False),
            ("coverage", group.interval.coverage, False),
        ]
        shown += [("width", group.interval.width, False)]
    if brackets:
        shown += [("in_bracket", group.bracket.in_bracket, True)]
    shown += [("accuracy", group.gender.accuracy, True)]
    for name, metric, bounded in shown:
        cells += [format_value(name, metric.value), *([format_interval(name, metric)] if bounded else [])]
    return cells


def format_interval(name: str, metric: Metric) -> str:
    """Return a metric's interval as low–high; a dash if it is undefined."""
    if math.isnan(metric.low):
        return "–"
    return format_bounds(name, metric.low, metric.high)


def draw_figures(result: EvalResult) -> list[Figure]:
    """Return the figures that the labels allow: estimates against ages, errors and coverage by age, calibration."""
    evaluation, tables, figures = result.evaluation, {result.model: result.predictions}, []
    if evaluation.counts["age"]:
        figures += [
            Figure(
                "Estimated against true age",
                "Hexagons count faces; darker ones contain more. Estimates on the line are correct.",
                encode_figure(draw_scatter(tables)),
                width=40,
            ),
            Figure(
                "Error by age",
                "Mean absolute error by true and by estimated age, with 95 % confidence intervals.",
                encode_figure(draw_bands(evaluation, "mae")),
            ),
            Figure(
                "Bias by age",
                "Mean of estimate − true age, with 95 % confidence intervals; above 0, ages are overestimated.",
                encode_figure(draw_bands(evaluation, "bias")),
            ),
            Figure(
                "Coverage by age",
                f"Share of ages inside the {100 * COVERAGE:.0f} % intervals; 95 % confidence intervals (Wilson's).",
                encode_figure(draw_bands(evaluation, "coverage")),
            ),
        ]
    if evaluation.counts["gender"]:
        caption = (
            "On the line, a share x of the faces with P(female) = x is labelled female. Larger dots are more faces."
        )
        figures.append(Figure("Calibration of gender", caption, encode_figure(draw_calibration(tables)), width=40))
    return figures


def draw_bands(evaluation: Evaluation, name: str) -> Any:
    """Draw a metric (a key of ``_BAND_AXES``) by true and by estimated age, with the interval of each age band."""
    figure, axes = make_figure(1, len(_AGE_BANDS), 11, 3.8)
    for axis, (column, title) in zip(axes[0], _AGE_BANDS.items(), strict=True):
        every = [group for group in evaluation.groups if group.column == column]
        groups = [group for group in every if not np.isnan(_pick_metric(group, name).value)]
        metrics = [_pick_metric(group, name) for group in groups]
        values, lows, highs = (
            np.array([getattr(metric, part) for metric in metrics]) for part in ("value", "low", "high")
        )
        # Rounding can put a share of 0 or 1 just outside Wilson's interval.
        lengths = np.array([values - lows, highs - values]).clip(min=0)
        places = np.arange(len(groups))
        axis.errorbar(places, values, yerr=lengths, fmt="o", color=COLORS[0], capsize=3)
        axis.set_xticks(places, [group.value for group in groups], rotation=45)
        axis.set_xlabel(f"{title} (years)")
        axis.set_ylabel(_BAND_AXES[name][0])
        if (target := _BAND_AXES[name][1]) is not None:
            axis.axhline(target, color="#555", linewidth=1)
    return figure


def _pick_metric(group: GroupMetrics, name: str) -> Metric:
    metric: Metric = getattr(group.interval if name == "coverage" else group.age, name)
    return metric
