"""Figures, drawn with matplotlib and no display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.files import replace_atomically

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
