"""A comparison as tables for the terminal and as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from agegen.compare.compare import Comparison
from agegen.data.loading import load_sources
from agegen.errors import AgegenError, format_count
from agegen.evaluate.report import format_interval
from agegen.files import write_text
from agegen.render.figures import draw_calibration, draw_curves, draw_errors, draw_scatter
from agegen.render.html import Figure, Gallery, encode_figure, render_page, show_worst_faces
from agegen.render.tables import METRIC_TITLES, PlainTable, format_size, format_value, render_table

if TYPE_CHECKING:
    from agegen.compare.costs import Cost
    from agegen.compare.differences import MetricRow
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
    columns = ["metric", *(part for name in names for part in (name, "95 %"))]
    for name in names[1:]:
        columns += [f"{name} − {names[0]} (95 %)", "better"]
    cells = []
    for row in rows:
        line = [METRIC_TITLES[row.name]]
        for value in row.values:
            line += [format_value(row.name, value.value), format_interval(row.name, value)]
        for difference, better in zip(row.differences, row.better, strict=True):
            line += [format_difference(row.name, difference), better or NO_DIFFERENCE]
        cells.append(line)
    return PlainTable(title, columns, cells)


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
    rows, ends = [], []
    for row in comparison.sources:
        for place, cell in enumerate(row.cells):
            shown = [cell.mae, cell.in_bracket, cell.accuracy]
            cells = []
            for name, metric in zip(("mae", "in_bracket", "accuracy"), shown, strict=True):
                cells += [format_value(name, metric.value), format_interval(name, metric)]
            rows.append([*((row.source, f"{row.n:,}") if not place else ("", "")), cell.name, *cells])
        ends.append(len(rows) - 1)
    columns = ["data", "faces", "model", "MAE (years)", "95 %", "in the bracket", "95 %", "accuracy", "95 %"]
    return PlainTable("Table 4: by dataset", columns, rows, left=3, sections=frozenset(ends[:-1]))


def _make_bias_table(comparison: Comparison) -> PlainTable:
    columns = ["true age", "faces", *(part for name in comparison.names for part in (name, "95 %"))]
    rows = []
    for row in comparison.biases:
        cells = [(format_value("bias", value.value), format_interval("bias", value)) for value in row.values]
        rows.append([row.band, f"{row.n:,}", *(part for cell in cells for part in cell)])
    caption = "Mean of estimate − true age; above 0, ages are overestimated."
    return PlainTable("Bias by true age (years)", columns, rows, caption=caption)


def _make_group_table(comparison: Comparison) -> PlainTable:
    first, second = comparison.names[:2]
    columns = ["group", "value", "metric", "faces", first, second, f"{second} − {first} (95 %)", "better"]
    rows = [
        [
            group.column,
            group.value,
            METRIC_TITLES[group.metric],
            f"{group.n:,}",
            format_value(group.metric, group.first),
            format_value(group.metric, group.second),
            format_difference(group.metric, group.difference),
            group.better or NO_DIFFERENCE,
        ]
        for group in comparison.groups.rows[:_GROUPS_SHOWN]
    ]
    count = comparison.groups.count
    title = f"By group: the {len(rows)} clearest of {count} differences"
    caption = f"The intervals hold simultaneously, at 95 % for all {count} differences together."
    return PlainTable(title, columns, rows, left=3, caption=caption)


def draw_figures(comparison: Comparison) -> list[Figure]:
    """Return the learning curves, estimates against labels, errors by age, and calibration."""
    tables = comparison.predictions
    return [
        *_draw_curves(comparison),
        Figure(
            "Estimated against true age",
            "Hexagons count faces; darker ones contain more. Estimates on the line are correct.",
            encode_figure(draw_scatter(tables)),
        ),
        Figure(
            "Error by age",
            "Left: mean absolute error by true age. Right: mean signed error; above 0, ages are overestimated.",
            encode_figure(draw_errors(tables)),
        ),
        Figure(
            "Calibration of gender",
            "On the line, a share x of the faces with P(female) = x is labelled female. Larger dots are more faces.",
            encode_figure(draw_calibration(tables)),
            width=40,
        ),
    ]


def _draw_curves(comparison: Comparison) -> list[Figure]:
    """Return the learning curves; none for weights without a run."""
    if not comparison.curves:
        return []
    caption = "Validation loss, MAE and accuracy after each epoch, against epochs (above) and minutes (below)."
    return [Figure("Learning curves", caption, encode_figure(draw_curves(comparison.curves)))]


def show_galleries(comparison: Comparison) -> list[Gallery]:
    """Return for each model the faces with the largest age errors; none if the data cannot be read."""
    try:
        records = load_sources(comparison.data, comparison.reading)
    except AgegenError:
        return []
    shown = [show_worst_faces(name, table, records) for name, table in comparison.predictions.items()]
    return [gallery for gallery in shown if gallery.faces]
