"""The HTML report of a comparison: one file with all its figures inside, readable without a network."""

from __future__ import annotations

from pathlib import Path

from agegen.compare.compare import Comparison
from agegen.compare.tables import make_tables
from agegen.data.loading import load_sources
from agegen.errors import AgegenError
from agegen.files import write_text
from agegen.render.figures import draw_calibration, draw_errors, draw_scatter
from agegen.render.galleries import show_worst_faces
from agegen.render.html import Figure, Gallery, encode_figure, render_page
from agegen.render.plots import draw_curves


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
