"""The tables of an evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from agegen.render.formats import METRIC_TITLES, format_bounds, format_value
from agegen.render.tables import PlainTable

if TYPE_CHECKING:
    from agegen.evaluate.evaluation import Evaluation, GroupMetrics
    from agegen.evaluate.metrics import AnyMetrics, Metric


def make_metrics_table(evaluation: Evaluation, title: str) -> PlainTable:
    """Return the overall metrics with their intervals beside the trivial baseline."""
    age = _list_rows("age", [evaluation.age, evaluation.interval], evaluation.baseline[0])
    gender = _list_rows("gender", [evaluation.gender, evaluation.confident], evaluation.baseline[1])
    columns = ["", "metric", "value", "95 % interval", "baseline"]
    return PlainTable(title, columns, age + gender, left=2, sections=frozenset({len(age) - 1}))


def make_groups_table(evaluation: Evaluation) -> PlainTable:
    """Return MAE, the age intervals and accuracy by group; groups of fewer than 30 faces are marked."""
    groups = evaluation.groups
    starts = [index for index, group in enumerate(groups) if not index or groups[index - 1].column != group.column]
    rows = [[group.column if index in starts else "", *_list_cells(group)] for index, group in enumerate(groups)]
    columns = ["group", "value", "faces", "MAE", "95 % interval", "90 % covers", "width", "accuracy", "95 % interval"]
    ends = frozenset(start - 1 for start in starts[1:])
    return PlainTable("by group (* fewer than 30 faces)", columns, rows, left=2, sections=ends)


def format_interval(name: str, metric: Metric) -> str:
    """Return a metric's interval, low–high."""
    if math.isnan(metric.low):
        return "–"
    return format_bounds(name, metric.low, metric.high)


def _list_rows(label: str, measured: list[AnyMetrics], baseline: AnyMetrics) -> list[list[str]]:
    from agegen.evaluate.evaluation import list_metrics

    trivial = dict(list_metrics(baseline))
    rows: list[list[str]] = []
    for name, metric in (pair for metrics in measured for pair in list_metrics(metrics)):
        plain = format_value(name, trivial[name].value) if name in trivial else ""
        cells = [METRIC_TITLES[name], format_value(name, metric.value), format_interval(name, metric), plain]
        rows.append(["" if rows else label, *cells])
    return rows


def _list_cells(group: GroupMetrics) -> list[str]:
    return [
        group.value,
        f"{group.n:,}{'*' if group.small else ' '}",
        format_value("mae", group.age.mae.value),
        format_interval("mae", group.age.mae),
        format_value("coverage", group.interval.coverage.value),
        format_value("width", group.interval.width.value),
        format_value("accuracy", group.gender.accuracy.value),
        format_interval("accuracy", group.gender.accuracy),
    ]
