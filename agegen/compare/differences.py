"""How models differ on the same faces: paired differences of each metric, overall and by group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import AGE_BOUNDS, choose_groups, label_groups, read_labels
from agegen.evaluate.estimates import ESTIMATE_COLUMNS
from agegen.evaluate.evaluation import list_metrics
from agegen.evaluate.metrics import (
    BOOTSTRAP_SAMPLES,
    AgeMetrics,
    AnyMetrics,
    BracketMetrics,
    Brackets,
    Floats,
    GenderMetrics,
    Metric,
    Weights,
    compute_age_values,
    compute_bracket_values,
    compute_gender_values,
    measure_age,
    measure_brackets,
    measure_gender,
    resample,
    summarize_samples,
    widen_brackets,
)

if TYPE_CHECKING:
    import pandas as pd

# Fewer faces than this say too little for a comparison.
LEAST_FACES = 30
LESS_IS_BETTER = ("mae", "rmse", "distance", "ece", "brier")
_RUN_COLUMNS = (*ESTIMATE_COLUMNS, *AGE_BOUNDS, "age", "female", "path", "sha256")


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


def measure_rows(
    names: tuple[str, ...], trainings: dict[str, list[pd.DataFrame]]
) -> tuple[list[MetricRow], list[MetricRow]]:
    """Return the rows of the age table (exact ages, then brackets, as far as there are) and of the gender table.

    Args:
        names: of the models, in their order.
        trainings: the estimates of each training of a model; see :func:`measure_model` where there are several.
    """
    labels = read_labels(next(iter(trainings.values()))[0])
    parts = (
        (labels.exact, _measure_age, _make_age_compute),
        (labels.bracketed, _measure_brackets, _make_bracket_compute),
        (labels.gendered, _measure_gender, _make_gender_compute),
    )
    rows: list[list[MetricRow]] = []
    for known, measure, make_compute in parts:
        if not known.any():
            rows.append([])
            continue
        models = [
            measure_model([table[known] for table in trainings[name]], measure, make_compute, place)
            for place, name in enumerate(names)
        ]
        metrics, samples = [model[0] for model in models], [model[1] for model in models]
        rows.append([_make_row(name, names, metrics, samples) for name in metrics[0]])
    return rows[0] + rows[1], rows[2]


def measure_model(
    tables: list[pd.DataFrame],
    measure: Callable[[pd.DataFrame], AnyMetrics],
    make_compute: Callable[[pd.DataFrame], Callable[[Weights], dict[str, Floats]]],
    place: int,
) -> tuple[dict[str, Metric], dict[str, Floats]]:
    """Return each metric of a model, and its bootstrap samples over faces.

    Of several trainings the mean counts, and its intervals hold two kinds of chance: of the faces, by resampling, and
    of the training, by Student's t with the spread between trainings. ``place`` seeds the second.
    Source: Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks", MLSys 2021.
    """
    each = [dict(list_metrics(measure(table))) for table in tables]
    drawn = [resample(len(table), BOOTSTRAP_SAMPLES, make_compute(table)) for table in tables]
    if len(tables) == 1:
        return each[0], drawn[0]
    metrics, samples = {}, {}
    rng = np.random.default_rng(place)
    for name in each[0]:
        values = np.array([metric[name].value for metric in each])
        mean = float(values.mean())
        faces = np.mean([sample[name] for sample in drawn], axis=0)
        # Resampling adds to calibration errors, which their values are free of.
        faces = faces - np.nanmean(faces) + mean if name == "ece" else faces
        noise = rng.standard_t(len(values) - 1, BOOTSTRAP_SAMPLES) * values.std(ddof=1) / np.sqrt(len(values))
        samples[name] = faces + noise
        metrics[name] = summarize_samples(mean, samples[name])
    return metrics, samples


@dataclass(frozen=True)
class GroupDifferences:
    """How two runs differ by group, the clearest first; ``looked_at`` counts all differences that were computed."""

    rows: list[GroupDifference]
    looked_at: int


def find_group_differences(names: tuple[str, ...], tables: dict[str, pd.DataFrame]) -> GroupDifferences:
    """Return how the second run differs from the first in each group of at least 30 faces, MAE and accuracy.

    Their intervals hold together, 95 % for all of them at once: where thirty differences are looked at, each at
    95 %, one or two are "clear" by chance. Resampled over all faces, the half-width is the 95th percentile of the
    largest |t| among them. Source: Westfall & Young, "Resampling-Based Multiple Testing", 1993.
    """
    first, second = (tables[name] for name in names[:2])
    looked = [
        (column, str(value), metric, inside)
        for column, labels in label_groups(first, _list_group_columns(first)).items()
        for value in labels.cat.categories
        for metric, known in (("mae", read_labels(first).exact), ("accuracy", read_labels(first).gendered))
        if (inside := (labels == value).to_numpy(dtype=bool, na_value=False) & known).sum() >= LEAST_FACES
    ]
    if not looked:
        return GroupDifferences([], 0)
    errors = {"mae": _measure_errors, "accuracy": _measure_right}
    sides = [{metric: measure(table) for metric, measure in errors.items()} for table in (first, second)]
    differences = {metric: np.nan_to_num(sides[1][metric] - sides[0][metric]) for metric in errors}
    inside = np.stack([rows for *_, rows in looked], axis=1).astype(float)
    gains = np.stack([differences[metric] for _, _, metric, _ in looked], axis=1) * inside
    values = gains.sum(axis=0) / inside.sum(axis=0)
    samples = resample(
        len(first), BOOTSTRAP_SAMPLES, lambda weights: {"t": (weights @ gains) / np.maximum(weights @ inside, 1)}
    )["t"]
    spread = np.maximum(samples.std(axis=0), 1e-12)
    reach = float(np.percentile(np.abs((samples - values) / spread).max(axis=1), 95))
    rows = []
    for (column, value, metric, faces), middle, error in zip(looked, values, spread, strict=True):
        difference = Metric(float(middle), float(middle - reach * error), float(middle + reach * error))
        before, after = (float(side[metric][faces].mean()) for side in sides)
        better = _choose_better(metric, names[0], names[1], difference)
        rows.append(GroupDifference(column, value, int(faces.sum()), metric, before, after, difference, better))
    return GroupDifferences(sorted(rows, key=lambda row: -_weigh_difference(row.difference)), len(rows))


def _list_group_columns(table: pd.DataFrame) -> list[str]:
    return choose_groups(table, [name for name in table.columns if name not in _RUN_COLUMNS])[0]


def _measure_errors(table: pd.DataFrame) -> Floats:
    return np.asarray((table["estimated_age"] - table["age"]).abs(), dtype=np.float64)


def _measure_right(table: pd.DataFrame) -> Floats:
    return np.asarray((table["p_female"] >= 0.5) == (read_labels(table).female > 0.5), dtype=np.float64)


def _make_row(
    name: str, names: tuple[str, ...], metrics: list[dict[str, Metric]], samples: list[dict[str, Floats]]
) -> MetricRow:
    values = tuple(metric[name] for metric in metrics)
    drawn = [sample[name] for sample in samples]
    if name == "ece":
        # Resampling adds to each run's calibration error; centred on the debiased values, the difference is free of it.
        drawn = [sample - sample.mean() + value.value for value, sample in zip(values, drawn, strict=True)]
    differences = tuple(
        summarize_samples(value.value - values[0].value, sample - drawn[0])
        for value, sample in zip(values[1:], drawn[1:], strict=True)
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


def _weigh_difference(difference: Metric) -> float:
    width = difference.high - difference.low
    return abs(difference.value) / width if width > 0 else 0.0


def _measure_age(table: pd.DataFrame) -> AgeMetrics:
    return measure_age(table["estimated_age"].to_numpy(dtype=float), table["age"].to_numpy(dtype=float))


def _measure_gender(table: pd.DataFrame) -> GenderMetrics:
    return measure_gender(table["p_female"].to_numpy(dtype=float), table["female"].to_numpy(dtype=bool))


def _measure_brackets(table: pd.DataFrame) -> BracketMetrics:
    return measure_brackets(table["estimated_age"].to_numpy(dtype=float), _read_brackets(table))


def _make_bracket_compute(table: pd.DataFrame) -> Callable[[Weights], dict[str, Floats]]:
    estimates, brackets = table["estimated_age"].to_numpy(dtype=float), _read_brackets(table)
    return lambda weights: compute_bracket_values(estimates, brackets, weights)


def _read_brackets(table: pd.DataFrame) -> Brackets:
    labels = read_labels(table)
    return widen_brackets(labels.low.astype(float), labels.high.astype(float))


def _make_age_compute(table: pd.DataFrame) -> Callable[[Weights], dict[str, Floats]]:
    error = (table["estimated_age"] - table["age"]).to_numpy(dtype=float)
    return lambda weights: compute_age_values(error, weights)


def _make_gender_compute(table: pd.DataFrame) -> Callable[[Weights], dict[str, Floats]]:
    p_female = table["p_female"].to_numpy(dtype=float)
    female: NDArray[np.bool_] = table["female"].to_numpy(dtype=bool)
    return lambda weights: compute_gender_values(p_female, female, weights)
