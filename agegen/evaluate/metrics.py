"""Metrics of age and gender estimates, with bootstrap intervals; NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Bools = NDArray[np.bool_]

Weights = NDArray[np.int32]

_Compute = Callable[[Weights], dict[str, Floats]]

CALIBRATION_BINS = 15

BOOTSTRAP_SAMPLES = 1000

_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Metric:
    """A value and its bootstrap 95 % interval; NaN where it isn't defined (the ROC-AUC of one class)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AgeMetrics:
    """MAE and RMSE in years; CS@k is the share (0–1) of faces whose error is at most k years."""

    mae: Metric
    rmse: Metric
    cs3: Metric
    cs5: Metric
    cs10: Metric


@dataclass(frozen=True)
class GenderMetrics:
    """Accuracy, ROC-AUC and expected calibration error, each 0–1."""

    accuracy: Metric
    roc_auc: Metric
    ece: Metric


@dataclass(frozen=True)
class IntervalMetrics:
    """The share of faces, 0–1, whose age their interval contains, and the intervals' mean width in years."""

    coverage: Metric
    width: Metric


@dataclass(frozen=True)
class ConfidentMetrics:
    """The share of faces, 0–1, confident enough to have their gender named, and the accuracy among them."""

    named: Metric
    named_accuracy: Metric


AnyMetrics = AgeMetrics | GenderMetrics | IntervalMetrics | ConfidentMetrics


def draw_bootstrap_weights(n: int, samples: int, seed: int = 0) -> Weights:
    """Return (samples, n) counts of how often each of n faces is drawn; each row sums to n."""
    rng = np.random.default_rng(seed)
    weights = np.empty((samples, n), dtype=np.int32)
    for row in weights:
        row[:] = np.bincount(rng.integers(0, n, n), minlength=n)
    return weights


def compute_age_values(error: Floats, weights: Weights) -> dict[str, Floats]:
    """Return each age metric under each row of weights.

    Args:
        error: estimates minus true ages (n,) in years.
        weights: (rows, n), how often each face counts.
    """
    size = np.abs(error)
    total = weights.sum(axis=1)
    values = {
        "mae": weights @ size / total,
        "rmse": np.sqrt(weights @ error**2 / total),
    }
    for years in (3, 5, 10):
        values[f"cs{years}"] = weights @ (size <= years).astype(float) / total
    return values


def compute_gender_values(p_female: Floats, female: Bools, weights: Weights) -> dict[str, Floats]:
    """Return each gender metric under each row of weights, as :func:`compute_age_values` does."""
    right = ((p_female >= 0.5) == female).astype(float)
    return {
        "accuracy": weights @ right / weights.sum(axis=1),
        "roc_auc": _compute_roc_auc(p_female, female, weights),
        "ece": _compute_calibration_error(p_female, right, weights),
    }


def measure_age(estimates: Floats, ages: Floats, samples: int = BOOTSTRAP_SAMPLES) -> AgeMetrics:
    """Return the age metrics of estimates (n,) against true ages (n,), both in years."""
    error = np.asarray(estimates, dtype=float) - ages
    return AgeMetrics(**_measure(len(error), samples, lambda weights: compute_age_values(error, weights)))


def measure_gender(p_female: Floats, female: Bools, samples: int = BOOTSTRAP_SAMPLES) -> GenderMetrics:
    """Return the gender metrics of P(female) (n,), 0–1, against labels (n,)."""
    return GenderMetrics(
        **_measure(len(p_female), samples, lambda weights: compute_gender_values(p_female, female, weights))
    )


def measure_intervals(low: Floats, high: Floats, ages: Floats, samples: int = BOOTSTRAP_SAMPLES) -> IntervalMetrics:
    """Return coverage and width of intervals (n,), (n,) in years against true ages (n,)."""
    inside = ((low <= ages) & (ages <= high)).astype(float)

    def compute(weights: Weights) -> dict[str, Floats]:
        total = weights.sum(axis=1)
        return {"coverage": weights @ inside / total, "width": weights @ (high - low) / total}

    return IntervalMetrics(**_measure(len(ages), samples, compute))


def measure_confident(
    p_female: Floats, female: Bools, min_confidence: float, samples: int = BOOTSTRAP_SAMPLES
) -> ConfidentMetrics:
    """Return how many of n faces have their gender named at a threshold, 0.5–1, and how many rightly so."""
    named = (np.maximum(p_female, 1 - p_female) >= min_confidence).astype(float)
    right = named * ((p_female >= 0.5) == female)

    def compute(weights: Weights) -> dict[str, Floats]:
        count = weights @ named
        accuracy = np.divide(weights @ right, count, out=np.full(len(weights), np.nan), where=count > 0)
        return {"named": count / weights.sum(axis=1), "named_accuracy": accuracy}

    return ConfidentMetrics(**_measure(len(p_female), samples, compute))


def summarize_samples(value: float, samples: Floats) -> Metric:
    """Return a value with the 2.5 and 97.5 percentiles of its bootstrap samples."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return Metric(value, float("nan"), float("nan"))
    low, high = np.percentile(known, [2.5, 97.5])
    return Metric(value, float(low), float(high))


def _measure(n: int, samples: int, compute: _Compute) -> dict[str, Metric]:
    values = {name: float(value[0]) for name, value in compute(np.ones((1, n), dtype=np.int32)).items()}
    resampled = resample(n, samples, compute)
    return {name: summarize_samples(value, resampled[name]) for name, value in values.items()}


def resample(n: int, samples: int, compute: _Compute, seed: int = 0) -> dict[str, Floats]:
    """Return bootstrap samples of each metric, computed in blocks of bounded memory.

    The draws depend on ``n``, ``samples`` and ``seed`` alone, so that two models on the same faces
    are resampled alike (a paired bootstrap).
    """
    rows = max(1, min(samples, _CELLS_AT_ONCE // max(n, 1)))
    blocks = [
        compute(draw_bootstrap_weights(n, min(rows, samples - start), seed=seed + start))
        for start in range(0, samples, rows)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _compute_roc_auc(p_female: Floats, female: Bools, weights: Weights) -> Floats:
    """Weighted Mann–Whitney statistic; ties count one half."""
    order = np.argsort(p_female, kind="stable")
    starts = np.flatnonzero(np.diff(p_female[order], prepend=-1.0))
    positive = np.add.reduceat(weights[:, order] * female[order], starts, axis=1).astype(float)
    negative = np.add.reduceat(weights[:, order] * ~female[order], starts, axis=1).astype(float)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    wins = (positive * (below + 0.5 * negative)).sum(axis=1)
    share: Floats = np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)
    return share


def _compute_calibration_error(p_female: Floats, right: Floats, weights: Weights) -> Floats:
    """Expected calibration error of the chosen class (Guo et al. 2017), 15 bins of equal width."""
    confidence = np.maximum(p_female, 1 - p_female)
    index = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.zeros(len(weights))
    for bin_index in np.unique(index):
        inside = index == bin_index
        gap += np.abs(weights[:, inside] @ (right[inside] - confidence[inside]))
    return np.asarray(gap / weights.sum(axis=1), dtype=float)
