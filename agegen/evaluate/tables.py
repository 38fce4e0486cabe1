"""The tables of an evaluation for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from agegen.render.formats import METRIC_TITLES, format_bounds, format_value

if TYPE_CHECKING:
    from agegen.evaluate.evaluation import Evaluation
    from agegen.evaluate.metrics import AnyMetrics, Metric


def make_metrics_table(evaluation: Evaluation, title: str) -> Table:
    """Return the overall metrics with their intervals beside the trivial baseline."""
    from agegen.evaluate.evaluation import list_metrics

    table = Table(title=Text(title), title_justify="left")
    for name in ("", "metric", "value", "95 % interval", "baseline"):
        table.add_column(name, justify="right" if name in ("value", "baseline") else "left", no_wrap=True)
    parts: list[tuple[str, list[AnyMetrics], AnyMetrics]] = [
        ("age", [evaluation.age, evaluation.interval], evaluation.baseline[0]),
        ("gender", [evaluation.gender, evaluation.confident], evaluation.baseline[1]),
    ]
    for label, measured, baseline in parts:
        trivial = dict(list_metrics(baseline))
        for name, metric in (pair for metrics in measured for pair in list_metrics(metrics)):
            row = (METRIC_TITLES[name], format_value(name, metric.value), format_interval(name, metric))
            table.add_row(label, *row, format_value(name, trivial[name].value) if name in trivial else "")
            label = ""
        table.add_section()
    return table


def make_groups_table(evaluation: Evaluation) -> Table:
    """Return MAE, the age intervals and accuracy by group; groups of fewer than 30 faces are marked."""
    table = Table(title="by group (* fewer than 30 faces)", title_justify="left")
    for name, justify in (("group", "left"), ("value", "left"), ("faces", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name in ("MAE", "95 % interval", "90 % covers", "width", "accuracy", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    column = ""
    for group in evaluation.groups:
        if column and column != group.column:
            table.add_section()
        table.add_row(
            group.column if column != group.column else "",
            group.value,
            f"{group.n:,}{'*' if group.small else ' '}",
            format_value("mae", group.age.mae.value),
            format_interval("mae", group.age.mae),
            format_value("coverage", group.interval.coverage.value),
            format_value("width", group.interval.width.value),
            format_value("accuracy", group.gender.accuracy.value),
            format_interval("accuracy", group.gender.accuracy),
        )
        column = group.column
    return table


def format_interval(name: str, metric: Metric) -> str:
    """Return a metric's interval, low–high."""
    if math.isnan(metric.low):
        return "–"
    return format_bounds(name, metric.low, metric.high)
