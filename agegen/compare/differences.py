"""Differences between models on the same faces: paired, for each metric, overall and by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import AGE_BOUNDS, choose_groups, label_groups, read_labels
from agegen.evaluate.estimates import ESTIMATE_COLUMNS
from agegen.evaluate.evaluation import list_metrics
from agegen.evaluate.metrics import (
    BOOTSTRAP_SAMPLES,
    Floats,
    Metric,
    MetricSpec,
    define_age_metrics,
    define_bracket_metrics,
    define_gender_metrics,
    measure_all,
    resample,
    resample_all,
    summarize,
    summarize_samples,
    widen_brackets,
)
from agegen.render.tables import SIGNED

if TYPE_CHECKING:
    import pandas as pd

# On fewer faces, intervals are too wide for a comparison.
MIN_FACES = 30
_LESS_IS_BETTER = ("mae", "rmse", "distance", "ece", "brier")
# Columns of predictions that are no groups.
_OTHER_COLUMNS = (*ESTIMATE_COLUMNS, *AGE_BOUNDS, "age", "female", "path", "sha256")


@dataclass(frozen=True)
class MetricRow:
    """One metric of each model, and the paired difference of each later model to the first.

    ``better`` names the better model for each difference, None if its interval contains 0, or for a signed metric.
    """

    name: str
    values: tuple[Metric, ...]
    differences: tuple[Metric, ...]
    better: tuple[str | None, ...]


@dataclass(frozen=True)
class GroupDifference:
    """The difference of a later ``model`` to the first one in a group of n faces, for one metric.

    ``first`` and ``second`` are the values of the first model and of ``model``.
    """

    column: str
    value: str
    n: int
    metric: str
    model: str
    first: float
    second: float
    difference: Metric
    better: str | None


@dataclass(frozen=True)
class GroupDifferences:
    """The differences by group, clearest first, of all models; ``count`` is the number of differences computed."""

    rows: list[GroupDifference]
    count: int


def measure_rows(
    names: tuple[str, ...], trainings: dict[str, list[pd.DataFrame]]
) -> tuple[list[MetricRow], list[MetricRow]]:
    """Return the rows of the age table (exact ages, then brackets, if there are any) and of the gender table.

    Args:
        names: of the models, in order.
        trainings: by model, the predictions of each of its trainings, all of the same faces in the same order.
    """
    labels = read_labels(next(iter(trainings.values()))[0])
    parts = (
        (labels.exact, _define_age_metrics),
        (labels.bracketed, _define_bracket_metrics),
        (labels.gendered, _define_gender_metrics),
    )
    exact, bracketed, gendered = (
        _measure_part(names, trainings, known, define) if known.any() else [] for known, define in parts
    )
    return exact + bracketed, gendered


def _measure_part(
    names: tuple[str, ...],
    trainings: dict[str, list[pd.DataFrame]],
    known: NDArray[np.bool_],
    define: Callable[[pd.DataFrame], MetricSpec[Any]],
) -> list[MetricRow]:
    """Return the rows of one kind of metrics, on the faces whose label is ``known`` (N,)."""
    specs = [[define(table[known]) for table in trainings[name]] for name in names]
    drawn = iter(resample_all([(spec.n, spec.functions) for model in specs for spec in model]))
    models = [_measure_model(model, [next(drawn) for _ in model], place) for place, model in enumerate(specs)]
    return [_make_row(name, names, models) for name in models[0].metrics]


class _ModelMetrics(NamedTuple):
    """Each metric of a model, and its bootstrap samples, by name."""

    metrics: dict[str, Metric]
    samples: dict[str, Floats]


def _measure_model(specs: list[MetricSpec[Any]], drawn: list[dict[str, Floats]], seed: int) -> _ModelMetrics:
    """Return the metrics of a model from those of its trainings, and their bootstrap samples.

    For several trainings the metric is their mean. Its interval includes two sources of variance: the sample of faces,
    by resampling, and the training, by Student's t with the standard deviation between trainings.
    Source: Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks", MLSys 2021.
    """
    each = [dict(list_metrics(summarize(spec, samples))) for spec, samples in zip(specs, drawn, strict=True)]
    if len(specs) == 1:
        return _ModelMetrics(each[0], drawn[0])
    metrics, samples = {}, {}
    rng = np.random.default_rng(seed)
    for name in each[0]:
        values = np.array([metric[name].value for metric in each])
        mean = float(values.mean())
        faces = np.mean([sample[name] for sample in drawn], axis=0)
        # Resampling biases the calibration error upwards; the values are debiased.
        faces = faces - np.nanmean(faces) + mean if name == "ece" else faces
        noise = rng.standard_t(len(values) - 1, BOOTSTRAP_SAMPLES) * values.std(ddof=1) / np.sqrt(len(values))
        samples[name] = faces + noise
        metrics[name] = summarize_samples(mean, samples[name])
    return _ModelMetrics(metrics, samples)


def _make_row(name: str, names: tuple[str, ...], models: list[_ModelMetrics]) -> MetricRow:
    values = tuple(model.metrics[name] for model in models)
    samples = [model.samples[name] for model in models]
    if name == "ece":
        # Centred on the debiased values: otherwise, differences would contain the bias of resampling.
        samples = [sample - sample.mean() + value.value for value, sample in zip(values, samples, strict=True)]
    differences = tuple(
        summarize_samples(value.value - values[0].value, sample - samples[0])
        for value, sample in zip(values[1:], samples[1:], strict=True)
    )
    better = tuple(
        _choose_better(name, names[0], other, difference)
        for other, difference in zip(names[1:], differences, strict=True)
    )
    return MetricRow(name, values, differences, better)


def _choose_better(metric: str, first: str, second: str, difference: Metric) -> str | None:
    if metric in SIGNED or not (difference.low > 0 or difference.high < 0):
        return None
    return second if (difference.high < 0) == (metric in _LESS_IS_BETTER) else first


def _define_age_metrics(table: pd.DataFrame) -> MetricSpec[Any]:
    return define_age_metrics(table["estimated_age"].to_numpy(dtype=float), table["age"].to_numpy(dtype=float))


def _define_bracket_metrics(table: pd.DataFrame) -> MetricSpec[Any]:
    labels = read_labels(table)
    brackets = widen_brackets(labels.low.astype(float), labels.high.astype(float))
    return define_bracket_metrics(table["estimated_age"].to_numpy(dtype=float), brackets)


def _define_gender_metrics(table: pd.DataFrame) -> MetricSpec[Any]:
    return define_gender_metrics(table["p_female"].to_numpy(dtype=float), table["female"].to_numpy(dtype=bool))


@dataclass(frozen=True)
class BiasRow:
    """The mean of estimate − true age in years of each model, over the n faces of an age band."""

    band: str
    n: int
    values: tuple[Metric, ...]


def measure_biases(tables: dict[str, pd.DataFrame]) -> list[BiasRow]:
    """Return the bias of each model by true age, for age bands of at least 30 faces with exact ages.

    ``tables``: the predictions of each model, of the same faces in the same order.
    """
    first = next(iter(tables.values()))
    exact, bands = read_labels(first).exact, label_groups(first, [])["age_band"]
    rows = []
    for band in bands.cat.categories:
        inside = (bands == band).to_numpy(dtype=bool, na_value=False) & exact
        if (n := int(inside.sum())) >= MIN_FACES:
            measured = measure_all([_define_age_metrics(table[inside]) for table in tables.values()])
            rows.append(BiasRow(str(band), n, tuple(metrics.bias for metrics in measured)))
    return rows


def find_group_differences(names: tuple[str, ...], tables: dict[str, pd.DataFrame]) -> GroupDifferences:
    """Return how each later model differs from the first in each group of at least 30 faces, in MAE and accuracy.

    The intervals hold simultaneously, at 95 % for all differences together: of thirty differences, each at 95 %, one or
    two would be "clear" by chance. Over bootstrap samples of all faces, the half-width is the 95th percentile of the
    largest |t|. Source: Westfall & Young, "Resampling-Based Multiple Testing", 1993.
    """
    cells = list(_iter_cells(tables[names[0]]))
    if not cells:
        return GroupDifferences([], 0)
    before, *others = (_compute_face_values(tables[name]) for name in names)
    compared = [(name, after, cell) for name, after in zip(names[1:], others, strict=True) for cell in cells]
    inside = np.stack([cell.inside for _, _, cell in compared], axis=1).astype(float)
    gains = np.stack([np.nan_to_num(after[cell.metric] - before[cell.metric]) for _, after, cell in compared], axis=1)
    differences = _bound_differences(gains * inside, inside)
    rows = [
        GroupDifference(
            column=cell.column,
            value=cell.value,
            n=int(cell.inside.sum()),
            metric=cell.metric,
            model=name,
            first=float(before[cell.metric][cell.inside].mean()),
            second=float(after[cell.metric][cell.inside].mean()),
            difference=difference,
            better=_choose_better(cell.metric, names[0], name, difference),
        )
        for (name, after, cell), difference in zip(compared, differences, strict=True)
    ]
    return GroupDifferences(sorted(rows, key=lambda row: -_compute_clarity(row.difference)), len(rows))


def _bound_differences(gains: Floats, inside: Floats) -> list[Metric]:
    """Return the mean of each column of gains (N, D) over the faces ``inside`` (N, D), with simultaneous intervals."""
    values = gains.sum(axis=0) / inside.sum(axis=0)
    samples = resample(len(gains), {"difference": lambda weights: (weights @ gains) / np.maximum(weights @ inside, 1)})[
        "difference"
    ]
    errors = np.maximum(samples.std(axis=0), 1e-12)
    reach = float(np.percentile(np.abs((samples - values) / errors).max(axis=1), 95))
    return [
        Metric(float(value), float(value - reach * error), float(value + reach * error))
        for value, error in zip(values, errors, strict=True)
    ]


class _Cell(NamedTuple):
    """A group, a metric, and the faces (N,) of the group whose label is known."""

    column: str
    value: str
    metric: str
    inside: NDArray[np.bool_]


def _iter_cells(table: pd.DataFrame) -> Iterator[_Cell]:
    """Yield each group and metric with at least 30 faces."""
    labels = read_labels(table)
    columns = choose_groups(table, [name for name in table.columns if name not in _OTHER_COLUMNS])[0]
    for column, groups in label_groups(table, columns).items():
        for value in groups.cat.categories:
            members = (groups == value).to_numpy(dtype=bool, na_value=False)
            for metric, known in (("mae", labels.exact), ("accuracy", labels.gendered)):
                inside = members & known
                if inside.sum() >= MIN_FACES:
                    yield _Cell(column, str(value), metric, inside)


def _compute_face_values(table: pd.DataFrame) -> dict[str, Floats]:
    """Return for each face (N,) its absolute age error in years, and 1 if its gender is correct, 0 if not."""
    error = (table["estimated_age"] - table["age"]).abs()
    correct = (table["p_female"] >= 0.5) == (read_labels(table).female > 0.5)
    return {"mae": error.to_numpy(dtype=float), "accuracy": correct.to_numpy(dtype=float)}


def _compute_clarity(difference: Metric) -> float:
    width = difference.high - difference.low
    return abs(difference.value) / width if width > 0 else 0.0
