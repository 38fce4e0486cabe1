"""Calibration on the validation split: intervals that cover what they promise, and when to say "uncertain"."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import MAX_AGE, Labels
from agegen.errors import CheckpointError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# What the field reports; wide enough to mean something, narrow enough to be of use.
COVERAGE = 0.90
# What intervals are fitted to.
EXACT, BRACKETS = "exact ages", "brackets of ages"
# Gender is named where, on validation, at least this share of those named was right.
WANTED_ACCURACY = 0.97
# … but at least this share of all faces is named, however bad the model is.
LEAST_NAMED = 0.5
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
    """

    interval_scale: float
    coverage: float
    min_confidence: float
    faces: int
    basis: str = "exact ages"

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
            sound = 0 <= read.interval_scale < 1000 and 0 < read.coverage < 1 and 0.5 <= read.min_confidence <= 1
        except TypeError as error:
            raise CheckpointError(f"the calibration of the checkpoint can't be read: {error}") from error
        if not sound:
            raise CheckpointError("the calibration of the checkpoint has numbers out of range")
        return read


# For checkpoints that were never calibrated: the distribution taken for a normal one, and gender always named.
UNCALIBRATED = Calibration(interval_scale=1.645, coverage=COVERAGE, min_confidence=0.5, faces=0)


def read_calibration(content: Any) -> Calibration:
    """Return the calibration that a checkpoint holds; :data:`UNCALIBRATED` where it holds None.

    Raises:
        CheckpointError: it has another form.
    """
    return UNCALIBRATED if content is None else Calibration.from_json(content)


def calibrate(age: Floats, spread: Floats, p_female: Floats, labels: Labels) -> Calibration:
    """Calibrate on n validation faces.

    Args:
        age: estimates (n,) in years, and ``spread`` (n,) the standard deviation of each age distribution.
        p_female: (n,), 0–1.
        labels: of the same faces. Intervals are fitted to exact ages; where there are none, to ages drawn evenly
            from the brackets.

    Split-conformal prediction with the normalised residual as score. Source: Lei et al., "Distribution-free
    predictive inference for regression", JASA 2018. The guarantee holds on average over faces like those.
    """
    scale, faces, basis = UNCALIBRATED.interval_scale, 0, UNCALIBRATED.basis
    for kind, rows in ((EXACT, labels.exact), (BRACKETS, labels.bracketed)):
        if rows.any():
            ages = _draw_ages(labels.pick(rows))
            scale, faces, basis = _fit_scale(np.abs(ages - age[rows]), spread[rows]), int(rows.sum()), kind
            break
    known = labels.gendered
    return Calibration(scale, COVERAGE, _fit_threshold(p_female[known], labels.female[known] > 0.5), faces, basis)


def _draw_ages(labels: Labels) -> Floats:
    """Return an age (n,) per label: the exact one, or one drawn evenly from its bracket."""
    low, high = labels.low.astype(np.float64), labels.high.astype(np.float64)
    return low + (high - low) * np.random.default_rng(0).random(len(low))


def _fit_scale(residuals: Floats, spread: Floats) -> float:
    scores = np.sort(residuals / np.maximum(spread, _LEAST_SPREAD))
    rank = min(int(np.ceil((len(scores) + 1) * COVERAGE)), len(scores))
    # Rounded up: the face that set the scale stays inside.
    return float(np.ceil(scores[rank - 1] * 10_000) / 10_000)


def _fit_threshold(p_female: Floats, female: Bools) -> float:
    # From faces of one gender nothing can be learnt of how well two are told apart.
    if not len(female) or female.all() or not female.any():
        return 1.0
    return choose_min_confidence(np.maximum(p_female, 1 - p_female), (p_female >= 0.5) == female)


def choose_min_confidence(confidence: Floats, right: Bools) -> float:
    """Return the lowest threshold, 0.5–1, at which those named are right as often as wanted.

    Where none is, the threshold at which half of the faces (confidence and rightness (n,)) are named.
    """
    order = np.argsort(-confidence, kind="stable")
    named = np.arange(1, len(order) + 1)
    accuracy = np.cumsum(right[order]) / named
    least = max(1, int(np.ceil(len(order) * LEAST_NAMED)))
    good = np.flatnonzero((accuracy >= WANTED_ACCURACY) & (named >= least))
    if len(good) and good[-1] == len(order) - 1:
        return 0.5
    last = int(good[-1]) if len(good) else least - 1
    # Rounded down, so that the face that set the threshold stays above it.
    return float(np.floor(confidence[order[last]] * 10_000) / 10_000)


def bound_ages(
    age: Floats, spread: Floats, calibration: Calibration
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds (n,), (n,) in years of calibrated intervals around estimates (n,)."""
    half = calibration.interval_scale * np.maximum(spread, _LEAST_SPREAD)
    return np.clip(age - half, 0, MAX_AGE), np.clip(age + half, 0, MAX_AGE)
