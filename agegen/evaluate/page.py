"""The HTML report of an evaluation: one file with all its figures inside, readable without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from agegen.evaluate.evaluate import EvalResult
from agegen.evaluate.evaluation import Evaluation, GroupMetrics
from agegen.evaluate.tables import make_groups_table, make_metrics_table
from agegen.files import write_text
from agegen.model.calibration import COVERAGE
from agegen.render.figures import draw_calibration, draw_scatter
from agegen.render.galleries import show_worst_faces
from agegen.render.html import Figure, encode_figure, render_page
from agegen.render.plots import COLORS, make_figure

# Columns of groups by true and by estimated age, and how they are told apart.
_BANDS = {"age_band": "true age", "estimated_age": "estimated age"}


def write_eval_report(path: Path, result: EvalResult) -> None:
    """Write the report of an evaluation, whole or not at all."""
    write_text(path, render_html(result))


def render_html(result: EvalResult) -> str:
    """Return the report as one HTML document; the faces are shown where the data is at hand."""
    evaluation = result.evaluation
    return render_page(
        "eval.html.j2",
        result=result,
        looked_at=len(evaluation.groups),
        tables=[make_metrics_table(evaluation, "Metrics"), make_groups_table(evaluation)],
        figures=draw_figures(result),
        gallery=show_worst_faces(result.model, result.predictions, result.records),
    )


def draw_figures(result: EvalResult) -> list[Figure]:
    """Return what the labels allow: estimates against ages, errors and coverage by age, calibration of gender."""
    evaluation, tables, figures = result.evaluation, {result.model: result.predictions}, []
    if evaluation.counts["age"]:
        figures += [
            Figure(
                "Estimated against true age",
                "Each hexagon counts faces, darker for more; on the line the estimate is right.",
                encode_figure(draw_scatter(tables)),
                width=40,
            ),
            Figure(
                "Error by age",
                "Mean absolute error by true and by estimated age; bars hold 95 %.",
                encode_figure(draw_bands(evaluation, "mae")),
            ),
            Figure(
                "Coverage by age",
                f"How many ages the {COVERAGE:.0%} intervals hold; bars hold 95 % (Wilson's).",
                encode_figure(draw_bands(evaluation, "coverage")),
            ),
        ]
    if evaluation.counts["gender"]:
        caption = (
            "On the line, of the faces given P(female) = x a share x is labelled female. Larger dots are more faces."
        )
        figures.append(Figure("Calibration of gender", caption, encode_figure(draw_calibration(tables)), width=40))
    return figures


def draw_bands(evaluation: Evaluation, name: str) -> Any:
    """Draw a metric (``mae`` or ``coverage``) by true and by estimated age, each band with its interval."""
    figure, axes = make_figure(1, len(_BANDS), 11, 3.8)
    for axis, (column, title) in zip(axes[0], _BANDS.items(), strict=True):
        every = [group for group in evaluation.groups if group.column == column]
        groups = [group for group in every if not np.isnan(_pick(group, name)[0])]
        values, lows, highs = (np.array(part) for part in zip(*(_pick(group, name) for group in groups), strict=True))
        # Of a handful of faces there is no interval.
        spread = np.nan_to_num(np.array([values - lows, highs - values])).clip(min=0)
        places = np.arange(len(groups))
        axis.errorbar(places, values, yerr=spread, fmt="o", color=COLORS[0], capsize=3)
        axis.set_xticks(places, [group.value for group in groups], rotation=45)
        axis.set_xlabel(f"{title} (years)")
        axis.set_ylabel("mean absolute error (years)" if name == "mae" else "share covered")
        if name == "coverage":
            axis.axhline(COVERAGE, color="#555", linewidth=1)
    return figure


def _pick(group: GroupMetrics, name: str) -> tuple[float, float, float]:
    metric = group.age.mae if name == "mae" else group.interval.coverage
    return metric.value, metric.low, metric.high
