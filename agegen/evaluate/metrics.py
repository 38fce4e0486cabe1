"""Metrics of age and gender estimates, with bootstrap intervals; NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Weights = NDArray[np.int32]
Compute = Callable[[Weights], dict[str, Floats]]

# The 2.5th percentile of so many is the 25th of them: known to about a tenth of an interval's width.
BOOTSTRAP_SAMPLES = 1000
# 16 MB of weights at once.
_CELLS_AT_ONCE = 4_000_000
# Metrics that are shares of all the faces.
SHARES = ("cs3", "cs5", "cs10", "accuracy", "coverage", "named", "in_bracket", "near_bracket")


@dataclass(frozen=True)
class Metric:
    """A value and its bootstrap 95 % interval; NaN where it isn't defined (the ROC-AUC of one class)."""

    value: float
    low: float
    high: float


def draw_bootstrap_weights(n: int, samples: int, seed: int = 0) -> Weights:
    """Return (samples, n) counts of how often each of n faces is drawn; each row sums to n."""
    rng = np.random.default_rng(seed)
    weights = np.empty((samples, n), dtype=np.int32)
    for row in weights:
        row[:] = np.bincount(rng.integers(0, n, n), minlength=n)
    return weights


def measure_all(n: int, samples: int, compute: Compute) -> dict[str, Metric]:
    """Return each metric of n faces with its interval; NaN where there are none."""
    if not n:
        with np.errstate(invalid="ignore"):
            nothing = compute(np.zeros((1, 0), dtype=np.int32))
        return dict.fromkeys(nothing, Metric(float("nan"), float("nan"), float("nan")))
    values = {name: float(value[0]) for name, value in compute(np.ones((1, n), dtype=np.int32)).items()}
    resampled = resample(n, samples, compute)
    return {name: _summarize(name, value, resampled[name], n) for name, value in values.items()}


def _summarize(name: str, value: float, samples: Floats, n: int) -> Metric:
    if name in SHARES:
        return Metric(value, *bound_share(value, n))
    return summarize_samples(*debias(value, samples)) if name == "ece" else summarize_samples(value, samples)


def bound_share(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (0–1) of n faces: it has a width even where all are right.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    from scipy.stats import binomtest

    if np.isnan(share) or not n:
        return float("nan"), float("nan")
    bounds = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(bounds.low), float(bounds.high)


def debias(value: float, samples: Floats) -> tuple[float, Floats]:
    """Return a calibration error and its bootstrap samples without the bias that bins of few faces give it.

    The error of a perfectly calibrated model is above 0 by chance, that of its resamples by as much again: what
    resampling adds is taken off the value once and off the samples twice.
    """
    bias = float(np.mean(samples)) - value
    return max(0.0, value - bias), np.maximum(samples - 2 * bias, 0.0)


def resample(n: int, samples: int, compute: Compute, seed: int = 0) -> dict[str, Floats]:
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


def summarize_samples(value: float, samples: Floats) -> Metric:
    """Return a value with the 2.5 and 97.5 percentiles of its bootstrap samples."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return Metric(value, float("nan"), float("nan"))
    low, high = np.percentile(known, [2.5, 97.5])
    return Metric(value, float(low), float(high))


# As in Guo et al., whose numbers others compare with.
CALIBRATION_BINS = 15
# Whole years: a label of 29 stands for all until the next birthday.
_HALF_YEAR = 0.5


class Brackets(NamedTuple):
    """Brackets of n faces, bounds (n,) in years; ``near`` ones reach over the brackets beside each."""

    low: Floats
    high: Floats
    near_low: Floats
    near_high: Floats


def widen_brackets(low: Floats, high: Floats) -> Brackets:
    """Return brackets with those beside them, as far as these stand in the same data."""
    kinds = sorted(set(zip(low.tolist(), high.tolist(), strict=True)))
    place = {kind: index for index, kind in enumerate(kinds)}
    rows = np.array([place[kind] for kind in zip(low.tolist(), high.tolist(), strict=True)], dtype=int)
    lows, highs = (np.array([kind[side] for kind in kinds], dtype=float) for side in (0, 1))
    before, after = np.maximum(rows - 1, 0), np.minimum(rows + 1, max(len(kinds) - 1, 0))
    if not len(kinds):
        return Brackets(low, high, low, high)
    return Brackets(low, high, np.minimum(lows[before], low), np.maximum(highs[after], high))


@dataclass(frozen=True)
class AgeMetrics:
    """MAE and RMSE in years; CS@k is the share (0–1) of faces whose error is at most k years."""

    mae: Metric
    rmse: Metric
    cs3: Metric
    cs5: Metric
    cs10: Metric


@dataclass(frozen=True)
class BracketMetrics:
    """The share of faces, 0–1, whose estimate lies in the bracket that labels them; that in it or one beside it; and
    the mean distance of the estimates to their brackets in years.
    """

    in_bracket: Metric
    near_bracket: Metric
    distance: Metric


@dataclass(frozen=True)
class GenderMetrics:
    """Accuracy, ROC-AUC, expected calibration error (debiased) and Brier score, each 0–1."""

    accuracy: Metric
    roc_auc: Metric
    ece: Metric
    brier: Metric


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


AnyMetrics = AgeMetrics | BracketMetrics | GenderMetrics | IntervalMetrics | ConfidentMetrics


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
        "brier": weights @ (p_female - female) ** 2 / weights.sum(axis=1),
    }


def compute_bracket_values(estimates: Floats, brackets: Brackets, weights: Weights) -> dict[str, Floats]:
    """Return each bracket metric under each row of weights, as :func:`compute_age_values` does."""
    distance = measure_distance(estimates, brackets.low, brackets.high)
    near = measure_distance(estimates, brackets.near_low, brackets.near_high)
    total = weights.sum(axis=1)
    return {
        "in_bracket": weights @ (distance == 0).astype(float) / total,
        "near_bracket": weights @ (near == 0).astype(float) / total,
        "distance": weights @ distance / total,
    }


def measure_distance(estimates: Floats, low: NDArray[Any], high: NDArray[Any]) -> Floats:
    """Return how far estimates (n,) lie outside brackets of whole years (n,), in years: 29.4 is still 29."""
    below, above = low - _HALF_YEAR - estimates, estimates - high - _HALF_YEAR
    return np.asarray(np.maximum(np.maximum(below, above), 0.0), dtype=np.float64)


def measure_age(estimates: Floats, ages: Floats, samples: int = BOOTSTRAP_SAMPLES) -> AgeMetrics:
    """Return the age metrics of estimates (n,) against true ages (n,), both in years."""
    error = np.asarray(estimates, dtype=float) - ages
    return AgeMetrics(**measure_all(len(error), samples, lambda weights: compute_age_values(error, weights)))


def measure_brackets(estimates: Floats, brackets: Brackets, samples: int = BOOTSTRAP_SAMPLES) -> BracketMetrics:
    """Return the bracket metrics of estimates (n,) in years."""
    return BracketMetrics(
        **measure_all(len(estimates), samples, lambda weights: compute_bracket_values(estimates, brackets, weights))
    )


def measure_gender(p_female: Floats, female: Bools, samples: int = BOOTSTRAP_SAMPLES) -> GenderMetrics:
    """Return the gender metrics of P(female) (n,), 0–1, against labels (n,)."""
    return GenderMetrics(
        **measure_all(len(p_female), samples, lambda weights: compute_gender_values(p_female, female, weights))
    )


def measure_intervals(low: Floats, high: Floats, ages: Floats, samples: int = BOOTSTRAP_SAMPLES) -> IntervalMetrics:
    """Return coverage and width of intervals (n,), (n,) in years against true ages (n,)."""
    inside = ((low <= ages) & (ages <= high)).astype(float)

    def compute(weights: Weights) -> dict[str, Floats]:
        total = weights.sum(axis=1)
        return {"coverage": weights @ inside / total, "width": weights @ (high - low) / total}

    return IntervalMetrics(**measure_all(len(ages), samples, compute))


def measure_confident(
    p_female: Floats, female: Bools, min_confidence: float | Floats, samples: int = BOOTSTRAP_SAMPLES
) -> ConfidentMetrics:
    """Return how many of n faces have their gender named at a threshold, 0.5–1, of all or of each (n,), and how many
    rightly so.
    """
    named = (np.maximum(p_female, 1 - p_female) >= min_confidence).astype(float)
    right = named * ((p_female >= 0.5) == female)

    def compute(weights: Weights) -> dict[str, Floats]:
        count = weights @ named
        accuracy = np.divide(weights @ right, count, out=np.full(len(weights), np.nan), where=count > 0)
        return {"named": count / weights.sum(axis=1), "named_accuracy": accuracy}

    measured = measure_all(len(p_female), samples, compute)
    accuracy = measured["named_accuracy"].value
    measured["named_accuracy"] = Metric(accuracy, *bound_share(accuracy, int(named.sum())))
    return ConfidentMetrics(**measured)


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
