"""The HTML report of a comparison: one file with all its figures inside, readable without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agegen import __version__
from agegen.compare_report import make_tables
from agegen.comparison import Comparison
from agegen.data.records import FaceRecords, load_records
from agegen.errors import AgegenError
from agegen.files import write_text
from agegen.html_parts import Face, Figure, Gallery, encode_face, encode_figure, render_page
from agegen.plots import draw_calibration, draw_curves, draw_errors, draw_scatter

FACES_SHOWN = 12


def write_html_report(path: Path, comparison: Comparison) -> None:
    """Write the report of a comparison, whole or not at all."""
    write_text(path, render_html(comparison))


def render_html(comparison: Comparison) -> str:
    """Return the report as one HTML document; the faces are shown where the data is still at hand."""
    return render_page(
        "compare.html.j2",
        version=__version__,
        names=comparison.names,
        comparison=comparison,
        tables=make_tables(comparison),
        figures=draw_figures(comparison),
        galleries=show_worst_faces(comparison),
    )


def draw_figures(comparison: Comparison) -> list[Figure]:
    """Return the learning curves, estimates against labels, errors by age, and calibration."""
    tables = comparison.predictions
    return [
        Figure(
            "Learning curves",
            "Validation loss, MAE and accuracy after each epoch, against epochs (above) and minutes (below).",
            encode_figure(draw_curves(comparison.curves)),
        ),
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


def show_worst_faces(comparison: Comparison) -> list[Gallery]:
    """Return each model's faces with the largest errors in age; none where the data can't be read."""
    try:
        records = load_records(comparison.data)
    except AgegenError:
        return []
    positions = {name: index for index, name in enumerate(records.frame["path"])}
    galleries = []
    for name, table in comparison.predictions.items():
        error = (table["estimated_age"] - table["age"]).abs()
        worst = table.loc[error.sort_values(ascending=False, kind="stable").index[:FACES_SHOWN]]
        faces = [_show_face(records, positions, row) for row in worst.to_dict("records")]
        if shown := [face for face in faces if face is not None]:
            galleries.append(Gallery(name, shown))
    return galleries


def _show_face(records: FaceRecords, positions: dict[str, int], row: dict[Any, Any]) -> Face | None:
    uri = encode_face(records, positions.get(str(row["path"])))
    if uri is None:
        return None
    label = "female" if row["female"] else "male"
    estimate = f"estimated {row['estimated_age']:.0f}, P(female) {row['p_female']:.2f}"
    return Face(uri, f"{row['age']:.0f}", f"labelled {row['age']:.0f}, {label}; {estimate}")
