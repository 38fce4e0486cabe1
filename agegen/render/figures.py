"""Figures of estimates beside labels, for one table of predictions or several: what reports share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agegen.render.plots import COLORS, make_figure

if TYPE_CHECKING:
    import pandas as pd


def bin_calibration(
    p_female: NDArray[np.float64], female: NDArray[np.bool_], bins: int = 10
) -> list[tuple[float, float, int]]:
    """Return (mean P(female), share of females, count) of each filled bin of P(female)."""
    index = np.minimum((p_female * bins).astype(int), bins - 1)
    rows = []
    for bin_index in np.unique(index):
        inside = index == bin_index
        rows.append((float(p_female[inside].mean()), float(female[inside].mean()), int(inside.sum())))
    return rows


def draw_scatter(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw estimated against true age, a panel per table of predictions."""
    figure, axes = make_figure(1, len(tables), 5 * len(tables), 4.6)
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
