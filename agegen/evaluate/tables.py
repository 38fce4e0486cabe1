"""The tables of an evaluation."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from agegen.render.formats import METRIC_TITLES, format_bounds, format_value
from agegen.render.tables import PlainTable

if TYPE_CHECKING:
    from agegen.evaluate.bootstrap import Metric
    from agegen.evaluate.evaluation import Evaluation, GroupMetrics
    from agegen.evaluate.metrics import AnyMetrics


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
