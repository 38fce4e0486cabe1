"""Tables for the terminal and for HTML pages, and numbers formatted for people."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from dataclasses import dataclass, field, replace
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from agegen.errors import escape_controls

METRIC_TITLES = {
    "mae": "MAE (years)",
    "rmse": "RMSE (years)",
    "bias": "bias (years)",
    "cs3": "CS@3",
    "cs5": "CS@5",
    "cs10": "CS@10",
    "in_bracket": "in the bracket",
    "near_bracket": "in or next to the bracket",
    "distance": "distance to the bracket (years)",
    "coverage": "90 % interval coverage",
    "width": "90 % interval width (years)",
    "accuracy": "accuracy",
    "roc_auc": "ROC-AUC",
    "ece": "calibration error",
    "brier": "Brier score",
    "named": "above the gender threshold",
    "named_accuracy": "accuracy above the threshold",
}
# Metrics that are computed as shares of 1 and shown as percentages.
_SHARES = ("in_bracket", "near_bracket", "cs3", "cs5", "cs10", "accuracy", "ece", "coverage", "named", "named_accuracy")
# Metrics that are best at 0 and shown with their sign.
SIGNED = ("bias",)
# Columns of text to the right of columns of numbers.
_TEXT_COLUMNS = ("better", "gender", "bundled weights, licence", "input", "frozen", "problem")

# One word, or several that end like a file with a path: not a sentence, which wraps between its words.
_PATH = re.compile(r"\S+|[^:;]*/[^:;]*\.\w{1,5}(?:#\S*)?|[^/:;]+\.(?:jpe?g|png|webp|tiff?|bmp|gif|heic|avif|mp4|mov)")

# The narrowest column, in characters, to which paths are shortened.
_MIN_PATH = 24
# Wider than any table.
_UNLIMITED = 10_000


@dataclass(frozen=True)
class PlainTable:
    """A table as text.

    Attributes:
        title: shown above the table.
        columns: names; the first ``left`` columns hold text, the others numbers.
        rows: cells, one per column.
        left: see ``columns``.
        caption: shown below the table.
        sections: indices of rows that a line is drawn under.
        alarms: indices of rows that report a failure.
        headings: indices of rows that are the heading of those below them: their first cell has text, the others none.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    left: int = 1
    caption: str = ""
    sections: frozenset[int] = field(default_factory=frozenset)
    alarms: frozenset[int] = field(default_factory=frozenset)
    headings: frozenset[int] = field(default_factory=frozenset)

    def measure_width(self, wrap_names: bool) -> int:
        """Return the columns of a terminal in which no number has to be broken; text wraps between its words.

        ``wrap_names``: the names of columns of numbers may wrap, too.
        """
        widths = [self.measure_column(index) for index in range(len(self.columns))]
        if not wrap_names:
            names = [0 if self.is_text(index) else cell_len(name) for index, name in enumerate(self.columns)]
            widths = [max(pair) for pair in zip(widths, names, strict=True)]
        # Each column has a space on both sides and a line on its left; a last line ends the table.
        return sum(widths) + 3 * len(widths) + 1

    def measure_column(self, index: int) -> int:
        """Return the smallest width of a column: of its longest word or, of numbers, its longest cell."""
        measure = _measure_words if self.is_text(index) else cell_len
        return max(_measure_words(self.columns[index]), *(measure(row[index]) for row in self.rows), 1)

    def stack(self) -> PlainTable:
        """Return the table with two columns: the name and the value of each cell, row by row, for narrow terminals."""
        rows: list[list[str]] = []
        headings = set()
        section = ""
        for index, row in enumerate(self.rows):
            if index in self.headings:
                section = row[0]
                continue
            headings.add(len(rows))
            rows.append([": ".join(part for part in (section, row[0]) if part), ""])
            rows += [[name, cell] for name, cell in zip(self.columns[1:], row[1:], strict=True) if cell]
        return replace(
            self,
            columns=[self.columns[0], ""],
            rows=rows,
            left=2,
            sections=frozenset(start - 1 for start in headings if start),
            alarms=frozenset(),
            headings=frozenset(headings),
        )

    def is_text(self, index: int) -> bool:
        """Return whether a column holds text, which is aligned left, rather than numbers."""
        return index < self.left or self.columns[index] in _TEXT_COLUMNS


def make_sectioned_table(title: str, columns: list[str], parts: list[list[list[str]]], left: int = 1) -> PlainTable:
    """Return a table of parts, lists of rows, the first row of each of which is its heading."""
    starts = list(itertools.accumulate((len(part) for part in parts), initial=0))[:-1]
    return PlainTable(
        title,
        columns,
        [row for part in parts for row in part],
        left=left,
        sections=frozenset(start - 1 for start in starts[1:]),
        headings=frozenset(starts),
    )


@dataclass(frozen=True)
class _FittedTable:
    """A table whose rows become lists where the terminal is too narrow for its numbers."""

    plain: PlainTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = _make_table(self.plain)
        # Measured without a limit: rich would return the width of the terminal at most.
        if Measurement.get(console, options.update(width=_UNLIMITED), whole).maximum <= options.max_width:
            yield whole
        elif fitting := [wrap for wrap in (False, True) if self.plain.measure_width(wrap) <= options.max_width]:
            yield _make_table(self.plain, narrow=True, wrap_names=fitting[0])
        else:
            yield self._make_list(options.max_width)

    def _make_list(self, width: int) -> Table:
        """Return the stacked table, at most ``width`` characters wide; the names give way to the numbers."""
        plain = self.plain
        numbers = [cell_len(row[i]) for row in plain.rows for i in range(len(row)) if not plain.is_text(i)]
        # Four characters of a name are the least, and the lines and spaces between two columns take seven.
        least = max(1, min(max(numbers, default=1), width - 11))
        table = _make_table(plain.stack())
        table.columns[0].max_width, table.columns[1].min_width = max(4, width - 7 - least), least
        return table


def render_table(plain: PlainTable) -> _FittedTable:
    """Return a table for the terminal; it never breaks a number over two lines."""
    return _FittedTable(plain)


def _make_table(plain: PlainTable, narrow: bool = False, wrap_names: bool = False) -> Table:
    """``narrow``: let only columns of text shrink; ``wrap_names``: wrap the names of columns of numbers."""
    table = Table(
        title=_make_text(plain.title) if plain.title else None,
        title_justify="left",
        caption=_make_text(plain.caption) if plain.caption else None,
        caption_justify="left",
    )
    for index, name in enumerate(plain.columns):
        text = plain.is_text(index)
        if wrap_names and not text:
            name = "\n".join(textwrap.wrap(name, plain.measure_column(index), break_on_hyphens=False))
        # Long words wrap instead of being cut off, numbers stay whole.
        no_wrap = narrow and not text
        table.add_column(_make_text(name), justify="left" if text else "right", overflow="fold", no_wrap=no_wrap)
    for index, row in enumerate(plain.rows):
        cells = (_make_cell(cell) for cell in row)
        style = "red" if index in plain.alarms else "bold" if index in plain.headings else None
        table.add_row(*cells, end_section=index in plain.sections, style=style)
    return table


def _measure_words(text: str) -> int:
    """Return the width of the longest word; longer ones than the narrowest path may be folded."""
    return min(max((cell_len(word) for word in text.split()), default=0), _MIN_PATH)


def _make_text(content: str) -> Text:
    """Return text for the terminal, with control characters as escapes; cells may have several lines."""
    return Text(escape_controls(content.encode("utf-8", errors="replace").decode(), keep="\n"))


@dataclass(frozen=True)
class _PathCell:
    """A path that is shortened in the middle to the width of its column, instead of breaking over two lines."""

    path: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = cell_len(self.path)
        return Measurement(min(width, _MIN_PATH), width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shorten_path(self.path, options.max_width), no_wrap=True, overflow="ellipsis", justify="left")


def _make_cell(content: str) -> Text | _PathCell:
    text = _make_text(content)
    return _PathCell(text.plain) if len(content) > _MIN_PATH and _PATH.fullmatch(text.plain) else text


def shorten_path(path: str, most: int) -> str:
    """Return a path of at most ``most`` characters, the middle cut out: the end tells the files of a folder apart."""
    head = most // 3
    return path if len(path) <= most else f"{path[:head]}…{path[len(path) - (most - head - 1) :]}"


def format_value(name: str, value: float | None) -> str:
    """Return a metric as text: shares as percentages, years with two digits, a dash for NaN and None."""
    if value is None or math.isnan(value):
        return "–"
    if name in _SHARES:
        return f"{value * 100:.1f} %"
    if name in SIGNED:
        return f"{value:+.2f}"
    return f"{value:.4f}" if name in ("roc_auc", "brier") else f"{value:.2f}"


def format_bounds(name: str, low: float, high: float) -> str:
    """Return the bounds of a metric's interval as low–high, with one unit for both."""
    between = " to " if name in SIGNED else "–"
    return f"{format_value(name, low).removesuffix(' %')}{between}{format_value(name, high)}"


def format_duration(seconds: float) -> str:
    """Return a duration in seconds, in minutes and seconds, or in hours and minutes."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_size(size: int) -> str:
    """Return a number of bytes as bytes, kB, MB or GB."""
    value: Any = float(size)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
