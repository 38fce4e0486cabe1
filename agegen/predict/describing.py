"""From what a model says of crops to the rows that are written: rounding, thresholds, the file's own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agegen.faces.face import DetectedFace
from agegen.model.calibration import Calibration, choose_thresholds
from agegen.predict.cutting import Cut
from agegen.predict.results import NO_FACE, OK, UNREADABLE, FaceEstimate, FacePrediction, PhotoPrediction, choose_gender

# Found by somebody else's detector, and given with --boxes.
GIVEN = "given"


@dataclass(frozen=True)
class Describer:
    """Describes faces in the words of one model and detector.

    ``asked`` is the probability from which on gender is named, None as the model says; ``under`` are the ages for which
    P(age < that) was asked.
    """

    model: str
    detector: str
    calibration: Calibration
    asked: float | None = None
    under: tuple[int, ...] = ()

    def describe(self, cut: Cut, estimates: Sequence[FaceEstimate]) -> PhotoPrediction:
        """Return what was found in a photograph, given an estimate for each of its crops."""
        status = UNREADABLE if cut.reason is not None else OK if estimates else NO_FACE
        faces = tuple(
            self._describe_face(cut, number, face, estimate)
            for number, (face, estimate) in enumerate(zip(cut.faces, estimates, strict=True), start=1)
        )
        return PhotoPrediction(
            file=cut.file,
            status=status,
            faces=faces,
            reason=cut.reason,
            image=None if cut.photo is None else cut.photo.image,
            scale=cut.scale,
            crops=cut.crops if cut.keep.any else (),
            page=cut.page,
            time=cut.time,
            detector=None if cut.reason is not None else self.detector,
            model=None if cut.reason is not None else self.model,
        )

    def _describe_face(
        self, cut: Cut, number: int, face: DetectedFace | None, estimate: FaceEstimate
    ) -> FacePrediction:
        marks = None if face is None else (face.landmarks + 0.5) / cut.scale - 0.5
        given = face is not None and np.isnan(face.score)
        distribution = estimate.distribution
        return FacePrediction(
            file=cut.file,
            status=OK,
            face=number,
            box=None if face is None else _round_box(face, cut),
            age=round(estimate.age, 1),
            age_low=round(estimate.age_low, 1),
            age_high=round(estimate.age_high, 1),
            gender=choose_gender(estimate.p_female, self.choose_threshold(estimate.age)),
            p_female=round(estimate.p_female, 4),
            detector=GIVEN if given else self.detector,
            score=None if face is None or given else round(float(face.score), 4),
            size=None if marks is None else round(float(np.linalg.norm(marks[0] - marks[1])), 1),
            landmarks=None if marks is None else tuple((round(float(x), 1), round(float(y), 1)) for x, y in marks),
            turn=cut.turn,
            model=self.model,
            page=cut.page,
            time=None if cut.time is None else round(cut.time, 3),
            under=describe_shares(estimate, self.under),
            distribution=None if distribution is None else tuple(round(float(share), 5) for share in distribution),
        )

    def choose_threshold(self, age: float) -> float:
        """Return from which probability on a face's gender is named: as was asked for, or as the model says."""
        if self.asked is not None:
            return self.asked
        return float(choose_thresholds(np.array([age]), self.calibration)[0])


def describe_shares(estimate: FaceEstimate, ages: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """Return (age, P(age of the face < that)) for each of some ages."""
    return tuple((age, round(estimate.share_under(age), 4)) for age in ages)


def _round_box(face: DetectedFace, cut: Cut) -> tuple[int, int, int, int]:
    """Return a face's box in the file's own pixels, within its edges."""
    width, height = cut.size
    limits = (width, height, width, height)
    inside = (min(max(value, 0.0), float(limit)) for value, limit in zip(face.box, limits, strict=True))
    left, top, right, bottom = (round(value / cut.scale) for value in inside)
    return left, top, right, bottom
