"""How models differ on the same faces: paired differences of each metric, overall and by group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import label_groups
from agegen.evaluate.estimates import ESTIMATE_COLUMNS
from agegen.evaluate.evaluation import list_metrics
from agegen.evaluate.metrics import (
    BOOTSTRAP_SAMPLES,
    AgeMetrics,
    Floats,
    GenderMetrics,
    Metric,
    Weights,
    compute_age_values,
    compute_gender_values,
    measure_age,
    measure_gender,
    resample,
    summarize_samples,
)

if TYPE_CHECKING:
    import pandas as pd

# Fewer faces than this say too little for a comparison.
LEAST_FACES = 30

LESS_IS_BETTER = ("mae", "rmse", "ece")

_RUN_COLUMNS = (*ESTIMATE_COLUMNS, "age", "female", "path", "sha256")


@dataclass(frozen=True)
class MetricRow:
    """One metric of each run, and the paired difference of each later run to the first.

    ``better`` names the better run for each difference, None where its interval covers 0.
    """

    name: str
    values: tuple[Metric, ...]
    differences: tuple[Metric, ...]
    better: tuple[str | None, ...]


@dataclass(frozen=True)
class GroupDifference:
    """Where two runs differ: a metric of the first and of the second run in a group of n faces."""

    column: str
    value: str
    n: int
    metric: str
    first: float
    second: float
    difference: Metric
    better: str | None


def measure_rows(names: tuple[str, ...], tables: dict[str, pd.DataFrame]) -> tuple[list[MetricRow], list[MetricRow]]:
    """Return the rows of the age table and of the gender table."""
    rows: list[list[MetricRow]] = []
    for measure, make_compute in ((_measure_age, _make_age_compute), (_measure_gender, _make_gender_compute)):
        metrics = [dict(list_metrics(measure(table))) for table in tables.values()]
        samples = [resample(len(table), BOOTSTRAP_SAMPLES, make_compute(table)) for table in tables.values()]
        rows.append([_make_row(name, names, metrics, samples) for name in metrics[0]])
    return rows[0], rows[1]


def find_group_differences(names: tuple[str, ...], tables: dict[str, pd.DataFrame]) -> list[GroupDifference]:
    """Return how the second run differs from the first in each group of at least 30 faces, MAE and accuracy.

    Sorted by how large the difference is beside its interval's width, the clearest first.
    """
    first, second = (tables[name] for name in names[:2])
    own = [name for name in first.columns if name not in _RUN_COLUMNS]
    rows = []
    for column, labels in label_groups(first, own).items():
        for value in labels.cat.categories:
            inside = (labels == value).to_numpy(dtype=bool)
            if inside.sum() >= LEAST_FACES:
                rows.extend(_compare_group(names, column, str(value), first[inside], second[inside]))
    return sorted(rows, key=lambda row: -_weigh_difference(row.difference))


def _make_row(
    name: str, names: tuple[str, ...], metrics: list[dict[str, Metric]], samples: list[dict[str, Floats]]
) -> MetricRow:
    values = tuple(metric[name] for metric in metrics)
    differences = tuple(
        summarize_samples(value.value - values[0].value, sample[name] - samples[0][name])
        for value, sample in zip(values[1:], samples[1:], strict=True)
    )
    better = tuple(
        _choose_better(name, names[0], other, difference)
        for other, difference in zip(names[1:], differences, strict=True)
    )
    return MetricRow(name, values, differences, better)


def _choose_better(metric: str, first: str, second: str, difference: Metric) -> str | None:
    if not (difference.low > 0 or difference.high < 0):
        return None
    return second if (difference.high < 0) == (metric in LESS_IS_BETTER) else first


def _compare_group(
    names: tuple[str, ...], column: str, value: str, first: pd.DataFrame, second: pd.DataFrame
) -> list[GroupDifference]:
    rows = []
    for metric, make_compute in (("mae", _make_age_compute), ("accuracy", _make_gender_compute)):
        ones = np.ones((1, len(first)), dtype=np.int32)
        values = [float(make_compute(table)(ones)[metric][0]) for table in (first, second)]
        samples = [resample(len(first), BOOTSTRAP_SAMPLES, make_compute(table))[metric] for table in (first, second)]
        difference = summarize_samples(values[1] - values[0], samples[1] - samples[0])
        better = _choose_better(metric, names[0], names[1], difference)
        rows.append(GroupDifference(column, value, len(first), metric, values[0], values[1], difference, better))
    return rows


def _weigh_difference(difference: Metric) -> float:
    width = difference.high - difference.low
    return abs(difference.value) / width if width > 0 else 0.0


def _measure_age(table: pd.DataFrame) -> AgeMetrics:
    return measure_age(table["estimated_age"].to_numpy(dtype=float), table["age"].to_numpy(dtype=float))


def _measure_gender(table: pd.DataFrame) -> GenderMetrics:
    return measure_gender(table["p_female"].to_numpy(dtype=float), table["female"].to_numpy(dtype=bool))


def _make_age_compute(table: pd.DataFrame) -> Callable[[Weights], dict[str, Floats]]:
    error = (table["estimated_age"] - table["age"]).to_numpy(dtype=float)
    return lambda weights: compute_age_values(error, weights)


def _make_gender_compute(table: pd.DataFrame) -> Callable[[Weights], dict[str, Floats]]:
    p_female = table["p_female"].to_numpy(dtype=float)
    female: NDArray[np.bool_] = table["female"].to_numpy(dtype=bool)
    return lambda weights: compute_gender_values(p_female, female, weights)
