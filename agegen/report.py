"""What the terminal shows: tables of results, and the live display of a training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from agegen.metric_names import METRIC_TITLES, format_bounds, format_value

if TYPE_CHECKING:
    from agegen.cache_dir import CacheEntry
    from agegen.catalog import ModelDescription
    from agegen.evaluation import Evaluation
    from agegen.metrics import AnyMetrics, Metric


def make_metrics_table(evaluation: Evaluation, title: str) -> Table:
    """Return the overall metrics with their intervals beside the trivial baseline."""
    from agegen.evaluation import list_metrics

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


def make_models_table(models: list[ModelDescription]) -> Table:
    """Return one row per registered backbone, with the weights that ship for it and their licence."""
    table = Table(caption="agegen models --card NAME shows the card of shipped weights", caption_justify="left")
    for name in ("model", "distribution", "parameters", "trained", "input", "frozen"):
        table.add_column(name, justify="right" if name in ("parameters", "trained") else "left", no_wrap=True)
    table.add_column("weights that ship, their licence", overflow="fold")
    for model in models:
        source = f"{model.distribution} {model.version}"
        if model.problem:
            table.add_row(model.name, source, "", "", "", "", Text(model.problem, style="red"))
            continue
        size = f"{model.input_size}×{model.input_size}"
        counts = f"{model.parameters or 0:,}", f"{model.trainable or 0:,}"
        weights = "none" if model.weights is None else f"{format_size(model.weights_bytes or 0)}; {model.weights_terms}"
        table.add_row(model.name, source, *counts, size, "yes" if model.frozen else "no", Text(weights))
    return table


def make_cache_table(entries: list[CacheEntry]) -> Table:
    """Return one row per cached set of features."""
    table = Table()
    for name in ("key", "base", "faces", "views", "size"):
        table.add_column(name, justify="left" if name in ("key", "base") else "right", no_wrap=True)
    for entry in entries:
        table.add_row(entry.key, entry.identity, f"{entry.faces:,}", str(entry.views), format_size(entry.size))
    return table


def format_interval(name: str, metric: Metric) -> str:
    """Return a metric's interval, low–high."""
    if math.isnan(metric.low):
        return "–"
    return format_bounds(name, metric.low, metric.high)


def format_duration(seconds: float) -> str:
    """Return a duration in the two largest fitting units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_size(size: int) -> str:
    """Return a number of bytes in kB, MB or GB."""
    value: Any = float(size)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
