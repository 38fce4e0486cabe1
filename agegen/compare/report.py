"""A comparison as tables for the terminal and as an HTML page."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from agegen.compare.compare import Comparison, join_words
from agegen.data.loading import load_sources
from agegen.errors import AgegenError, format_count
from agegen.evaluate.report import format_interval
from agegen.files import write_text
from agegen.render.figures import draw_calibration, draw_curves, draw_errors, draw_scatter
from agegen.render.html import Figure, Gallery, encode_panels, render_page, show_worst_faces
from agegen.render.tables import (
    METRIC_TITLES,
    PlainTable,
    format_size,
    format_value,
    make_sectioned_table,
    render_table,
)

if TYPE_CHECKING:
    from agegen.compare.costs import Cost
    from agegen.compare.differences import GroupDifference, MetricRow
    from agegen.evaluate.metrics import Metric

NO_DIFFERENCE = "no clear difference"
UNKNOWN = "–"
# Enough for a reader; JSON has all groups.
_GROUPS_SHOWN = 10
# Metrics whose differences are shown in percentage points.
_SHARES = ("in_bracket", "near_bracket", "cs3", "cs5", "cs10", "accuracy", "ece")


def render_comparison(comparison: Comparison) -> Group:
    """Return all tables and the verdict for the terminal."""
    tables = [render_table(table) for table in make_tables(comparison)]
    heading = Text(f"{format_count(comparison.n, 'face')} ({comparison.source})", style="bold")
    return Group(heading, *tables, Text(comparison.verdict))


def write_html_report(path: Path, comparison: Comparison) -> None:
    """Write the report of a comparison as one self-contained HTML page."""
    write_text(path, render_html(comparison))


def render_html(comparison: Comparison) -> str:
    """Return the report as an HTML document; faces are shown if the data is still available."""
    return render_page(
        "compare.html.j2",
        comparison=comparison,
        title=f"Comparison of {join_words(comparison.names)}",
        tables=make_tables(comparison),
        figures=draw_figures(comparison),
        galleries=show_galleries(comparison),
    )


def make_tables(comparison: Comparison) -> list[PlainTable]:
    """Return the tables: age, gender, cost, datasets, bias, and the groups with the clearest differences."""
    tables = [
        _make_metric_table("Table 1: age", comparison.names, comparison.age),
        _make_metric_table("Table 2: gender", comparison.names, comparison.gender),
        _make_cost_table(comparison),
    ]
    tables += [_make_source_table(comparison)] if comparison.sources else []
    tables += [_make_bias_table(comparison)] if comparison.biases else []
    return [*tables, _make_group_table(comparison)] if comparison.groups.rows else tables


def _make_metric_table(title: str, names: tuple[str, ...], rows: list[MetricRow]) -> PlainTable:
    """Return a column per model and a row per metric; of more than two models, a row per metric and model."""
    if len(names) > 2:
        return _make_long_table(title, names, rows)
    columns = ["metric", *(f"{name} (95 %)" for name in names), f"{names[1]} − {names[0]} (95 %)", "better"]
    cells = [
        [
            METRIC_TITLES[row.name],
            *(format_estimate(row.name, value) for value in row.values),
            format_difference(row.name, row.differences[0]),
            row.better[0] or NO_DIFFERENCE,
        ]
        for row in rows
    ]
    return PlainTable(title, columns, cells)


def _make_long_table(title: str, names: tuple[str, ...], rows: list[MetricRow]) -> PlainTable:
    columns = ["model", "value (95 %)", f"difference to {names[0]} (95 %)", "better"]
    parts = []
    for row in rows:
        shown = [format_difference(row.name, difference) for difference in row.differences]
        better = [name or NO_DIFFERENCE for name in row.better]
        part = zip(names, row.values, ["", *shown], ["", *better], strict=True)
        parts.append(
            [
                [METRIC_TITLES[row.name], "", "", ""],
                *([name, format_estimate(row.name, value), difference, best] for name, value, difference, best in part),
            ]
        )
    return make_sectioned_table(title, columns, parts)


def format_estimate(name: str, metric: Metric) -> str:
    """Return a metric with its interval in brackets, if it is defined."""
    value = format_value(name, metric.value)
    return value if math.isnan(metric.low) else f"{value} ({format_interval(name, metric)})"


def format_difference(name: str, metric: Metric) -> str:
    """Return a signed difference with its interval; for shares in percentage points."""
    factor, digits = (100, 1) if name in _SHARES else (1, 4 if name in ("roc_auc", "brier") else 2)
    value, low, high = (f"{number * factor:+.{digits}f}" for number in (metric.value, metric.low, metric.high))
    return f"{value} ({low} to {high})"


def _make_cost_table(comparison: Comparison) -> PlainTable:
    costs = comparison.costs
    rows = [
        ["parameters", *(f"{cost.parameters:,}" for cost in costs)],
        ["trained parameters", *(f"{cost.trainable:,}" for cost in costs)],
        ["checkpoint", *(format_size(cost.checkpoint_bytes) for cost in costs)],
        ["epochs until convergence", *(_format_converged(cost) for cost in costs)],
        ["minutes until convergence", *(_format_number(cost.settled_minutes, 1) for cost in costs)],
        ["minutes of training", *(_format_number(cost.minutes, 1) for cost in costs)],
        ["minutes for cached features, once", *(_format_number(cost.feature_minutes, 1) for cost in costs)],
        ["images/s, whole model, evaluation", *(_format_number(cost.images_per_second, 0) for cost in costs)],
    ]
    # How weights without a run were trained is not recorded.
    known = [row for row in rows if set(row[1:]) != {UNKNOWN}]
    return PlainTable("Table 3: cost", ["", *comparison.names], known)


def _format_converged(cost: Cost) -> str:
    return UNKNOWN if cost.epochs is None else f"{cost.settled_epoch} of {cost.epochs}"


def _format_number(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def _make_source_table(comparison: Comparison) -> PlainTable:
    columns = ["model", "MAE in years (95 %)", "in the bracket (95 %)", "accuracy (95 %)"]
    parts = []
    for row in comparison.sources:
        part = [[f"{row.source}, {format_count(row.n, 'face')}", "", "", ""]]
        for cell in row.cells:
            shown = (("mae", cell.mae), ("in_bracket", cell.in_bracket), ("accuracy", cell.accuracy))
            part.append([cell.name, *(format_estimate(name, metric) for name, metric in shown)])
        parts.append(part)
    return make_sectioned_table("Table 4: by dataset", columns, parts)


def _make_bias_table(comparison: Comparison) -> PlainTable:
    columns = ["true age", "faces", *(f"{name} (95 %)" for name in comparison.names)]
    rows = [
        [row.band, f"{row.n:,}", *(format_estimate("bias", value) for value in row.values)] for row in comparison.biases
    ]
    caption = "Mean of estimate − true age; above 0, ages are overestimated."
    return PlainTable("Bias by true age (years)", columns, rows, caption=caption)


def _make_group_table(comparison: Comparison) -> PlainTable:
    """Return the clearest differences of each later model to the first one, under a heading if there are several."""
    first, *others = comparison.names
    columns = ["group", "metric", "faces", first, "other" if others[1:] else others[0], "difference (95 %)", "better"]
    parts = []
    for name in others:
        shown = [group for group in comparison.groups.rows if group.model == name][:_GROUPS_SHOWN]
        parts.append(
            [[f"{name} − {first}", *[""] * (len(columns) - 1)], *(_list_group_cells(group) for group in shown)]
        )
    count = comparison.groups.count
    title = f"By group: the {len(parts[0]) - 1} clearest of {count // len(others)} differences"
    caption = f"The intervals hold simultaneously, at 95 % for all {count} differences together."
    if not others[1:]:
        return PlainTable(title, columns, parts[0][1:], left=2, caption=caption)
    return replace(make_sectioned_table(f"{title} of each model", columns, parts, left=2), caption=caption)


def _list_group_cells(group: GroupDifference) -> list[str]:
    return [
        f"{group.column}: {group.value}",
        METRIC_TITLES[group.metric],
        f"{group.n:,}",
        format_value(group.metric, group.first),
        format_value(group.metric, group.second),
        format_difference(group.metric, group.difference),
        group.better or NO_DIFFERENCE,
    ]


def draw_figures(comparison: Comparison) -> list[Figure]:
    """Return the learning curves, estimates against labels, errors by age, and calibration."""
    tables = comparison.predictions
    return [
        _draw_curves(comparison),
        Figure(
            "Estimated against true age",
            "Hexagons count faces; stronger ones contain more. Estimates on the line are correct.",
            encode_panels(draw_scatter(tables)),
        ),
        Figure("Error by age", "Mean absolute error by true age.", encode_panels(draw_errors(tables, signed=False))),
        Figure(
            "Bias by age",
            "Mean of estimate − true age, by true age; above 0, ages are overestimated.",
            encode_panels(draw_errors(tables, signed=True)),
        ),
        Figure(
            "Calibration of gender",
            "On the line, a share x of the faces with P(female) = x is labelled female. Larger dots are more faces.",
            encode_panels(draw_calibration(tables)),
        ),
    ]


def _draw_curves(comparison: Comparison) -> Figure:
    """Return the learning curves of all models that have some, and say which have none."""
    captions = []
    if comparison.curves:
        captions.append(
            "Validation loss, MAE and accuracy after each epoch, against epochs and against minutes; dotted: the "
            "training loss."
        )
    missing = comparison.missing_curves
    for reason in dict.fromkeys(missing.values()):
        names = [name for name, given in missing.items() if given == reason]
        captions.append(f"No curves of {join_words(names)}: {reason}.")
    curves = {name: comparison.curves.get(name) for name in comparison.names}
    panels = encode_panels(draw_curves(curves)) if comparison.curves else []
    return Figure("Learning curves", " ".join(captions), panels)


def show_galleries(comparison: Comparison) -> list[Gallery]:
    """Return for each model the faces with the largest age errors; none if the data cannot be read."""
    try:
        records = load_sources(comparison.data, comparison.reading)
    except AgegenError:
        return []
    shown = [show_worst_faces(name, table, records) for name, table in comparison.predictions.items()]
    return [gallery for gallery in shown if gallery.faces]
