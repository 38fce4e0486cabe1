"""Likely label errors: faces whose labels a trained model contradicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.labels import Labels, format_age, format_gender
from agegen.evaluate.estimates import Estimates
from agegen.evaluate.evaluation import describe_swapped_genders
from agegen.model.calibration import Calibration, interpolate_scales

# A label is an issue if the age is outside the estimate by more than so many half-widths of its 90 % interval …
_MAX_WIDTHS = 2.0
# … and by more than so many years, however certain the model is,
_MIN_YEARS = 15.0
# or if the model gives the gender a lower probability than this.
_MIN_PROBABILITY = 0.02


@dataclass(frozen=True)
class LabelIssue:
    """A face whose label a model contradicts, with the estimate; a label with a higher ``score`` is likelier wrong.

    A score of 1 is at the limit of what is reported.
    """

    path: str
    age: str
    gender: str
    estimated_age: float
    p_female: float
    score: float
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form, with the score as ``doubt``."""
        return {
            "path": self.path,
            "age": self.age,
            "gender": self.gender,
            "estimated_age": self.estimated_age,
            "p_female": self.p_female,
            "doubt": self.score,
            "reason": self.reason,
        }


def find_label_issues(
    estimates: Estimates, labels: Labels, paths: NDArray[Any], calibration: Calibration
) -> tuple[list[LabelIssue], list[str]]:
    """Return the faces whose labels a model contradicts, likeliest errors first, and notices.

    If the genders look swapped as a whole, that is the notice, and no single gender is an issue. A model contradicts
    fewer labels of faces that it was trained on.

    Args:
        estimates: of N faces.
        labels: of the same faces.
        paths: of the same faces, (N,).
        calibration: of the model.
    """
    widths = _measure_age_gaps(estimates, labels, calibration)
    believed = np.where(labels.female > 0.5, estimates.p_female, 1 - estimates.p_female)
    known = believed[labels.gendered]
    swapped = describe_swapped_genders(float((known >= 0.5).mean()) if len(known) else 1.0, len(known))
    # Unknown genders cannot be wrong.
    believed = np.where(labels.gendered & (not swapped), believed, 1.0)
    scores = np.maximum(widths / _MAX_WIDTHS, np.log(believed + 1e-9) / np.log(_MIN_PROBABILITY))
    issues = [
        LabelIssue(
            path=str(paths[row]),
            age=format_age(labels.low[row], labels.high[row]),
            gender=format_gender(labels.female[row]),
            estimated_age=round(float(estimates.age[row]), 1),
            p_female=round(float(estimates.p_female[row]), 4),
            score=round(float(scores[row]), 3),
            reason=_explain(labels, row, float(estimates.age[row]), float(widths[row]), float(believed[row])),
        )
        for row in np.flatnonzero((widths > _MAX_WIDTHS) | (believed < _MIN_PROBABILITY)).tolist()
    ]
    return sorted(issues, key=lambda issue: (-issue.score, issue.path)), swapped


def _measure_age_gaps(estimates: Estimates, labels: Labels, calibration: Calibration) -> NDArray[np.float64]:
    """Return how far the labelled ages are from the estimates (N,), in half-widths of the intervals; 0 if unknown."""
    half = np.maximum(interpolate_scales(estimates.age, calibration) * estimates.spread, _MIN_YEARS / _MAX_WIDTHS)
    outside = np.maximum(np.maximum(labels.low - estimates.age, estimates.age - labels.high), 0)
    return np.asarray(np.nan_to_num(outside) / half, dtype=np.float64)


def _explain(labels: Labels, row: int, estimated_age: float, widths: float, believed: float) -> str:
    reasons = []
    if widths > _MAX_WIDTHS:
        reasons.append(f"labelled {format_age(labels.low[row], labels.high[row])}, estimated {estimated_age:.0f}")
    if believed < _MIN_PROBABILITY:
        reasons.append(f"labelled {format_gender(labels.female[row])}, estimated probability {100 * believed:.1f} %")
    return "; ".join(reasons)
