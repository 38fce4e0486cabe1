"""The table of a study."""

from __future__ import annotations

from typing import Any

from agegen.render.formats import METRIC_TITLES, format_value
from agegen.render.tables import PlainTable

# What a study is about; the rest stands in its JSON.
_SHOWN = ("mae", "cs5", "in_bracket", "accuracy", "coverage", "width")


def make_study_table(summary: dict[str, Any], title: str) -> PlainTable:
    """Return a row for each training, and below them the mean and the standard deviation between trainings."""
    names = [name for name in _SHOWN if name in summary["mean"]]
    rows = [
        [part["run"], f"{part['n']:,}", *(format_value(name, part["metrics"][name]) for name in names)]
        for part in summary["parts"]
    ]
    for label in ("mean", "spread"):
        rows.append([label, "", *(format_value(name, summary[label][name]) for name in names)])
    columns = ["", "faces", *(METRIC_TITLES[name] for name in names)]
    return PlainTable(title, columns, rows, sections=frozenset([len(rows) - 3]))
