"""Figures, drawn with matplotlib and no display."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agegen.errors import AgegenError
from agegen.files import replace_atomically

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's palette: told apart with any colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_CURVES = (("val_loss", "loss"), ("val_mae", "age MAE (years)"), ("val_accuracy", "gender accuracy"))


def import_matplotlib() -> None:
    """Import matplotlib, its fonts' cache beside agegen's rather than in a folder of its own.

    Raises:
        AgegenError: it finds no place for that: neither this one nor a temporary folder can be written.
    """
    from platformdirs import user_cache_path

    os.environ.setdefault("MPLCONFIGDIR", str(user_cache_path("agegen") / "matplotlib"))
    # Where its folder can't be written it takes a temporary one, and says so to the user, who can do without.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib  # noqa: F401 - imported where its errors can be explained
    except OSError as error:
        raise AgegenError(
            "matplotlib finds no folder for its fonts' cache; set MPLCONFIGDIR or TMPDIR to one that can be written"
        ) from error


def make_figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """Return a figure without a display and its axes (rows, columns); sizes in inches."""
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
    """Write a figure to a path or stream; a name with a dollar sign in it is no formula."""
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
    """Write the learning curves of runs (name: table of epochs) as a picture."""
    with replace_atomically(path) as temporary:
        save_figure(draw_curves(epochs), temporary, dpi=110)
