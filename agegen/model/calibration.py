"""Calibration on the validation split: intervals that cover what they promise, and when to say "uncertain"."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import MAX_AGE
from agegen.errors import CheckpointError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

COVERAGE = 0.90

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
        faces: that this was measured on.
    """

    interval_scale: float
    coverage: float
    min_confidence: float
    faces: int

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


def calibrate(age: Floats, spread: Floats, p_female: Floats, true_age: Floats, female: Bools) -> Calibration:
    """Calibrate on n validation faces.

    Args:
        age: estimates (n,) in years, and ``spread`` (n,) the standard deviation of each age distribution.
        p_female: (n,), 0–1.
        true_age: labels (n,) in years, and ``female`` (n,).

    Split-conformal prediction with the normalised residual as score. Source: Lei et al., "Distribution-free
    predictive inference for regression", JASA 2018. The guarantee holds on average over faces like those.
    """
    scores = np.sort(np.abs(true_age - age) / np.maximum(spread, _LEAST_SPREAD))
    rank = min(int(np.ceil((len(scores) + 1) * COVERAGE)), len(scores))
    confidence = np.maximum(p_female, 1 - p_female)
    threshold = choose_min_confidence(confidence, (p_female >= 0.5) == female)
    return Calibration(round(float(scores[rank - 1]), 4), COVERAGE, threshold, len(scores))


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
