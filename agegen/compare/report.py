"""A comparison as tables for the terminal and as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from agegen.compare.compare import Comparison
from agegen.data.loading import load_sources
from agegen.errors import AgegenError
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
# More rows than this nobody reads; JSON holds them all.
_GROUPS_SHOWN = 10
_POINTS = ("in_bracket", "near_bracket", "cs3", "cs5", "cs10", "accuracy", "ece")


def make_tables(comparison: Comparison) -> list[PlainTable]:
    """Return the tables of a comparison: age, gender, cost, and the groups where the runs differ most."""
    tables = [
        _make_metric_table("Table 1: age", comparison.names, comparison.age),
        _make_metric_table("Table 2: gender", comparison.names, comparison.gender),
        _make_cost_table(comparison),
    ]
    tables += [_make_source_table(comparison)] if comparison.sources else []
    return [*tables, _make_group_table(comparison)] if comparison.groups.rows else tables


def render_comparison(comparison: Comparison) -> Group:
    """Return all tables and the verdict for the terminal."""
    tables = [render_table(table) for table in make_tables(comparison)]
    heading = Text(f"{comparison.n:,} faces ({comparison.source})", style="bold")
    return Group(heading, *tables, Text(comparison.verdict))


def format_difference(name: str, metric: Metric) -> str:
    """Return a signed difference with its interval; of shares in percentage points."""
    factor, digits = (100, 1) if name in _POINTS else (1, 4 if name in ("roc_auc", "brier") else 2)
    value, low, high = (f"{number * factor:+.{digits}f}" for number in (metric.value, metric.low, metric.high))
    return f"{value} ({low} to {high})"


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


def _make_cost_table(comparison: Comparison) -> PlainTable:
    costs = comparison.costs
    rows = [
        ["parameters", *(f"{cost.parameters:,}" for cost in costs)],
        ["of these trained", *(f"{cost.trainable:,}" for cost in costs)],
        ["checkpoint", *(format_size(cost.checkpoint_bytes) for cost in costs)],
        ["epochs until learning settled", *(_format_settled(cost) for cost in costs)],
        ["minutes until learning settled", *(_format_number(cost.settled_minutes, 1) for cost in costs)],
        ["minutes of this training", *(_format_number(cost.minutes, 1) for cost in costs)],
        ["minutes for cached features, once", *(_format_number(cost.feature_minutes, 1) for cost in costs)],
        ["images/s, whole model, evaluation", *(_format_number(cost.images_per_second, 0) for cost in costs)],
    ]
    # Of weights alone no record tells how they were trained.
    known = [row for row in rows if set(row[1:]) != {UNKNOWN}]
    return PlainTable("Table 3: cost", ["", *comparison.names], known)


def _format_settled(cost: Cost) -> str:
    return UNKNOWN if cost.epochs is None else f"{cost.settled_epoch} of {cost.epochs}"


def _format_number(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


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
    title = f"By group: the {len(rows)} clearest of {comparison.groups.looked_at} differences"
    caption = f"95 % for all {comparison.groups.looked_at} intervals together, not for each"
    return PlainTable(title, columns, rows, left=3, caption=caption)


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
    return PlainTable("Table 4: by data set", columns, rows, left=3, sections=frozenset(ends[:-1]))


def write_html_report(path: Path, comparison: Comparison) -> None:
    """Write the report of a comparison, whole or not at all."""
    write_text(path, render_html(comparison))


def render_html(comparison: Comparison) -> str:
    """Return the report as one HTML document; the faces are shown where the data is still at hand."""
    return render_page(
        "compare.html.j2",
        names=comparison.names,
        comparison=comparison,
        tables=make_tables(comparison),
        figures=draw_figures(comparison),
        galleries=show_galleries(comparison),
    )


def draw_figures(comparison: Comparison) -> list[Figure]:
    """Return the learning curves, estimates against labels, errors by age, and calibration."""
    tables = comparison.predictions
    return [
        *_draw_curves(comparison),
        Figure(
            "Estimated against true age",
            "Each hexagon counts faces, darker for more; on the line the estimate is right.",
            encode_figure(draw_scatter(tables)),
        ),
        Figure(
            "Error by age",
            "Left: mean absolute error by true age. Right: mean signed error; above 0 people are taken for older.",
            encode_figure(draw_errors(tables)),
        ),
        Figure(
            "Calibration of gender",
            "On the line, of the faces given P(female) = x a share x is labelled female. Larger dots are more faces.",
            encode_figure(draw_calibration(tables)),
            width=40,
        ),
    ]


def _draw_curves(comparison: Comparison) -> list[Figure]:
    """Return the learning curves of runs; weights alone have none."""
    if not comparison.curves:
        return []
    caption = "Validation loss, MAE and accuracy after each epoch, against epochs (above) and minutes (below)."
    return [Figure("Learning curves", caption, encode_figure(draw_curves(comparison.curves)))]


def show_galleries(comparison: Comparison) -> list[Gallery]:
    """Return each model's faces with the largest errors in age; none where the data can't be read."""
    try:
        records = load_sources(comparison.data, comparison.reading)
    except AgegenError:
        return []
    shown = [show_worst_faces(name, table, records) for name, table in comparison.predictions.items()]
    return [gallery for gallery in shown if gallery.faces]
