"""Models × data sets: who is good on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agegen.data.labels import read_labels
from agegen.data.records import SOURCE_COLUMN
from agegen.evaluate.bootstrap import Metric
from agegen.evaluate.metrics import measure_age, measure_brackets, measure_gender, widen_brackets

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SourceCell:
    """A run on a data set: a metric with its interval; NaN where the set has no such labels."""

    name: str
    mae: Metric
    in_bracket: Metric
    accuracy: Metric


@dataclass(frozen=True)
class SourceRow:
    """A data set: its name, its faces, and each run on it."""

    source: str
    n: int
    cells: list[SourceCell]


def measure_sources(names: tuple[str, ...], tables: dict[str, pd.DataFrame]) -> list[SourceRow]:
    """Return a row per data set; none where the faces are of one set only."""
    first = tables[names[0]]
    if SOURCE_COLUMN not in first.columns:
        return []
    rows = []
    for source in first[SOURCE_COLUMN].unique():
        inside = (first[SOURCE_COLUMN] == source).to_numpy()
        rows.append(SourceRow(str(source), int(inside.sum()), [_measure(name, tables[name][inside]) for name in names]))
    return rows


def _measure(name: str, table: pd.DataFrame) -> SourceCell:
    labels = read_labels(table)
    age, p_female = (table[column].to_numpy(dtype=float) for column in ("estimated_age", "p_female"))
    low, high = labels.low.astype(float), labels.high.astype(float)
    exact, wide, known = labels.exact, labels.bracketed, labels.gendered
    return SourceCell(
        name,
        measure_age(age[exact], low[exact]).mae,
        measure_brackets(age[wide], widen_brackets(low[wide], high[wide])).in_bracket,
        measure_gender(p_female[known], np.asarray(labels.female[known] > 0.5)).accuracy,
    )
