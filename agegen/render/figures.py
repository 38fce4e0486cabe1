"""Matplotlib figures of reports: learning curves, scatter plots, errors by age, calibration."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agegen.errors import AgegenError
from agegen.files import find_cache_folder, replace_atomically

if TYPE_CHECKING:
    import pandas as pd

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_CURVES = (("val_loss", "loss"), ("val_mae", "age MAE (years)"), ("val_accuracy", "gender accuracy"))


def import_matplotlib() -> None:
    """Import matplotlib, with its font cache in agegen's cache folder, or in a temporary one if there is none.

    Raises:
        AgegenError: neither that folder nor a temporary folder is writable.
    """
    if (folder := find_cache_folder()) is not None:
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
    # It warns if the folder is not writable and it uses a temporary one; that is of no interest to the user.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib  # noqa: F401 - only to report its errors
    except OSError as error:
        raise AgegenError(
            "matplotlib has no writable folder for its font cache. Set MPLCONFIGDIR or TMPDIR to a writable folder."
        ) from error


def make_figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """Return a figure that needs no display, and its axes (rows, columns); sizes in inches."""
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Any, target: Any, **options: Any) -> None:
    """Write a figure to a path or stream; dollar signs in names are not parsed as formulas."""
    import matplotlib
    from matplotlib.text import Text

    with matplotlib.rc_context({"text.parse_math": False}):
        for text in figure.findobj(Text):
            text.set_parse_math(False)
        figure.savefig(target, **options)


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
    """Write the learning curves of runs (name: table of epochs) as an image."""
    with replace_atomically(path) as temporary:
        save_figure(draw_curves(epochs), temporary, dpi=110)


def draw_scatter(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw estimated against true age, one panel per table of predictions."""
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
    """Draw the mean absolute error and the mean signed error by true age, in bands of ten years."""
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


def bin_calibration(
    p_female: NDArray[np.float64], female: NDArray[np.bool_], bins: int = 10
) -> list[tuple[float, float, int]]:
    """Return (mean P(female), share labelled female, count) of each non-empty bin of P(female)."""
    index = np.minimum((p_female * bins).astype(int), bins - 1)
    rows = []
    for bin_index in np.unique(index):
        inside = index == bin_index
        rows.append((float(p_female[inside].mean()), float(female[inside].mean()), int(inside.sum())))
    return rows
