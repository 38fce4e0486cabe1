"""Calibration on the validation split: conformal age intervals, and the thresholds below which gender is uncertain."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import MAX_AGE, Labels
from agegen.errors import CheckpointError
from agegen.files import Check, Limits, Schema, ShortText, find_mismatch

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]
# What checkpoints may hold: an age in years, an interval scale, and a gender threshold.
_Age = Annotated[float, Limits(0, 200)]
_Scale = Annotated[float, Limits(0, 1000)]
_Threshold = Annotated[float, Limits(0.5, 1)]
_SHORT = Check("a list of at most 1000", lambda value: isinstance(value, list | tuple) and len(value) <= 1000)
Knots = Annotated[tuple[tuple[_Age, _Scale], ...], _SHORT]
Thresholds = Annotated[tuple[tuple[_Age, _Age, _Threshold], ...], _SHORT]

# The share of ages that intervals are to contain. 90 % is common in the literature: a promise that means something,
# with intervals that are still narrow enough to be useful.
COVERAGE = 0.90
# Half the width of the central 90 % of a normal distribution, in standard deviations.
Z_90 = 1.645
# The confidence with which the validation faces must show that the coverage and the accuracy of gender are reached. A
# share measured on few faces is often higher than the true one: of 40 faces, 39 may be right by luck.
CONFIDENCE = 0.95
# The labels that intervals were fitted to: values of `Calibration.basis`.
EXACT, BRACKETS = "exact ages", "brackets of ages"
# If all of fewer than 9 scores are inside the intervals, the expected coverage is below 90 % …
MIN_CONFORMAL_FACES = 9
# … and if all of fewer than 29 are, it may be below 90 % with more than 5 % probability.
MIN_INTERVAL_FACES = 29
# Gender is reported where the lower confidence bound of the accuracy of the reported genders reaches this share …
TARGET_ACCURACY = 0.97
# … or, where no threshold reaches it, only from this probability on.
NEAR_CERTAINTY = 0.99
# How a gender threshold was chosen: values of `Calibration.gender_basis`.
PROVEN, UNPROVEN = "accuracy bound", "near certainty"
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
# Into so many parts faces are divided where some determine scales and the others measure how far these suffice.
_SCALE_FOLDS = 5
# In years. Prevents an interval of zero width when nearly all probability is on one age.
_MIN_STD = 0.5
# The interval scale of a model without enough validation faces: intervals contain all ages.
_WHOLE_RANGE = MAX_AGE / _MIN_STD


@dataclass(frozen=True)
class Calibration(Schema, others=None):
    """The uncertainty of a model, as measured on a validation split.

    Attributes:
        interval_scale: half the width of an age interval, in standard deviations of the model's age distribution.
        coverage: the share of faces, 0–1, whose age is inside such intervals.
        min_confidence: the gender threshold, 0.5–1: gender is reported if its probability is at least this; at 1 it
            is never reported.
        faces: the number of faces that the intervals were fitted to, and ``basis`` whether they had exact ages or
            brackets.
        scales: (age in years, scale) pairs, between which the interval scale is interpolated; () uses
            ``interval_scale`` at all ages.
        doubtful: (low, high, threshold) for estimated ages from low to below high with a higher gender threshold than
            ``min_confidence``; at 1 gender is never reported.
        knows_age: whether the training had labels of ages; without them, no age is reported.
        gender_basis: :data:`PROVEN` if the validation faces show the target accuracy, :data:`UNPROVEN` if they do not;
            "" in older checkpoints, whose observed accuracy reached it.
    """

    interval_scale: _Scale
    coverage: Annotated[float, Limits(0, 1)]
    min_confidence: _Threshold
    faces: Annotated[int, Limits(0, 2**53)]
    basis: ShortText = EXACT
    scales: Knots = ()
    doubtful: Thresholds = ()
    knows_age: bool = True
    gender_basis: ShortText = ""

    def to_json(self) -> dict[str, Any]:
        """Return the form that checkpoints store: without ``knows_age`` where it is true, as older ones."""
        return {name: value for name, value in asdict(self).items() if name != "knows_age" or not value}

    @classmethod
    def from_json(cls, content: Any) -> Calibration:
        """Parse the output of :meth:`to_json`.

        Raises:
            CheckpointError: the content has another form, or numbers out of range.
        """
        if problem := find_mismatch(content, cls, "calibration"):
            raise CheckpointError(f"the calibration of the checkpoint is invalid: {problem}")
        rows = {name: tuple(map(tuple, content.get(name, ()))) for name in ("scales", "doubtful")}
        return cls(**content | rows)


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
    :func:`fit_scales`. With 95 % confidence, the intervals have at least the coverage on faces like these. Sources:
    Lei et al., "Distribution-free predictive inference for regression", JASA 2018; Vovk, "Conditional validity of
    inductive conformal predictors", ACML 2012.
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
    threshold, doubtful, shown = fit_thresholds(age[known], p_female[known], labels.female[known] > 0.5)
    return Calibration(scale, COVERAGE, threshold, faces, basis, scales, doubtful, gender_basis=shown)


def describe_weaknesses(calibration: Calibration, faces: str = "validation faces") -> list[str]:
    """Return a sentence for each promise about intervals and gender that too few faces leave open.

    ``faces``: what to call those that the calibration was fitted to.
    """
    lines = []
    if 0 < calibration.faces < MIN_INTERVAL_FACES:
        width = "; they contain all ages" if calibration.faces < MIN_CONFORMAL_FACES else ""
        lines.append(
            f"{calibration.faces} {faces} with an age are too few to show that the intervals contain "
            f"{calibration.coverage:.0%} of the ages ({MIN_INTERVAL_FACES} are needed){width}"
        )
    if calibration.gender_basis == UNPROVEN:
        limit = calibration.min_confidence
        lines.append(
            f"the {faces} do not show that {TARGET_ACCURACY:.0%} of the reported genders are correct (the "
            f"model is too inaccurate, or they are fewer than {MIN_ACCURATE_FACES}): gender is "
            + ("never reported" if limit >= 1 else f"reported only from a probability of {limit:g} on")
        )
    return lines


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
    if len(age) < MIN_CONFORMAL_FACES:
        return _WHOLE_RANGE, np.full(len(BAND_CENTERS), _WHOLE_RANGE)
    # Divided by scales that other faces determined: those that fitted the scales themselves seem to need less.
    normalized, folds = np.empty(len(age)), np.arange(len(age)) % _SCALE_FOLDS
    for fold in range(_SCALE_FOLDS):
        held, rest = folds == fold, folds != fold
        normalized[held] = scores[held] / np.interp(
            age[held], BAND_CENTERS, _fit_bands(age[rest], scores[rest], coverage)
        )
    scales = _fit_bands(age, scores, coverage) * bound_quantile(normalized, coverage)
    return bound_quantile(scores, coverage), _round_up(np.minimum(scales, _WHOLE_RANGE))


def _fit_bands(age: Floats, scores: Floats, coverage: float) -> Floats:
    """Return the relative scale of each band: its own quantile, shrunk towards that of all faces."""
    overall = compute_quantile(scores, coverage)
    band = assign_bands(age)
    scales = np.full(len(BAND_CENTERS), overall)
    for index in range(len(BAND_CENTERS)):
        inside = scores[band == index]
        if len(inside) >= MIN_BAND_FACES:
            own = compute_quantile(inside, coverage)
            scales[index] = (len(inside) * own + SHRINKAGE * overall) / (len(inside) + SHRINKAGE)
    return scales


def compute_quantile(scores: Floats, coverage: float) -> float:
    """Return the conformal quantile of n scores: the ceil((n + 1) coverage)-th smallest, at most the maximum."""
    rank = min(int(np.ceil((len(scores) + 1) * coverage)), len(scores))
    return float(np.partition(scores, rank - 1)[rank - 1])


def bound_quantile(scores: Floats, coverage: float) -> float:
    """Return the scale that covers a share of all scores, of which these n are a sample, with 95 % confidence.

    The maximum if n is too small for that.
    """
    rank = choose_rank(len(scores), coverage)
    return float(np.partition(scores, rank - 1)[rank - 1])


def choose_rank(n: int, coverage: float) -> int:
    """Return k, at most n: with 95 % confidence, the k-th smallest of n scores covers a share of all scores."""
    from scipy.stats import binom

    return min(int(binom.ppf(CONFIDENCE, n, coverage)) + 1, n)


def assign_bands(age: Floats) -> Integers:
    """Return the index of the band (n,) that contains each estimate (n,) in years."""
    found: Integers = np.searchsorted(BAND_EDGES[1:-1], age, side="right")
    return found


def fit_thresholds(age: Floats, p_female: Floats, female: Bools) -> tuple[float, Thresholds, str]:
    """Return the gender threshold, (low, high, threshold) for age bands that require a higher one, and the basis.

    Even the labels of infants are guesses. A reported gender must be as reliable for them as for anyone else. A band
    with too few faces to tell is as strict as the stricter of its neighbours.
    """
    # Faces of only one gender do not show how well the two are distinguished.
    if not len(female) or female.all() or not female.any():
        return 1.0, (), UNPROVEN
    confidence, correct = np.maximum(p_female, 1 - p_female), (p_female >= 0.5) == female
    threshold, basis = choose_min_confidence(confidence, correct)
    band = assign_bands(age)
    weak = _find_inaccurate_bands(band, correct, confidence >= min(threshold, NEAR_CERTAINTY))
    strong = ~np.isin(band, weak)
    if not weak or not strong.any():
        return threshold, (), basis
    threshold, basis = choose_min_confidence(confidence[strong], correct[strong])
    known = dict.fromkeys(_find_large_bands(band[confidence >= threshold], MIN_ACCURATE_FACES), threshold)
    for index in weak:
        inside = band == index
        known[index] = find_accurate_threshold(confidence[inside], correct[inside], threshold) or 1.0
    by_band = fill_small_bands(known, threshold)
    bounds = zip(pairwise(BAND_EDGES), by_band, strict=True)
    return threshold, tuple((float(low), float(high), own) for (low, high), own in bounds if own > threshold), basis


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


def choose_min_confidence(confidence: Floats, correct: Bools) -> tuple[float, str]:
    """Return a gender threshold, 0.5–1, and its basis.

    The lowest threshold that is shown to reach the target accuracy; otherwise near certainty or, if the reported
    genders are less accurate even there, 1.

    Args:
        confidence: probability (n,) of the more probable gender.
        correct: whether that gender is correct (n,).
    """
    threshold = find_accurate_threshold(confidence, correct)
    if threshold is not None:
        return threshold, PROVEN
    certain = correct[confidence >= NEAR_CERTAINTY]
    return (1.0 if len(certain) and certain.mean() < TARGET_ACCURACY else NEAR_CERTAINTY), UNPROVEN


def find_accurate_threshold(confidence: Floats, correct: Bools, minimum: float = 0.5) -> float | None:
    """Return the lowest gender threshold, ``minimum``–1, that is shown to reach the target accuracy; None without one.

    Shown: the one-sided 95 % Clopper–Pearson bound of the accuracy is at least the target. It never has less than its
    confidence, unlike Wilson's, which for accuracies near 1 has. In simulated trainings with 300 to 4,000 faces, at
    most 5 % of the thresholds that were chosen this way missed the target, although many thresholds are tried.
    """
    # Rounded down to four digits, as it is stored; a threshold of 1 would mean that gender is never reported.
    rounded = np.minimum(np.floor(confidence * 10_000) / 10_000, 0.9999)
    order = np.argsort(-rounded, kind="stable")
    ordered, named = rounded[order], np.arange(1, len(order) + 1)
    # All faces with one confidence are reported together.
    last = np.append(ordered[1:] < ordered[:-1], True)
    accurate = bound_accuracy(np.cumsum(correct[order]), named) >= TARGET_ACCURACY
    good = np.flatnonzero(accurate & last & (ordered >= minimum))
    if not len(good):
        return None
    return minimum if good[-1] == len(ordered) - 1 else float(ordered[good[-1]])


def bound_accuracy(right: Integers, n: Integers) -> Floats:
    """Return the lower 95 % confidence bound (m,) of an accuracy, 0–1, ``right`` (m,) of n (m,) correct."""
    from scipy.stats import beta

    # 0 of n: the bound is 0, for which the distribution is not defined.
    bounds = beta.ppf(1 - CONFIDENCE, np.maximum(right, 1), n - right + 1)
    return np.where(right > 0, bounds, 0.0)


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
    return np.array([choose_threshold(value, calibration) for value in age.tolist()], dtype=np.float64)


def choose_threshold(age: float, calibration: Calibration) -> float:
    """Return the gender threshold of a face by its estimated age in years."""
    least = [least for low, high, least in calibration.doubtful if low <= age < high]
    return float(max([calibration.min_confidence, *least[-1:]]))
