"""Tables for terminals and pages, and numbers in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

METRIC_TITLES = {
    "mae": "MAE (years)",
    "rmse": "RMSE (years)",
    "cs3": "CS@3",
    "cs5": "CS@5",
    "cs10": "CS@10",
    "in_bracket": "in the bracket",
    "near_bracket": "in it or the next",
    "distance": "mean distance to it (years)",
    "coverage": "90 % interval covers",
    "width": "its mean width (years)",
    "accuracy": "accuracy",
    "roc_auc": "ROC-AUC",
    "ece": "calibration error",
    "brier": "Brier score",
    "named": "gender named",
    "named_accuracy": "accuracy where named",
}

# Kept as shares of 1, shown as per cent.
_SHARES = ("in_bracket", "near_bracket", "cs3", "cs5", "cs10", "accuracy", "ece", "coverage", "named", "named_accuracy")


def format_duration(seconds: float) -> str:
    """Return a duration in the two largest fitting units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_size(size: int) -> str:
    """Return a number of bytes in kB, MB or GB."""
    value: Any = float(size)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def format_bounds(name: str, low: float, high: float) -> str:
    """Return the bounds of a metric's interval, low–high, the unit once."""
    return f"{format_value(name, low).removesuffix(' %')}–{format_value(name, high)}"


def format_value(name: str, value: float | None) -> str:
    """Return a metric as people write it: shares as per cent, years with two digits."""
    if value is None or math.isnan(value):
        return "–"
    if name in _SHARES:
        return f"{value * 100:.1f} %"
    return f"{value:.4f}" if name in ("roc_auc", "brier") else f"{value:.2f}"


# Columns of words that stand among numbers.
_WORDS = ("better", "gender", "bundled weights, licence", "input", "frozen")


@dataclass(frozen=True)
class PlainTable:
    """A table as text.

    Attributes:
        title: above it; ``caption`` below.
        columns: names; the first ``left`` of them hold text, the rest numbers.
        rows: cells, as many as columns.
        sections: indices of rows under which a line is drawn.
        alarms: indices of rows that tell of something broken.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    left: int = 1
    caption: str = ""
    sections: frozenset[int] = field(default_factory=frozenset)
    alarms: frozenset[int] = field(default_factory=frozenset)

    def is_text(self, index: int) -> bool:
        """Return whether a column holds text rather than numbers."""
        return index < self.left or self.columns[index] in _WORDS


def render_table(plain: PlainTable) -> Table:
    """Return a table for the terminal."""
    table = Table(
        title=Text(plain.title) if plain.title else None,
        title_justify="left",
        caption=Text(plain.caption) if plain.caption else None,
        caption_justify="left",
    )
    for index, name in enumerate(plain.columns):
        # Names of files may be long; they get the room that numbers leave.
        table.add_column(Text(name), justify="left" if plain.is_text(index) else "right", overflow="fold")
    for index, row in enumerate(plain.rows):
        cells = (Text(cell.encode("utf-8", errors="replace").decode()) for cell in row)
        table.add_row(*cells, end_section=index in plain.sections, style="red" if index in plain.alarms else None)
    return table
