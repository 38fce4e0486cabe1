"""An evaluation as tables for the terminal and as an HTML page."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.errors import format_count
from agegen.evaluate.evaluate import EvalResult
from agegen.evaluate.evaluation import Evaluation, GroupMetrics, list_metrics
from agegen.files import write_text
from agegen.model.calibration import COVERAGE
from agegen.render.figures import COLORS, SOFT, draw_calibration, draw_scatter, make_panel
from agegen.render.html import Figure, encode_panels, render_page, show_worst_faces
from agegen.render.tables import METRIC_TITLES, PlainTable, format_bounds, format_value, make_sectioned_table

if TYPE_CHECKING:
    from agegen.evaluate.metrics import AnyMetrics, Metric

# The groups by true and by estimated age, with the names of their axes.
_AGE_BANDS = {"age_band": "true age", "estimated_age": "estimated age"}
# Metrics that a verdict names, of exact ages, of age brackets and of genders.
_DECIDING = (("age", "mae"), ("bracket", "in_bracket"), ("gender", "accuracy"))
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
        verdict=write_verdict(result.name, evaluation),
        group_count=len(evaluation.groups),
        tables=[make_metrics_table(evaluation, "Metrics"), make_groups_table(evaluation)],
        figures=draw_figures(result),
        gallery=show_worst_faces(result.name, result.predictions, result.records),
    )


def write_verdict(name: str, evaluation: Evaluation) -> str:
    """Return a sentence: how good the model is, compared with always giving the same answer, and on how many faces."""
    phrases = []
    for index, (part, metric) in enumerate(_DECIDING):
        if evaluation.counts[part]:
            found, trivial = (
                getattr(metrics, metric) for metrics in (getattr(evaluation, part), evaluation.baseline[index])
            )
            phrases.append(_phrase_metric(metric, found, trivial.value))
    faces = format_count(evaluation.n, "face")
    if not phrases:
        return f"On {faces}, none of which has a label that {name} estimates, nothing can be measured."
    return (
        f"On {faces}, {name} {', and '.join(phrases)}. "
        "The baseline always gives the median age and the majority gender of the training set."
    )


def _phrase_metric(name: str, metric: Metric, baseline: float) -> str:
    """Return what a metric says of the model next to the baseline, with its interval."""
    interval = "" if math.isnan(metric.low) else f" (95 % interval {format_interval(name, metric)})"
    # Without an interval, as of a single face, nothing is claimed.
    better = metric.high < baseline if name == "mae" else metric.low > baseline
    verdict = f"{interval}, {'better' if better else 'not clearly better'} than the baseline's"
    value, other = format_value(name, metric.value), format_value(name, baseline)
    if name == "mae":
        return f"is off by {value} years of age on average{verdict} {other}"
    what = "puts {} of the ages in their bracket" if name == "in_bracket" else "gets {} of the genders right"
    return f"{what.format(value)}{verdict} {other}"


def make_metrics_table(evaluation: Evaluation, title: str) -> PlainTable:
    """Return the overall metrics with their intervals, next to those of the constant baseline."""
    counts, baseline = evaluation.counts, evaluation.baseline
    parts = [
        _list_metric_rows("age", counts["age"], [evaluation.age, evaluation.interval], baseline[0]),
        _list_metric_rows("age bracket", counts["bracket"], [evaluation.bracket], baseline[1]),
        _list_metric_rows("gender", counts["gender"], [evaluation.gender, evaluation.confident], baseline[2]),
    ]
    return make_sectioned_table(
        title, ["metric", "value", "95 % interval", "baseline"], [part for part in parts if part]
    )


def _list_metric_rows(label: str, faces: int, measured: list[AnyMetrics], baseline: AnyMetrics) -> list[list[str]]:
    """Return a heading with the label and the number of faces, and a row per metric; nothing without faces."""
    if not faces:
        return []
    trivial = dict(list_metrics(baseline))
    rows = [[f"{label}, {format_count(faces, 'face')}", "", "", ""]]
    for name, metric in (pair for metrics in measured for pair in list_metrics(metrics)):
        plain = format_value(name, trivial[name].value) if name in trivial else ""
        rows.append([METRIC_TITLES[name], format_value(name, metric.value), format_interval(name, metric), plain])
    return rows


def make_groups_table(evaluation: Evaluation) -> PlainTable:
    """Return MAE, age intervals and accuracy by group; groups of fewer than 30 faces are marked."""
    groups = evaluation.groups
    exact, brackets = evaluation.counts["age"] > 0, evaluation.counts["bracket"] > 0
    columns = ["group", "faces"]
    columns += ["MAE", "95 % interval", "bias", "90 % coverage", "width"] if exact else []
    columns += ["in bracket", "95 % interval"] if brackets else []
    columns += ["accuracy", "95 % interval"]
    parts = [
        [[name, *[""] * (len(columns) - 1)], *(_list_group_cells(group, exact, brackets) for group in members)]
        for name, members in itertools.groupby(groups, lambda group: group.column)
    ]
    return make_sectioned_table("by group (* fewer than 30 faces)", columns, parts)


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
    evaluation, tables, figures = result.evaluation, {result.name: result.predictions}, []
    if evaluation.counts["age"]:
        figures += [
            Figure(
                "Estimated against true age",
                "Hexagons count faces; stronger ones contain more. Estimates on the line are correct.",
                encode_panels(draw_scatter(tables)),
            ),
            Figure(
                "Error by age",
                "Mean absolute error by true and by estimated age, on the same scale, with 95 % confidence intervals.",
                encode_panels(draw_bands(evaluation, "mae")),
            ),
            Figure(
                "Bias by age",
                "Mean of estimate − true age, on the same scale, with 95 % confidence intervals; above 0, ages are "
                "overestimated.",
                encode_panels(draw_bands(evaluation, "bias")),
            ),
            Figure(
                "Coverage by age",
                f"Share of ages inside the {100 * COVERAGE:.0f} % intervals; 95 % confidence intervals (Wilson's).",
                encode_panels(draw_bands(evaluation, "coverage")),
            ),
        ]
    if evaluation.counts["gender"]:
        caption = (
            "On the line, a share x of the faces with P(female) = x is labelled female. Larger dots are more faces."
        )
        figures.append(Figure("Calibration of gender", caption, encode_panels(draw_calibration(tables))))
    return figures


def draw_bands(evaluation: Evaluation, name: str) -> list[Any]:
    """Draw a metric (a key of ``_BAND_AXES``) by true and by estimated age, with the interval of each age band.

    Both panels have the same scale, so that their heights can be compared.
    """
    panels = [make_panel() for _ in _AGE_BANDS]
    for (_, axis), (column, title) in zip(panels, _AGE_BANDS.items(), strict=True):
        groups = [group for group in evaluation.groups if group.column == column]
        _draw_band_axis(axis, [group for group in groups if not np.isnan(_pick_metric(group, name).value)], name)
        axis.set_title(f"by {title}")
        axis.set_xlabel(f"{title} (years)")
    limits = [axis.get_ylim() for _, axis in panels]
    low = 0.0 if name == "mae" else min(low for low, _ in limits)
    for _, axis in panels:
        axis.set_ylim(low, max(high for _, high in limits))
    return [figure for figure, _ in panels]


def _draw_band_axis(axis: Any, groups: list[GroupMetrics], name: str) -> None:
    """Draw a metric of groups with its intervals."""
    metrics = [_pick_metric(group, name) for group in groups]
    values, lows, highs = (np.array([getattr(metric, part) for metric in metrics]) for part in ("value", "low", "high"))
    # Rounding can put a share of 0 or 1 just outside Wilson's interval.
    lengths = np.array([values - lows, highs - values]).clip(min=0)
    places = np.arange(len(groups))
    axis.errorbar(places, values, yerr=lengths, fmt="o", color=COLORS[0], capsize=3)
    axis.set_xticks(places, [group.value for group in groups], rotation=45)
    axis.set_ylabel(_BAND_AXES[name][0])
    if (target := _BAND_AXES[name][1]) is not None:
        axis.axhline(target, color=SOFT, linewidth=1)


def _pick_metric(group: GroupMetrics, name: str) -> Metric:
    metric: Metric = getattr(group.interval if name == "coverage" else group.age, name)
    return metric
