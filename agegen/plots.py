"""Figures, drawn with matplotlib and no display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.files import replace_atomically
from agegen.specs import AGE_CLASSES

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's palette: told apart with any colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_CURVES = (("val_loss", "loss"), ("val_mae", "age MAE (years)"), ("val_accuracy", "gender accuracy"))


def make_figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """Return a figure without a display and its axes (rows, columns); sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_curves(epochs: dict[str, pd.DataFrame]) -> Any:
    """Draw loss, MAE and accuracy of each run against epochs (above) and minutes (below)."""
    figure, axes = make_figure(2, 3, 11, 6)
    for color, (name, table) in zip(COLORS * 9, epochs.items(), strict=False):
        for row, times in enumerate((table["epoch"], table["seconds"] / 60)):
            for axis, (column, _) in zip(axes[row], _CURVES, strict=True):
                axis.plot(times, table[column], color=color, label=name, marker="o", markersize=2.5)
            axes[row][0].plot(times, table["train_loss"], color=color, linestyle=":", label=f"{name}, training")
    for row, unit in enumerate(("epoch", "minutes")):
        for axis, (_, title) in zip(axes[row], _CURVES, strict=True):
            axis.set_xlabel(unit)
            axis.set_ylabel(title)
    for axis in axes[0]:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].legend(fontsize=8)
    return figure


def plot_curves(path: Path, epochs: dict[str, pd.DataFrame]) -> None:
    """Write the learning curves of runs (name: table of epochs) as a picture."""
    with replace_atomically(path) as temporary:
        draw_curves(epochs).savefig(temporary, dpi=110)


def draw_scatter(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw estimated against true age, a panel per table of predictions."""
    figure, axes = make_figure(1, len(tables), 5 * max(len(tables), 2), 4.6)
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        axis.hexbin(
            table["age"],
            table["estimated_age"],
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
    from agegen.metrics import bin_calibration

    figure, axes = make_figure(1, 1, 6.5, 4.8)
    axis = axes[0][0]
    axis.plot([0, 1], [0, 1], color="#555", linewidth=1)
    for color, (name, table) in zip(COLORS * 9, tables.items(), strict=False):
        bins = bin_calibration(table["p_female"].to_numpy(dtype=float), table["female"].to_numpy(dtype=bool))
        predicted, observed, counts = zip(*bins, strict=True)
        sizes = [12 + 160 * count / len(table) for count in counts]
        axis.plot(predicted, observed, color=color, linewidth=1, alpha=0.7)
        axis.scatter(predicted, observed, s=sizes, color=color, label=name)
    axis.set_xlabel("P(female)")
    axis.set_ylabel("share labelled female")
    axis.legend()
    return figure


def draw_ages(frame: pd.DataFrame, heaped: list[int]) -> Any:
    """Draw how many faces each year of age has, by gender (columns age, female); heaped ages are marked."""
    figure, axes = make_figure(1, 1, 11, 3.6)
    axis = axes[0][0]
    years = range(AGE_CLASSES)
    below = [0] * AGE_CLASSES
    for color, (female, label) in zip(COLORS, ((False, "male"), (True, "female")), strict=False):
        found = frame.loc[frame["female"] == female, "age"].astype(int).value_counts()
        counts = [int(found.get(year, 0)) for year in years]
        axis.bar(years, counts, bottom=below, width=1.0, color=color, label=label)
        below = [low + count for low, count in zip(below, counts, strict=True)]
    for age in heaped:
        axis.annotate(str(age), (age, below[age]), ha="center", va="bottom", fontsize=8)
    axis.set_xlabel("age (years); numbered: heaped")
    axis.set_ylabel("faces")
    axis.legend(fontsize=8)
    return figure


def draw_groups(counts: list[tuple[str, int]]) -> Any:
    """Draw how many faces each group has, as bars from above: (name, faces)."""
    figure, axes = make_figure(1, 1, 7, 0.8 + 0.26 * len(counts))
    axis = axes[0][0]
    names, values = zip(*reversed(counts), strict=True)
    axis.barh(names, values, color=COLORS[0])
    for row, value in enumerate(values):
        axis.annotate(f" {value:,}", (value, row), va="center", fontsize=8)
    axis.set_xlabel("faces")
    axis.margins(x=0.12, y=0.01)
    return figure
