"""An evaluation as tables for the terminal and as an HTML page."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.evaluate.evaluate import EvalResult
from agegen.evaluate.evaluation import Evaluation, GroupMetrics
from agegen.files import write_text
from agegen.model.calibration import COVERAGE
from agegen.render.figures import COLORS, draw_calibration, draw_scatter, make_figure
from agegen.render.html import Figure, encode_figure, render_page, show_worst_faces
from agegen.render.tables import METRIC_TITLES, PlainTable, format_bounds, format_value

if TYPE_CHECKING:
    from agegen.evaluate.metrics import AnyMetrics, Metric


def make_metrics_table(evaluation: Evaluation, title: str) -> PlainTable:
    """Return the overall metrics with their intervals beside the trivial baseline."""
    counts, baseline = evaluation.counts, evaluation.baseline
    parts = [
        _list_rows("age", counts["age"], [evaluation.age, evaluation.interval], baseline[0]),
        _list_rows("age bracket", counts["bracket"], [evaluation.bracket], baseline[1]),
        _list_rows("gender", counts["gender"], [evaluation.gender, evaluation.confident], baseline[2]),
    ]
    shown = [part for part in parts if part]
    ends = frozenset(itertools.accumulate(len(part) for part in shown[:-1]))
    columns = ["", "faces", "metric", "value", "95 % interval", "baseline"]
    rows = [row for part in shown for row in part]
    return PlainTable(title, columns, rows, left=3, sections=frozenset(end - 1 for end in ends))


def make_groups_table(evaluation: Evaluation) -> PlainTable:
    """Return MAE, the age intervals and accuracy by group; groups of fewer than 30 faces are marked."""
    groups = evaluation.groups
    exact, brackets = evaluation.counts["age"] > 0, evaluation.counts["bracket"] > 0
    starts = [index for index, group in enumerate(groups) if not index or groups[index - 1].column != group.column]
    rows = [
        [group.column if index in starts else "", *_list_cells(group, exact, brackets)]
        for index, group in enumerate(groups)
    ]
    columns = ["group", "value", "faces"]
    columns += ["MAE", "95 % interval", "90 % covers", "width"] if exact else []
    columns += ["in bracket", "95 % interval"] if brackets else []
    columns += ["accuracy", "95 % interval"]
    ends = frozenset(start - 1 for start in starts[1:])
    return PlainTable("by group (* fewer than 30 faces)", columns, rows, left=2, sections=ends)


def format_interval(name: str, metric: Metric) -> str:
    """Return a metric's interval, low–high."""
    if math.isnan(metric.low):
        return "–"
    return format_bounds(name, metric.low, metric.high)


def _list_rows(label: str, faces: int, measured: list[AnyMetrics], baseline: AnyMetrics) -> list[list[str]]:
    from agegen.evaluate.evaluation import list_metrics

    if not faces:
        return []
    trivial = dict(list_metrics(baseline))
    rows: list[list[str]] = []
    for name, metric in (pair for metrics in measured for pair in list_metrics(metrics)):
        plain = format_value(name, trivial[name].value) if name in trivial else ""
        cells = [METRIC_TITLES[name], format_value(name, metric.value), format_interval(name, metric), plain]
        rows.append([*(("", "") if rows else (label, f"{faces:,}")), *cells])
    return rows


def _list_cells(group: GroupMetrics, exact: bool, brackets: bool) -> list[str]:
    cells = [group.value, f"{group.n:,}{'*' if group.small else ' '}"]
    shown: list[tuple[str, Metric, bool]] = []
    if exact:
        shown += [("mae", group.age.mae, True), ("coverage", group.interval.coverage, False)]
        shown += [("width", group.interval.width, False)]
    if brackets:
        shown += [("in_bracket", group.bracket.in_bracket, True)]
    shown += [("accuracy", group.gender.accuracy, True)]
    for name, metric, bounded in shown:
        cells += [format_value(name, metric.value), *([format_interval(name, metric)] if bounded else [])]
    return cells


# Columns of groups by true and by estimated age, and how they are told apart.
_BANDS = {"age_band": "true age", "estimated_age": "estimated age"}


def write_eval_report(path: Path, result: EvalResult) -> None:
    """Write the report of an evaluation, whole or not at all."""
    write_text(path, render_html(result))


def render_html(result: EvalResult) -> str:
    """Return the report as one HTML document; the faces are shown where the data is at hand."""
    evaluation = result.evaluation
    return render_page(
        "eval.html.j2",
        result=result,
        looked_at=len(evaluation.groups),
        tables=[make_metrics_table(evaluation, "Metrics"), make_groups_table(evaluation)],
        figures=draw_figures(result),
        gallery=show_worst_faces(result.model, result.predictions, result.records),
    )


def draw_figures(result: EvalResult) -> list[Figure]:
    """Return what the labels allow: estimates against ages, errors and coverage by age, calibration of gender."""
    evaluation, tables, figures = result.evaluation, {result.model: result.predictions}, []
    if evaluation.counts["age"]:
        figures += [
            Figure(
                "Estimated against true age",
                "Each hexagon counts faces, darker for more; on the line the estimate is right.",
                encode_figure(draw_scatter(tables)),
                width=40,
            ),
            Figure(
                "Error by age",
                "Mean absolute error by true and by estimated age; bars hold 95 %.",
                encode_figure(draw_bands(evaluation, "mae")),
            ),
            Figure(
                "Coverage by age",
                f"How many ages the {COVERAGE:.0%} intervals hold; bars hold 95 % (Wilson's).",
                encode_figure(draw_bands(evaluation, "coverage")),
            ),
        ]
    if evaluation.counts["gender"]:
        caption = (
            "On the line, of the faces given P(female) = x a share x is labelled female. Larger dots are more faces."
        )
        figures.append(Figure("Calibration of gender", caption, encode_figure(draw_calibration(tables)), width=40))
    return figures


def draw_bands(evaluation: Evaluation, name: str) -> Any:
    """Draw a metric (``mae`` or ``coverage``) by true and by estimated age, each band with its interval."""
    figure, axes = make_figure(1, len(_BANDS), 11, 3.8)
    for axis, (column, title) in zip(axes[0], _BANDS.items(), strict=True):
        every = [group for group in evaluation.groups if group.column == column]
        groups = [group for group in every if not np.isnan(_pick(group, name)[0])]
        values, lows, highs = (np.array(part) for part in zip(*(_pick(group, name) for group in groups), strict=True))
        # Of a handful of faces there is no interval.
        spread = np.nan_to_num(np.array([values - lows, highs - values])).clip(min=0)
        places = np.arange(len(groups))
        axis.errorbar(places, values, yerr=spread, fmt="o", color=COLORS[0], capsize=3)
        axis.set_xticks(places, [group.value for group in groups], rotation=45)
        axis.set_xlabel(f"{title} (years)")
        axis.set_ylabel("mean absolute error (years)" if name == "mae" else "share covered")
        if name == "coverage":
            axis.axhline(COVERAGE, color="#555", linewidth=1)
    return figure


def _pick(group: GroupMetrics, name: str) -> tuple[float, float, float]:
    metric = group.age.mae if name == "mae" else group.interval.coverage
    return metric.value, metric.low, metric.high
