"""Calibration on the validation split: conformal age intervals, and the thresholds below which gender is uncertain."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import MAX_AGE, Labels
from agegen.errors import CheckpointError
from agegen.model.metadata import CALIBRATION, find_problem

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]
Knots = tuple[tuple[float, float], ...]
Thresholds = tuple[tuple[float, float, float], ...]

# The share of ages that intervals are to contain. 90 % is common in the literature: a promise that means something,
# with intervals that are still narrow enough to be useful.
COVERAGE = 0.90
# Half the width of the central 90 % of a normal distribution, in standard deviations.
Z_90 = 1.645
# The labels that intervals were fitted to: values of `Calibration.basis`.
EXACT, BRACKETS = "exact ages", "brackets of ages"
# Gender is reported if at least this share of the reported genders was correct on validation …
TARGET_ACCURACY = 0.97
# … but at least this share of the faces gets a gender, even from an inaccurate model.
MIN_NAMED_SHARE = 0.5
# The number of faces with a reported gender that is needed to tell an accuracy of 97 % from one of 90 %.
MIN_NAMED_FACES = 30
# … and to show that it is 97 %: if all of fewer than 99 genders are correct, it may still be lower (95 % confidence).
MIN_ACCURATE_FACES = 99
# Bands of estimated ages in years; finer in childhood, when faces change fastest.
BAND_EDGES = (0, 3, 10, 20, 30, 40, 50, 60, 70, 80, 117)
# Scales are interpolated between the centers of the bands; most faces of the last band are near its lower end.
BAND_CENTERS = tuple((low + high) / 2 for low, high in pairwise(BAND_EDGES[:-1])) + (85.0,)
# A band with fewer faces does not get its own scale: their 90th percentile would be almost the maximum.
MIN_BAND_FACES = 20
# The scale of a band is shrunk towards that of all faces, which gets the weight of this many faces: from 100 faces the
# 90th percentile is known to about a tenth of its value.
SHRINKAGE = 30
# In years. Prevents an interval of zero width when nearly all probability is on one age.
_MIN_STD = 0.5


@dataclass(frozen=True)
class Calibration:
    """The uncertainty of a model, as measured on a validation split.

    Attributes:
        interval_scale: half the width of an age interval, in standard deviations of the model's age distribution.
        coverage: the share of faces, 0–1, whose age is inside such intervals.
        min_confidence: the gender threshold, 0.5–1: gender is reported if its probability is at least this.
        faces: the number of faces that the intervals were fitted to, and ``basis`` whether they had exact ages or
            brackets.
        scales: (age in years, scale) pairs, between which the interval scale is interpolated; () uses
            ``interval_scale`` at all ages.
        doubtful: (low, high, threshold) for estimated ages from low to below high with a higher gender threshold than
            ``min_confidence``; at 1 gender is never reported.
    """

    interval_scale: float
    coverage: float
    min_confidence: float
    faces: int
    basis: str = EXACT
    scales: Knots = ()
    doubtful: Thresholds = ()

    def to_json(self) -> dict[str, Any]:
        """Return the form that checkpoints store."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Calibration:
        """Parse the output of :meth:`to_json`.

        Raises:
            CheckpointError: the content has another form, or numbers out of range.
        """
        if problem := find_problem("calibration", content, CALIBRATION):
            raise CheckpointError(f"the calibration of the checkpoint is invalid: {problem}")
        scales = tuple((float(age), float(scale)) for age, scale in content.get("scales", ()))
        doubtful = tuple((float(low), float(high), float(least)) for low, high, least in content.get("doubtful", ()))
        return cls(**{**content, "scales": scales, "doubtful": doubtful})


# For checkpoints without a calibration: assume a normal distribution, and always report gender.
UNCALIBRATED = Calibration(interval_scale=Z_90, coverage=COVERAGE, min_confidence=0.5, faces=0)


def read_calibration(content: Any) -> Calibration:
    """Return the calibration from a checkpoint's metadata; :data:`UNCALIBRATED` for None.

    Raises:
        CheckpointError: the content is invalid.
    """
    return UNCALIBRATED if content is None else Calibration.from_json(content)


def calibrate(
    age: Floats, std: Floats, p_female: Floats, labels: Labels, sources: NDArray[Any] | None = None
) -> Calibration:
    """Fit age intervals and gender thresholds to n validation faces.

    Args:
        age: estimates (n,) in years.
        std: standard deviations (n,) of the age distributions, in years.
        p_female: probabilities (n,), 0–1.
        labels: of the same faces. Intervals are fitted to exact ages or, if there are none, to ages drawn uniformly
            from the brackets.
        sources: the dataset (n,) of each face; intervals then have the coverage on each dataset.

    Split-conformal prediction with the normalized residual as score, in bands of the estimated age; see
    :func:`fit_scales`. The coverage is guaranteed on average over faces like these. Source: Lei et al.,
    "Distribution-free predictive inference for regression", JASA 2018.
    """
    scale, scales, faces, basis = UNCALIBRATED.interval_scale, UNCALIBRATED.scales, 0, UNCALIBRATED.basis
    for kind, rows in ((EXACT, labels.exact), (BRACKETS, labels.bracketed)):
        if rows.any():
            ages = _draw_ages(labels.pick(rows))
            scores = np.abs(ages - age[rows]) / np.maximum(std[rows], _MIN_STD)
            overall, scales = fit_scales(age[rows], scores, None if sources is None else sources[rows], COVERAGE)
            scale, faces, basis = float(_round_up(overall)), int(rows.sum()), kind
            break
    known = labels.gendered
    threshold, doubtful = fit_thresholds(age[known], p_female[known], labels.female[known] > 0.5)
    return Calibration(scale, COVERAGE, threshold, faces, basis, scales, doubtful)


def _draw_ages(labels: Labels) -> Floats:
    """Return an age (n,) per label: the exact age, or one drawn uniformly from the bracket."""
    low, high = labels.low.astype(np.float64), labels.high.astype(np.float64)
    return low + (high - low) * np.random.default_rng(0).random(len(low))


def fit_scales(age: Floats, scores: Floats, sources: NDArray[Any] | None, coverage: float) -> tuple[float, Knots]:
    """Return the interval scale of all faces, and (age in years, scale) at the center of each band.

    Args:
        age: estimates (n,) in years.
        scores: absolute residuals (n,) in standard deviations of the model's age distributions.
        sources: the dataset (n,) of each face; each scale is the largest that any dataset requires.
        coverage: the share of scores that must be at most the scale, 0–1.

    Mondrian conformal prediction with shrinkage, then multiplied by a factor that restores the overall coverage.
    Source: Boström & Johansson, "Mondrian conformal regressors", COPA 2020.
    """
    everything = np.ones(len(age), dtype=bool)
    parts = [everything] if sources is None else [sources == name for name in np.unique(sources)]
    # A dataset with only a few faces does not determine a scale.
    large = [part for part in parts if part.sum() >= MIN_BAND_FACES] or [everything]
    fitted = [_fit_source(age[part], scores[part], coverage) for part in large]
    overall = max(scale for scale, _ in fitted)
    return overall, tuple(zip(BAND_CENTERS, np.max([scales for _, scales in fitted], axis=0).tolist(), strict=True))


def _fit_source(age: Floats, scores: Floats, coverage: float) -> tuple[float, Floats]:
    """Return the overall scale and the scale of each band, for the faces of one dataset."""
    overall = compute_quantile(scores, coverage)
    band = assign_bands(age)
    scales = np.full(len(BAND_CENTERS), overall)
    for index in range(len(BAND_CENTERS)):
        inside = scores[band == index]
        if len(inside) >= MIN_BAND_FACES:
            own = compute_quantile(inside, coverage)
            scales[index] = (len(inside) * own + SHRINKAGE * overall) / (len(inside) + SHRINKAGE)
    factor = compute_quantile(scores / np.interp(age, BAND_CENTERS, scales), coverage)
    return overall, _round_up(scales * factor)


def compute_quantile(scores: Floats, coverage: float) -> float:
    """Return the conformal quantile of n scores: the ceil((n + 1) coverage)-th smallest, at most the maximum."""
    rank = min(int(np.ceil((len(scores) + 1) * coverage)), len(scores))
    return float(np.partition(scores, rank - 1)[rank - 1])


def assign_bands(age: Floats) -> Integers:
    """Return the index of the band (n,) that contains each estimate (n,) in years."""
    found: Integers = np.searchsorted(BAND_EDGES[1:-1], age, side="right")
    return found


def fit_thresholds(age: Floats, p_female: Floats, female: Bools) -> tuple[float, Thresholds]:
    """Return the gender threshold, and (low, high, threshold) for age bands that require a higher one.

    Even the labels of infants are guesses. A reported gender must be as reliable for them as for anyone else. A band
    with too few faces to tell is as strict as the stricter of its neighbours.
    """
    # Faces of only one gender do not show how well the two are distinguished.
    if not len(female) or female.all() or not female.any():
        return 1.0, ()
    confidence, correct = np.maximum(p_female, 1 - p_female), (p_female >= 0.5) == female
    threshold = choose_min_confidence(confidence, correct)
    band = assign_bands(age)
    weak = _find_inaccurate_bands(band, correct, confidence >= threshold)
    strong = ~np.isin(band, weak)
    if not weak or not strong.any():
        return threshold, ()
    threshold = choose_min_confidence(confidence[strong], correct[strong])
    known = dict.fromkeys(_find_large_bands(band[confidence >= threshold], MIN_ACCURATE_FACES), threshold)
    known |= {i: find_band_threshold(confidence[band == i], correct[band == i], threshold) for i in weak}
    by_band = fill_small_bands(known, threshold)
    bounds = zip(pairwise(BAND_EDGES), by_band, strict=True)
    return threshold, tuple((float(low), float(high), own) for (low, high), own in bounds if own > threshold)


def fill_small_bands(known: dict[int, float], default: float) -> list[float]:
    """Return a threshold per band: the known one, or the higher of those of the nearest known bands on each side."""
    filled = []
    for band in range(len(BAND_CENTERS)):
        below = max((index for index in known if index <= band), default=None)
        above = min((index for index in known if index >= band), default=None)
        filled.append(max((known[index] for index in (below, above) if index is not None), default=default))
    return filled


def _find_large_bands(band: Integers, least: int) -> list[int]:
    """Return the bands with at least this many faces (n,)."""
    return np.flatnonzero(np.bincount(band, minlength=len(BAND_CENTERS)) >= least).tolist()


def choose_min_confidence(confidence: Floats, correct: Bools) -> float:
    """Return the lowest gender threshold, 0.5–1, at which the reported genders reach the target accuracy.

    If none reaches it, return the threshold at which half of the faces get a gender.

    Args:
        confidence: probability (n,) of the more probable gender.
        correct: whether that gender is correct (n,).
    """
    ordered, named, accuracy = _sort_by_confidence(confidence, correct)
    least = max(1, int(np.ceil(len(ordered) * MIN_NAMED_SHARE)))
    good = np.flatnonzero((accuracy >= TARGET_ACCURACY) & (named >= least))
    if len(good) and good[-1] == len(ordered) - 1:
        return 0.5
    return _round_down(ordered[good[-1] if len(good) else least - 1])


def find_band_threshold(confidence: Floats, correct: Bools, minimum: float) -> float:
    """Return the lowest threshold, at least ``minimum``, at which the genders reported in a band are accurate enough.

    The result is 1, at which gender is never reported, if no threshold leaves enough faces to tell.
    """
    ordered, named, accuracy = _sort_by_confidence(confidence, correct)
    good = np.flatnonzero((accuracy >= TARGET_ACCURACY) & (named >= MIN_NAMED_FACES) & (ordered >= minimum))
    return _round_down(ordered[good[-1]]) if len(good) else 1.0


def _sort_by_confidence(confidence: Floats, correct: Bools) -> tuple[Floats, Integers, Floats]:
    """Return confidences (n,), highest first, the number of faces with at least each, and the accuracy on those."""
    order = np.argsort(-confidence, kind="stable")
    named = np.arange(1, len(order) + 1)
    return confidence[order], named, np.cumsum(correct[order]) / named


def _find_inaccurate_bands(band: Integers, correct: Bools, named: Bools) -> list[int]:
    """Return the bands whose reported genders are significantly below the target accuracy (95 % Wilson interval)."""
    from scipy.stats import binomtest

    weak = []
    for index in _find_large_bands(band[named], MIN_NAMED_FACES):
        inside = named & (band == index)
        bounds = binomtest(int(correct[inside].sum()), int(inside.sum())).proportion_ci(method="wilson")
        if bounds.high < TARGET_ACCURACY:
            weak.append(index)
    return weak


def _round_up(scale: float | Floats) -> Floats:
    """Round to four digits so that the face that determines a scale stays inside its interval."""
    return np.asarray(np.ceil(np.asarray(scale) * 10_000) / 10_000)


def _round_down(threshold: float) -> float:
    """Round to four digits so that the face that determines a threshold is not below it."""
    return float(np.floor(threshold * 10_000) / 10_000)


def bound_ages(age: Floats, std: Floats, calibration: Calibration) -> tuple[Floats, Floats]:
    """Return lower (n,) and upper (n,) bounds in years of calibrated intervals around estimates (n,).

    Args:
        age: estimates (n,) in years.
        std: standard deviations (n,) of the age distributions, in years.
        calibration: of the model.
    """
    half = interpolate_scales(age, calibration) * np.maximum(std, _MIN_STD)
    return np.clip(age - half, 0, MAX_AGE), np.clip(age + half, 0, MAX_AGE)


def compute_sigma(age: Floats, std: Floats, calibration: Calibration) -> Floats:
    """Return the standard deviation (n,) in years of a normal distribution whose 90 % intervals are the calibrated."""
    return np.asarray(interpolate_scales(age, calibration) * np.maximum(std, _MIN_STD) / Z_90)


def interpolate_scales(age: Floats, calibration: Calibration) -> Floats | float:
    """Return half the width of intervals in standard deviations: (n,) by estimated age, or one number for all."""
    if not calibration.scales:
        return calibration.interval_scale
    ages, scales = zip(*calibration.scales, strict=True)
    return np.asarray(np.interp(age, ages, scales), dtype=np.float64)


def compute_probability_under(limit: float, age: float, sigma: float) -> float:
    """Return P(age < limit), 0–1, from an estimate and its calibrated sigma, both in years.

    Ages are completed years: a person under 18 is at most 17, so the boundary is half a year below the limit.
    """
    return float(0.5 * (1 + math.erf((limit - 0.5 - age) / (sigma * math.sqrt(2)))))


def choose_thresholds(age: Floats, calibration: Calibration) -> Floats:
    """Return the gender threshold (n,) of each face by its estimated age (n,) in years."""
    thresholds = np.full(len(age), calibration.min_confidence)
    for low, high, least in calibration.doubtful:
        thresholds[(age >= low) & (age < high)] = max(least, calibration.min_confidence)
    return thresholds
