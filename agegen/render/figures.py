"""Matplotlib figures of reports: learning curves, scatter plots, errors by age, calibration.

A figure of a page is one or several panels, each a matplotlib figure. The page places them side by side or, in a narrow
window, one below the other. :func:`render_svg` makes them adapt to light and dark pages.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agegen.errors import AgegenError
from agegen.files import find_cache_folder, replace_atomically

if TYPE_CHECKING:
    import pandas as pd

# The palette of Okabe and Ito, which colour-blind readers can distinguish; the last three are darker than theirs, which
# have a contrast below 3:1 on white.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b0568c", "#a87700", "#6b6b6b")
# The same hues with a contrast of at least 5:1 on the dark page.
DARK_COLORS = ("#56b4e9", "#f28c4b", "#2fc69a", "#e3a1c8", "#e8bc4a", "#b8b8b8")
# Of lines that are not data.
SOFT = "#777777"
# Inches and points: of a window 400 pixels wide, letters are then 9 pixels high, and 14 where two panels fit side by
# side.
PANEL_WIDTH, PANEL_HEIGHT, _FONT_SIZE = 4.4, 3.2, 9
# Inches, of panels that have no neighbour.
WIDE_PANEL = 6.4
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
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": _FONT_SIZE, "axes.titlesize": _FONT_SIZE + 1}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def make_panel(width: float = PANEL_WIDTH, height: float = PANEL_HEIGHT) -> tuple[Any, Any]:
    """Return a panel of a page's figure and its axis; sizes in inches."""
    figure, axes = make_figure(1, 1, width, height)
    return figure, axes[0][0]


def save_figure(figure: Any, target: Any, **options: Any) -> None:
    """Write a figure to a path or stream; dollar signs in names are not parsed as formulas."""
    import matplotlib
    from matplotlib.text import Text

    with matplotlib.rc_context({"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "agegen"}):
        for text in figure.findobj(Text):
            text.set_parse_math(False)
        figure.savefig(target, **options)


def render_svg(figure: Any) -> str:
    """Return a figure as an SVG element for an HTML page, whose colours follow the page's light or dark scheme.

    The page must define the variables ``--soft``, ``--card`` and ``--series-0`` …; text has the page's own colour.
    """
    stream = io.StringIO()
    save_figure(figure, stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # The page gives the size; the view box keeps the proportions.
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    # Identifiers of groups repeat in each figure, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    variables = {color: f"var(--series-{index})" for index, color in enumerate(COLORS)}
    variables |= {"#000000": "currentColor", SOFT: "var(--soft)", "#ffffff": "var(--card)", "#cccccc": "var(--line)"}
    return re.sub("|".join(variables), lambda found: variables[found.group()], svg)


def plot_curves(path: Path, epochs: dict[str, pd.DataFrame]) -> None:
    """Write the learning curves of runs (name: table of epochs) as an image: by epoch above, by minute below."""
    figure, axes = make_figure(2, 3, 11, 6)
    _draw_curves(axes.T.ravel(), epochs)
    with replace_atomically(path) as temporary:
        save_figure(figure, temporary, dpi=110)


def draw_curves(epochs: Mapping[str, pd.DataFrame | None]) -> list[Any]:
    """Draw the loss of each run against epochs and against minutes, then MAE, then accuracy: six panels.

    None stands for a model without curves, which keeps its colour: all figures of a page use the same ones.
    """
    panels = [make_panel() for _ in range(2 * len(_CURVES))]
    _draw_curves([axis for _, axis in panels], epochs)
    return [figure for figure, _ in panels]


def _draw_curves(axes: Sequence[Any], epochs: Mapping[str, pd.DataFrame | None]) -> None:
    """Draw on six axes: loss against epochs and against minutes, then MAE, then accuracy."""
    for index, axis in enumerate(axes):
        (column, title), by_epoch = _CURVES[index // 2], index % 2 == 0
        for color, (name, table) in zip(COLORS * 9, epochs.items(), strict=False):
            if table is None:
                continue
            times = table["epoch"] if by_epoch else table["seconds"] / 60
            axis.plot(times, table[column], color=color, label=name, marker="o", markersize=2.5)
            if column == "val_loss":
                axis.plot(times, table["train_loss"], color=color, linestyle=":", label=f"{name}, training")
        axis.set_xlabel("epoch" if by_epoch else "minutes")
        axis.set_ylabel(title)
        if by_epoch:
            axis.xaxis.get_major_locator().set_params(integer=True)
        if column == "val_loss" or len(epochs) > 1:
            _add_legend(axis)


def _add_legend(axis: Any) -> None:
    axis.legend(fontsize=_FONT_SIZE - 1, frameon=False)


def draw_scatter(tables: dict[str, pd.DataFrame]) -> list[Any]:
    """Draw estimated against true age, one panel per table of predictions."""
    import_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    # Of one hue, from faint to opaque: more faces stand out on light and dark pages alike.
    colors = LinearSegmentedColormap.from_list("faces", [(*_parse_color(COLORS[0]), alpha) for alpha in (0.25, 1.0)])
    panels = []
    for name, table in tables.items():
        figure, axis = make_panel(PANEL_WIDTH, PANEL_WIDTH)
        exact = table[table["age"].notna()]
        axis.hexbin(
            exact["age"],
            exact["estimated_age"],
            gridsize=40,
            extent=(0, 117, 0, 117),
            mincnt=1,
            bins="log",
            cmap=colors,
            linewidths=0,
        )
        axis.plot([0, 116], [0, 116], color=SOFT, linewidth=1)
        axis.set_title(name)
        axis.set_xlabel("true age (years)")
        axis.set_ylabel("estimated age (years)")
        axis.set_aspect("equal")
        panels.append(figure)
    return panels


def _parse_color(color: str) -> tuple[float, ...]:
    return tuple(int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))


def draw_errors(tables: dict[str, pd.DataFrame], signed: bool) -> list[Any]:
    """Draw the mean absolute error, or the mean signed error, by true age in bands of ten years."""
    figure, axis = make_panel()
    for color, (name, table) in zip(COLORS * 9, tables.items(), strict=False):
        error = table["estimated_age"] - table["age"]
        bands = (table["age"] // 10 * 10).clip(upper=90) + 5
        means = (error if signed else error.abs()).groupby(bands).mean()
        axis.plot(means.index, means.to_numpy(), color=color, marker="o", markersize=4, label=name)
    if signed:
        axis.axhline(0, color=SOFT, linewidth=1)
    else:
        axis.set_ylim(bottom=0)
    axis.set_xlabel("true age (years; the last band is 90 and over)")
    axis.set_ylabel("mean signed error (years)" if signed else "mean absolute error (years)")
    _add_legend(axis)
    return [figure]


def draw_calibration(tables: dict[str, pd.DataFrame]) -> list[Any]:
    """Draw the share of females against P(female), in ten bins."""
    figure, axis = make_panel(PANEL_WIDTH, PANEL_WIDTH * 0.85)
    axis.plot([0, 1], [0, 1], color=SOFT, linewidth=1)
    for color, (name, every) in zip(COLORS * 9, tables.items(), strict=False):
        table = every[every["female"].notna()]
        bins = bin_calibration(table["p_female"].to_numpy(dtype=float), table["female"].to_numpy(dtype=bool))
        predicted, observed, counts = zip(*bins, strict=True)
        sizes = [12 + 160 * count / len(table) for count in counts]
        axis.plot(predicted, observed, color=color, linewidth=1, alpha=0.7)
        axis.scatter(predicted, observed, s=sizes, color=color, label=name)
    axis.set_xlabel("P(female)")
    axis.set_ylabel("share labelled female")
    _add_legend(axis)
    return [figure]


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
