"""The uncertainty of metrics: bootstrap over faces, Wilson's intervals for shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
