"""The HTML report of a comparison: one file with all its figures inside, readable without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agegen.compare.compare import Comparison
from agegen.compare.tables import make_tables
from agegen.data.labels import format_gender
from agegen.data.loading import load_sources
from agegen.data.records import FaceRecords
from agegen.errors import AgegenError
from agegen.evaluate.bootstrap import Bools, Floats
from agegen.files import write_text
from agegen.render.html import Face, Figure, Gallery, encode_face, encode_figure, render_page
from agegen.render.plots import COLORS, draw_curves, make_figure

if TYPE_CHECKING:
    import pandas as pd

# Two rows of faces on a page.
FACES_SHOWN = 12


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
        records = load_sources(comparison.data, comparison.reading)
    except AgegenError:
        return []
    positions = {name: index for index, name in enumerate(records.frame["path"])}
    galleries = []
    for name, table in comparison.predictions.items():
        # Where no age is exact, this is empty: a bracket says too little of how far off an estimate is.
        error = (table["estimated_age"] - table["age"]).abs().dropna()
        worst = table.loc[error.sort_values(ascending=False, kind="stable").index[:FACES_SHOWN]]
        faces = [_show_face(records, positions, row) for row in worst.to_dict("records")]
        if shown := [face for face in faces if face is not None]:
            galleries.append(Gallery(name, shown))
    return galleries


def _show_face(records: FaceRecords, positions: dict[str, int], row: dict[Any, Any]) -> Face | None:
    uri = encode_face(records, positions.get(str(row["path"])))
    if uri is None:
        return None
    label = format_gender(float(row["female"]))
    estimate = f"estimated {row['estimated_age']:.0f}, P(female) {row['p_female']:.2f}"
    return Face(uri, f"{row['age']:.0f}", f"labelled {row['age']:.0f}, {label}; {estimate}")


def bin_calibration(p_female: Floats, female: Bools, bins: int = 10) -> list[tuple[float, float, int]]:
    """Return (mean P(female), share of females, count) of each filled bin of P(female)."""
    index = np.minimum((p_female * bins).astype(int), bins - 1)
    rows = []
    for bin_index in np.unique(index):
        inside = index == bin_index
        rows.append((float(p_female[inside].mean()), float(female[inside].mean()), int(inside.sum())))
    return rows


def draw_scatter(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw estimated against true age, a panel per table of predictions."""
    figure, axes = make_figure(1, len(tables), 5 * max(len(tables), 2), 4.6)
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        exact = table[table["age"].notna()]
        axis.hexbin(
            exact["age"],
            exact["estimated_age"],
            gridsize=48,
            extent=(0, 117, 0, 117),
            mincnt=1,
            bins="log",
            cmap="viridis_r",
        )
        axis.plot([0, 116], [0, 116], color="#555", linewidth=1)
        axis.set_title(name)
        axis.set_xlabel("true age (years)")
        axis.set_ylabel("estimated age (years)")
        axis.set_aspect("equal")
    return figure


def draw_errors(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw the mean absolute and the mean signed error by true age, in bands of ten years."""
    figure, axes = make_figure(1, 2, 11, 3.8)
    for color, (name, table) in zip(COLORS * 9, tables.items(), strict=False):
        error = table["estimated_age"] - table["age"]
        bands = (table["age"] // 10 * 10).clip(upper=90) + 5
        for axis, values in zip(axes[0], (error.abs(), error), strict=True):
            means = values.groupby(bands).mean()
            axis.plot(means.index, means.to_numpy(), color=color, marker="o", markersize=4, label=name)
    axes[0][1].axhline(0, color="#555", linewidth=1)
    for axis, title in zip(axes[0], ("mean absolute error (years)", "mean signed error (years)"), strict=True):
        axis.set_xlabel("true age (years; the last band is 90 and over)")
        axis.set_ylabel(title)
        axis.legend()
    return figure


def draw_calibration(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw the share of females against P(female), in ten bins."""
    figure, axes = make_figure(1, 1, 6.5, 4.8)
    axis = axes[0][0]
    axis.plot([0, 1], [0, 1], color="#555", linewidth=1)
    for color, (name, every) in zip(COLORS * 9, tables.items(), strict=False):
        table = every[every["female"].notna()]
        bins = bin_calibration(table["p_female"].to_numpy(dtype=float), table["female"].to_numpy(dtype=bool))
        predicted, observed, counts = zip(*bins, strict=True)
        sizes = [12 + 160 * count / len(table) for count in counts]
        axis.plot(predicted, observed, color=color, linewidth=1, alpha=0.7)
        axis.scatter(predicted, observed, s=sizes, color=color, label=name)
    axis.set_xlabel("P(female)")
    axis.set_ylabel("share labelled female")
    axis.legend()
    return figure
