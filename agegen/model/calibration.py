"""Calibration on the validation split: intervals that cover what they promise, and when to say "uncertain"."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import MAX_AGE, Labels
from agegen.errors import CheckpointError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Knots = tuple[tuple[float, float], ...]

# Bands of estimated ages in years; childhood, where faces change fastest, is told apart more finely.
EDGES = (0, 3, 10, 20, 30, 40, 50, 60, 70, 80, 117)
# The middles, between which scales are interpolated; of the last band, where most of its faces are.
MIDDLES = tuple((low + high) / 2 for low, high in pairwise(EDGES[:-1])) + (85.0,)
# A band's scale is drawn towards that of all faces as if so many of them lay in it: of 100 faces the 90th percentile is
# known to a tenth of itself.
SHRINKAGE = 30
# Of fewer faces, a 90th percentile is all but the greatest.
MIN_BAND_FACES = 20
# Named faces, of which "97 % are right" can be told from 90 %.
MIN_NAMED_FACES = 30


def compute_quantile(scores: Floats, share: float) -> float:
    """Return the conformal quantile of n scores: the ceil((n + 1) share)-th smallest, at most the greatest."""
    rank = min(int(np.ceil((len(scores) + 1) * share)), len(scores))
    return float(np.partition(scores, rank - 1)[rank - 1])


def fit_scales(age: Floats, scores: Floats, sources: NDArray[Any] | None, share: float) -> tuple[float, Knots]:
    """Return the scale of all faces, and that at each band's middle: (age in years, scale).

    Args:
        age: estimates (n,) in years.
        scores: (n,), residuals in spreads of the model's own distributions.
        sources: the data set (n,) of each face; the scale is the greatest of what each set needs.
        share: of the scores that are to lie below the scale, 0–1.

    Mondrian conformal prediction with shrinkage, then a factor by which the whole holds as well. Source: Boström &
    Johansson, "Mondrian conformal regressors", COPA 2020.
    """
    parts = [np.ones(len(age), dtype=bool)] if sources is None else [sources == name for name in np.unique(sources)]
    # A data set of a handful of faces says nothing of its own.
    large = [part for part in parts if part.sum() >= MIN_BAND_FACES] or [np.ones(len(age), dtype=bool)]
    fitted = [_fit_source(age[part], scores[part], share) for part in large]
    whole = max(scale for scale, _ in fitted)
    return whole, tuple(zip(MIDDLES, np.max([scales for _, scales in fitted], axis=0).tolist(), strict=True))


def _fit_source(age: Floats, scores: Floats, share: float) -> tuple[float, Floats]:
    whole = compute_quantile(scores, share)
    band = assign_bands(age)
    scales = np.full(len(MIDDLES), whole)
    for index in range(len(MIDDLES)):
        inside = scores[band == index]
        if len(inside) >= MIN_BAND_FACES:
            own = compute_quantile(inside, share)
            scales[index] = (len(inside) * own + SHRINKAGE * whole) / (len(inside) + SHRINKAGE)
    factor = compute_quantile(scores / np.interp(age, MIDDLES, scales), share)
    # Rounded up: the faces that set a scale stay inside.
    return whole, np.ceil(scales * factor * 10_000) / 10_000


def assign_bands(age: Floats) -> NDArray[np.int64]:
    """Return the index of the band (n,) in which each estimate lies."""
    found: NDArray[np.int64] = np.searchsorted(EDGES[1:-1], age, side="right")
    return found


def find_inaccurate_bands(age: Floats, confidence: Floats, right: Bools, threshold: float, wanted: float) -> list[int]:
    """Return the bands in which genders named from a threshold on are right clearly less often than wanted."""
    from scipy.stats import binomtest

    band, named = assign_bands(age), confidence >= threshold
    weak = []
    for index in range(len(MIDDLES)):
        inside = named & (band == index)
        if (count := int(inside.sum())) >= MIN_NAMED_FACES:
            bounds = binomtest(int(right[inside].sum()), count).proportion_ci(method="wilson")
            if bounds.high < wanted:
                weak.append(index)
    return weak


def find_band_threshold(confidence: Floats, right: Bools, least: float, wanted: float) -> float:
    """Return the lowest threshold from ``least`` on at which those named are right as often as wanted.

    1, which names nobody, where there is none with enough faces to tell.
    """
    order = np.argsort(-confidence, kind="stable")
    named = np.arange(1, len(order) + 1)
    accuracy = np.cumsum(right[order]) / named
    good = np.flatnonzero((accuracy >= wanted) & (named >= MIN_NAMED_FACES) & (confidence[order] >= least))
    return float(np.floor(confidence[order[good[-1]]] * 10_000) / 10_000) if len(good) else 1.0


# What the field reports; wide enough to mean something, narrow enough to be of use.
COVERAGE = 0.90
# What intervals are fitted to.
EXACT, BRACKETS = "exact ages", "brackets of ages"
# Gender is named where, on validation, at least this share of those named was right.
TARGET_ACCURACY = 0.97
# … but at least this share of all faces is named, however bad the model is.
MIN_NAMED_SHARE = 0.5
# Half the width, in standard deviations, of a normal distribution's central 90 %.
NORMAL = 1.645
# Years: keeps a distribution that is all but one spike from promising an interval of no width.
_LEAST_SPREAD = 0.5


@dataclass(frozen=True)
class Calibration:
    """What a validation split says of a model's certainty.

    Attributes:
        interval_scale: half the width of an interval, in spreads of the age distribution.
        coverage: the share of faces, 0–1, whose age such intervals contain.
        min_confidence: the probability of the likelier gender, 0.5–1, from which on it is named.
        faces: whose ages the intervals were fitted to; ``basis`` says whether these were exact or brackets.
        scales: (age, scale) at some estimated ages in years, between which ``interval_scale`` changes; () for one scale
            at all ages.
        doubtful: (low, high, threshold) for estimated ages from low to under high, where gender is named from another
            threshold on; 1 names nobody.
    """

    interval_scale: float
    coverage: float
    min_confidence: float
    faces: int
    basis: str = "exact ages"
    scales: Knots = ()
    doubtful: tuple[tuple[float, float, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the form that checkpoints hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Calibration:
        """Read what :meth:`to_json` gives.

        Raises:
            CheckpointError: it has another form, or numbers out of range.
        """
        try:
            read = cls(**content)
            scales = tuple((float(age), float(scale)) for age, scale in read.scales)
            doubtful = tuple((float(low), float(high), float(least)) for low, high, least in read.doubtful)
            read = replace(read, scales=scales, doubtful=doubtful)
            sound = 0 <= read.interval_scale < 1000 and 0 < read.coverage < 1 and 0.5 <= read.min_confidence <= 1
            sound = sound and all(0 <= scale < 1000 for _, scale in scales)
            sound = sound and all(0.5 <= least <= 1 for *_, least in doubtful)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the calibration of the checkpoint can't be read: {error}") from error
        if not sound:
            raise CheckpointError("the calibration of the checkpoint has numbers out of range")
        return read


# For checkpoints that were never calibrated: the distribution taken for a normal one, and gender always named.
UNCALIBRATED = Calibration(interval_scale=NORMAL, coverage=COVERAGE, min_confidence=0.5, faces=0)


def read_calibration(content: Any) -> Calibration:
    """Return the calibration that a checkpoint holds; :data:`UNCALIBRATED` where it holds None.

    Raises:
        CheckpointError: it has another form.
    """
    return UNCALIBRATED if content is None else Calibration.from_json(content)


def calibrate(
    age: Floats, spread: Floats, p_female: Floats, labels: Labels, sources: NDArray[Any] | None = None
) -> Calibration:
    """Calibrate on n validation faces.

    Args:
        age: estimates (n,) in years, and ``spread`` (n,) the standard deviation of each age distribution.
        p_female: (n,), 0–1.
        labels: of the same faces. Intervals are fitted to exact ages; where there are none, to ages drawn evenly
            from the brackets.
        sources: the data set (n,) of each face; intervals hold on each.

    Split-conformal prediction with the normalised residual as score, by bands of the estimated age. Source: Lei et
    al., "Distribution-free predictive inference for regression", JASA 2018; see :func:`fit_scales`.
    The guarantee holds on average over faces like those.
    """
    scale, scales, faces, basis = UNCALIBRATED.interval_scale, UNCALIBRATED.scales, 0, UNCALIBRATED.basis
    for kind, rows in ((EXACT, labels.exact), (BRACKETS, labels.bracketed)):
        if rows.any():
            ages = _draw_ages(labels.pick(rows))
            scores = np.abs(ages - age[rows]) / np.maximum(spread[rows], _LEAST_SPREAD)
            whole, scales = fit_scales(age[rows], scores, None if sources is None else sources[rows], COVERAGE)
            # Rounded up: the face that set the scale stays inside.
            scale, faces, basis = float(np.ceil(whole * 10_000) / 10_000), int(rows.sum()), kind
            break
    known = labels.gendered
    threshold, doubtful = _fit_thresholds(age[known], p_female[known], labels.female[known] > 0.5)
    return Calibration(scale, COVERAGE, threshold, faces, basis, scales, doubtful)


def _draw_ages(labels: Labels) -> Floats:
    """Return an age (n,) per label: the exact one, or one drawn evenly from its bracket."""
    low, high = labels.low.astype(np.float64), labels.high.astype(np.float64)
    return low + (high - low) * np.random.default_rng(0).random(len(low))


def _fit_thresholds(
    age: Floats, p_female: Floats, female: Bools
) -> tuple[float, tuple[tuple[float, float, float], ...]]:
    """Return the threshold from which on gender is named, and those of estimated ages at which that isn't enough.

    Of infants the labels themselves are guesses: a gender that is named must be as right there as anywhere.
    """
    # From faces of one gender nothing can be learnt of how well two are told apart.
    if not len(female) or female.all() or not female.any():
        return 1.0, ()
    confidence, right = np.maximum(p_female, 1 - p_female), (p_female >= 0.5) == female
    threshold = choose_min_confidence(confidence, right)
    weak = find_inaccurate_bands(age, confidence, right, threshold, TARGET_ACCURACY)
    band = assign_bands(age)
    strong = ~np.isin(band, weak)
    if not weak or not strong.any():
        return threshold, ()
    threshold = choose_min_confidence(confidence[strong], right[strong])
    doubtful = []
    for index in weak:
        inside = band == index
        own = find_band_threshold(confidence[inside], right[inside], threshold, TARGET_ACCURACY)
        doubtful.append((float(EDGES[index]), float(EDGES[index + 1]), own))
    return threshold, tuple(doubtful)


def choose_min_confidence(confidence: Floats, right: Bools) -> float:
    """Return the lowest threshold, 0.5–1, at which those named are right as often as wanted.

    Where none is, the threshold at which half of the faces (confidence and rightness (n,)) are named.
    """
    order = np.argsort(-confidence, kind="stable")
    named = np.arange(1, len(order) + 1)
    accuracy = np.cumsum(right[order]) / named
    least = max(1, int(np.ceil(len(order) * MIN_NAMED_SHARE)))
    good = np.flatnonzero((accuracy >= TARGET_ACCURACY) & (named >= least))
    if len(good) and good[-1] == len(order) - 1:
        return 0.5
    last = int(good[-1]) if len(good) else least - 1
    # Rounded down, so that the face that set the threshold stays above it.
    return float(np.floor(confidence[order[last]] * 10_000) / 10_000)


def bound_ages(
    age: Floats, spread: Floats, calibration: Calibration
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds (n,), (n,) in years of calibrated intervals around estimates (n,)."""
    half = interpolate_scales(age, calibration) * np.maximum(spread, _LEAST_SPREAD)
    return np.clip(age - half, 0, MAX_AGE), np.clip(age + half, 0, MAX_AGE)


def compute_sigma(age: Floats, spread: Floats, calibration: Calibration) -> Floats:
    """Return the standard deviation (n,) in years of a normal distribution with the calibrated intervals."""
    return np.asarray(interpolate_scales(age, calibration) * np.maximum(spread, _LEAST_SPREAD) / NORMAL)


def compute_probability_under(limit: float, age: float, sigma: float) -> float:
    """Return P(age < limit), 0–1, of an estimate and the calibrated sigma, both in years.

    Ages count completed years: who is under 18 is 17 at most, and half a year lies between 17 and 18.
    """
    return float(0.5 * (1 + math.erf((limit - 0.5 - age) / (sigma * math.sqrt(2)))))


def interpolate_scales(age: Floats, calibration: Calibration) -> Floats | float:
    """Return half the width of an interval in spreads, (n,) by the estimate or one for all."""
    if not calibration.scales:
        return calibration.interval_scale
    ages, scales = zip(*calibration.scales, strict=True)
    return np.asarray(np.interp(age, ages, scales), dtype=np.float64)


def choose_thresholds(age: Floats, calibration: Calibration) -> Floats:
    """Return from which probability on the gender of each face (n,) is named, by its estimated age in years."""
    thresholds = np.full(len(age), calibration.min_confidence)
    for low, high, least in calibration.doubtful:
        thresholds[(age >= low) & (age < high)] = max(least, calibration.min_confidence)
    return thresholds
