"""Metrics of age and gender estimates with 95 % confidence intervals; NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
# A metric's values (rows,) under weights (rows, n): how often each of n faces counts. Every row sums to n.
MetricFunction = Callable[[Floats], Floats]
MetricsT = TypeVar("MetricsT")

# The 2.5th percentile of 1,000 samples is the 25th smallest: known to about a tenth of the interval's width.
BOOTSTRAP_SAMPLES = 1000
# Weights in memory at once: 32 MB.
_BLOCK_CELLS = 4_000_000
# As in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, for comparable numbers.
CALIBRATION_BINS = 15
# Ages are completed years: a label of 29 covers everything until the 30th birthday.
_HALF_YEAR = 0.5


@dataclass(frozen=True)
class Metric:
    """A value and its 95 % interval; NaN where undefined, such as the ROC-AUC of a single class."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AgeMetrics:
    """MAE, RMSE and bias in years; CS@k is the share (0–1) of faces with an error of at most k years.

    The bias is the mean of estimate − true age: above 0, ages are overestimated. By age band it shows regression to the
    mean, which MAE hides: the young are estimated too old, the old too young.
    """

    mae: Metric
    rmse: Metric
    bias: Metric
    cs3: Metric
    cs5: Metric
    cs10: Metric


@dataclass(frozen=True)
class BracketMetrics:
    """How estimates relate to age brackets.

    Attributes:
        in_bracket: the share of faces, 0–1, whose estimate is inside the labelled bracket.
        near_bracket: the share, 0–1, whose estimate is inside it or an adjacent bracket.
        distance: the mean distance from the estimates to their brackets in years.
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
    """The share of faces, 0–1, whose age lies in the predicted interval, and the mean interval width in years."""

    coverage: Metric
    width: Metric


@dataclass(frozen=True)
class ConfidentMetrics:
    """Selective classification of gender: the share of faces, 0–1, above the confidence threshold (``named``), and the
    accuracy among them.
    """

    named: Metric
    named_accuracy: Metric


AnyMetrics = AgeMetrics | BracketMetrics | GenderMetrics | IntervalMetrics | ConfidentMetrics


class Brackets(NamedTuple):
    """Age brackets of n faces, bounds (n,) in years; ``near`` bounds also cover the adjacent brackets."""

    low: Floats
    high: Floats
    near_low: Floats
    near_high: Floats


def widen_brackets(low: Floats, high: Floats) -> Brackets:
    """Return brackets (n,) with the bounds of their neighbours; neighbours are the brackets used in the same data."""
    kinds = sorted(set(zip(low.tolist(), high.tolist(), strict=True)))
    if not kinds:
        return Brackets(low, high, low, high)
    place = {kind: index for index, kind in enumerate(kinds)}
    rows = np.array([place[kind] for kind in zip(low.tolist(), high.tolist(), strict=True)], dtype=int)
    lows, highs = (np.array([kind[side] for kind in kinds], dtype=float) for side in (0, 1))
    before, after = np.maximum(rows - 1, 0), np.minimum(rows + 1, len(kinds) - 1)
    return Brackets(low, high, np.minimum(lows[before], low), np.maximum(highs[after], high))


def measure_distance(estimates: Floats, low: NDArray[Any], high: NDArray[Any]) -> Floats:
    """Return the distance in years (n,) of estimates from brackets of whole years; 29.4 still lies in 20–29."""
    below, above = low - _HALF_YEAR - estimates, estimates - high - _HALF_YEAR
    return np.asarray(np.maximum(np.maximum(below, above), 0.0), dtype=np.float64)


@dataclass(frozen=True)
class MetricSpec(Generic[MetricsT]):
    """The metrics of one kind over n faces, ready to be measured.

    Attributes:
        result: the dataclass of the metrics.
        n: the number of faces.
        functions: each metric by name, as a function of weights.
        shares: metrics that are shares of faces, with the number of faces that each is a share of. Their intervals are
            Wilson's and need no bootstrap.
    """

    result: Callable[..., MetricsT]
    n: int
    functions: dict[str, MetricFunction]
    shares: dict[str, int] = field(default_factory=dict)


def define_age_metrics(estimates: Floats, ages: Floats) -> MetricSpec[AgeMetrics]:
    """Return the age metrics of estimates (n,) against true ages (n,), both in years."""
    error = np.asarray(estimates, dtype=float) - ages
    size, mean_square = np.abs(error), _make_mean(error**2)
    shares = {f"cs{years}": (size <= years).astype(float) for years in (3, 5, 10)}
    functions: dict[str, MetricFunction] = {
        "mae": _make_mean(size),
        "rmse": lambda weights: np.sqrt(mean_square(weights)),
        "bias": _make_mean(error),
        **{name: _make_mean(inside) for name, inside in shares.items()},
    }
    return MetricSpec(AgeMetrics, len(error), functions, dict.fromkeys(shares, len(error)))


def define_bracket_metrics(estimates: Floats, brackets: Brackets) -> MetricSpec[BracketMetrics]:
    """Return the bracket metrics of estimates (n,) in years."""
    distance = measure_distance(estimates, brackets.low, brackets.high)
    near = measure_distance(estimates, brackets.near_low, brackets.near_high)
    functions: dict[str, MetricFunction] = {
        "in_bracket": _make_mean((distance == 0).astype(float)),
        "near_bracket": _make_mean((near == 0).astype(float)),
        "distance": _make_mean(distance),
    }
    n = len(estimates)
    return MetricSpec(BracketMetrics, n, functions, {"in_bracket": n, "near_bracket": n})


def define_gender_metrics(p_female: Floats, female: Bools) -> MetricSpec[GenderMetrics]:
    """Return the gender metrics of P(female) (n,), 0–1, against labels (n,)."""
    right = ((p_female >= 0.5) == female).astype(float)
    functions: dict[str, MetricFunction] = {
        "accuracy": _make_mean(right),
        "roc_auc": _make_roc_auc(p_female, female),
        "ece": _make_calibration_error(p_female, right),
        "brier": _make_mean((p_female - female) ** 2),
    }
    return MetricSpec(GenderMetrics, len(right), functions, {"accuracy": len(right)})


def define_interval_metrics(low: Floats, high: Floats, ages: Floats) -> MetricSpec[IntervalMetrics]:
    """Return coverage and width of intervals (n,), (n,) in years against true ages (n,)."""
    inside = ((low <= ages) & (ages <= high)).astype(float)
    functions: dict[str, MetricFunction] = {"coverage": _make_mean(inside), "width": _make_mean(high - low)}
    return MetricSpec(IntervalMetrics, len(ages), functions, {"coverage": len(ages)})


def define_confident_metrics(
    p_female: Floats, female: Bools, min_confidence: float | Floats
) -> MetricSpec[ConfidentMetrics]:
    """Return how many of n faces reach a confidence threshold, 0.5–1 (for all or per face (n,)), and their accuracy."""
    # As in predict, a threshold of 1 reports no gender.
    reported = (np.maximum(p_female, 1 - p_female) >= min_confidence) & (np.asarray(min_confidence) < 1)
    named = reported.astype(float)
    right = named * ((p_female >= 0.5) == female)

    def compute_accuracy(weights: Floats) -> Floats:
        count = weights @ named
        accuracy: Floats = np.divide(weights @ right, count, out=np.full(len(weights), np.nan), where=count > 0)
        return accuracy

    functions: dict[str, MetricFunction] = {"named": _make_mean(named), "named_accuracy": compute_accuracy}
    return MetricSpec(
        ConfidentMetrics, len(named), functions, {"named": len(named), "named_accuracy": int(named.sum())}
    )


def measure(spec: MetricSpec[MetricsT], samples: int = BOOTSTRAP_SAMPLES) -> MetricsT:
    """Return the metrics of a spec with their intervals; NaN where there are no faces."""
    metrics: MetricsT = measure_all([spec], samples)[0]
    return metrics


def measure_all(specs: Sequence[MetricSpec[Any]], samples: int = BOOTSTRAP_SAMPLES) -> list[Any]:
    """Return the metrics of each spec with their intervals; see :func:`resample_all` for what they share."""
    parts = [{name: function for name, function in spec.functions.items() if name not in spec.shares} for spec in specs]
    drawn = resample_all([(spec.n, part) for spec, part in zip(specs, parts, strict=True)], samples)
    return [summarize(spec, resampled) for spec, resampled in zip(specs, drawn, strict=True)]


def summarize(spec: MetricSpec[MetricsT], resampled: dict[str, Floats]) -> MetricsT:
    """Return the metrics of a spec from the bootstrap samples of those that are no shares."""
    if not spec.n:
        return spec.result(**dict.fromkeys(spec.functions, Metric(float("nan"), float("nan"), float("nan"))))
    once = np.ones((1, spec.n))
    metrics = {}
    for name, function in spec.functions.items():
        value = float(function(once)[0])
        if name in spec.shares:
            metrics[name] = Metric(value, *bound_share(value, spec.shares[name]))
        elif name == "ece":
            metrics[name] = summarize_samples(*_debias(value, resampled[name]))
        else:
            metrics[name] = summarize_samples(value, resampled[name])
    return spec.result(**metrics)


def summarize_samples(value: float, samples: Floats) -> Metric:
    """Return a value with the 2.5 and 97.5 percentiles of its bootstrap samples, NaN samples ignored."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return Metric(value, float("nan"), float("nan"))
    low, high = np.percentile(known, [2.5, 97.5])
    return Metric(value, float(low), float(high))


def bound_share(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (0–1) of n faces; unlike the bootstrap's, it has a width at 0 and 1.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    from scipy.stats import binomtest

    if np.isnan(share) or not n:
        return float("nan"), float("nan")
    bounds = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(bounds.low), float(bounds.high)


def _debias(value: float, samples: Floats) -> tuple[float, Floats]:
    """Return a calibration error and its bootstrap samples without the bias of bins with few faces.

    By chance, even a perfectly calibrated model has an error above 0, and resampling adds the same bias again. So the
    bias that resampling adds is subtracted from the value once and from the samples twice.
    """
    bias = float(np.mean(samples)) - value
    return max(0.0, value - bias), np.maximum(samples - 2 * bias, 0.0)


def resample(
    n: int, functions: dict[str, MetricFunction], samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> dict[str, Floats]:
    """Return bootstrap samples (samples,) of each function over n faces; see :func:`resample_all`."""
    return resample_all([(n, functions)], samples, seed)[0]


def resample_all(
    parts: Sequence[tuple[int, dict[str, MetricFunction]]], samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> list[dict[str, Floats]]:
    """Return bootstrap samples (samples,) of functions over n faces each, part by part: (n, {name: function}).

    Draws depend on ``n``, ``samples`` and ``seed`` alone: parts with the same number of faces share them. Two models on
    the same faces are therefore resampled alike (a paired bootstrap), and drawing, the larger part of the cost, is done
    once. Weights are drawn in blocks of bounded memory.
    """
    blocks: list[dict[str, list[Floats]]] = [{name: [] for name in functions} for _, functions in parts]
    for n in sorted({n for n, functions in parts if n and functions}):
        rows = max(1, min(samples, _BLOCK_CELLS // n))
        for start in range(0, samples, rows):
            weights = draw_bootstrap_weights(n, min(rows, samples - start), seed=seed + start)
            for (size, functions), block in zip(parts, blocks, strict=True):
                if size == n:
                    for name, function in functions.items():
                        block[name].append(function(weights))
    return [{name: np.concatenate(found) for name, found in block.items() if found} for block in blocks]


def draw_bootstrap_weights(n: int, samples: int, seed: int = 0) -> Floats:
    """Return (samples, n) counts of how often each of n faces is drawn; each row sums to n."""
    rng = np.random.default_rng(seed)
    weights = np.empty((samples, n))
    for row in weights:
        row[:] = np.bincount(rng.integers(0, n, n), minlength=n)
    return weights


def _make_mean(values: Floats) -> MetricFunction:
    """Return the weighted mean of values (n,)."""

    def compute(weights: Floats) -> Floats:
        means: Floats = weights @ values / len(values)
        return means

    return compute


def _make_roc_auc(p_female: Floats, female: Bools) -> MetricFunction:
    """Return the weighted Mann–Whitney statistic; ties count one half, and NaN stands for a single class."""
    positive, negative = (
        rows[np.argsort(p_female[rows])] for rows in (np.flatnonzero(female), np.flatnonzero(~female))
    )
    below, up_to = (np.searchsorted(p_female[negative], p_female[positive], side) for side in ("left", "right"))

    def compute(weights: Floats) -> Floats:
        counts = np.zeros((len(weights), len(negative) + 1))
        np.cumsum(np.take(weights, negative, axis=1), axis=1, out=counts[:, 1:])
        own = np.take(weights, positive, axis=1)
        wins = (own * (np.take(counts, below, axis=1) + np.take(counts, up_to, axis=1))).sum(axis=1) / 2
        pairs = own.sum(axis=1) * counts[:, -1]
        share: Floats = np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)
        return share

    return compute


def _make_calibration_error(p_female: Floats, right: Floats) -> MetricFunction:
    """Return the expected calibration error of the likelier class, in 15 bins of equal width."""
    confidence = np.maximum(p_female, 1 - p_female)
    index = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    order = np.argsort(index, kind="stable")
    gaps = (right - confidence)[order]
    bounds = np.searchsorted(index[order], np.arange(CALIBRATION_BINS + 1))

    def compute(weights: Floats) -> Floats:
        # By bins, faces in their order.
        ordered = np.take(weights, order, axis=1)
        sums = [ordered[:, start:end] @ gaps[start:end] for start, end in pairwise(bounds) if start < end]
        error: Floats = np.abs(sums).sum(axis=0) / len(gaps)
        return error

    return compute
