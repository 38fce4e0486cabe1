"""Predictions: what is said of a face and of a photograph, and the model that says it of aligned crops."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from agegen.data.images import RGB

OK, NO_FACE, UNREADABLE = "ok", "no_face", "unreadable"
UNCERTAIN = "uncertain"


@dataclass(frozen=True)
class FaceEstimate:
    """What a model says of one aligned crop: years and P(female), 0–1, before rounding."""

    age: float
    age_low: float
    age_high: float
    p_female: float


@dataclass(frozen=True)
class FacePrediction:
    """One row of the output: an estimate for one face, or why there is none.

    Attributes:
        file: as it was given or found.
        status: ``ok``, ``no_face`` or ``unreadable``.
        face: the number of the face in the photograph, from 1, from left to right.
        box: (left, top, right, bottom) of the face in pixels; None where the picture is the face.
        age: years; ``age_low`` and ``age_high`` hold 90 % of the ages on average over faces like those of the model's
            validation split, cropped as those were; not in every group, nor of every collection.
        gender: ``female``, ``male``, or ``uncertain`` where the model isn't confident enough to say.
        p_female: 0–1.
        detector: that found the face; ``none`` where the picture was taken as an aligned crop.
        score: how sure the detector is, 0–1.
        size: of the face: the distance between its eyes in the file's pixels.
        landmarks: x and y of the eye on the left of the picture, the one on the right, the tip of the nose, the
            mouth's left and right corner, in the file's pixels; in JSON alone.
        turn: by how many degrees clockwise the photograph must be turned to stand upright, where it didn't: 0, 90, 180
            or 270; None where no face was searched.
        model: that estimated: its name, the version of its plugin, and the first 12 digits of its weights' SHA-256.
        reason: why a file is unreadable.
    """

    file: str
    status: str
    face: int | None = None
    box: tuple[int, int, int, int] | None = None
    age: float | None = None
    age_low: float | None = None
    age_high: float | None = None
    gender: str | None = None
    p_female: float | None = None
    detector: str | None = None
    score: float | None = None
    size: float | None = None
    landmarks: tuple[tuple[float, float], ...] | None = None
    turn: int | None = None
    model: str | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form; ``reason`` stands only where the file is unreadable."""
        content = asdict(self)
        if self.reason is None:
            content.pop("reason")
        return content


@dataclass(frozen=True)
class PhotoPrediction:
    """All that was found in one photograph.

    Attributes:
        file: as it was given or found.
        status: ``ok``, ``no_face`` or ``unreadable``.
        faces: one prediction per face, from left to right.
        reason: why the file is unreadable.
        image: the decoded photograph, where it was asked for; ``scale`` is its size over the file's.
        crops: the aligned crops (200, 200, 3) of the faces, where they were asked for.
    """

    file: str
    status: str
    faces: tuple[FacePrediction, ...] = ()
    reason: str | None = None
    image: RGB | None = None
    scale: float = 1.0
    crops: tuple[RGB, ...] = ()

    def list_rows(self) -> list[FacePrediction]:
        """Return the rows of the output: one per face, or one that says why there is none."""
        return list(self.faces) or [FacePrediction(self.file, self.status, reason=self.reason)]


def choose_gender(p_female: float, min_confidence: float) -> str:
    """Return ``female``, ``male``, or ``uncertain`` where neither reaches the threshold, 0.5–1."""
    if max(p_female, 1 - p_female) < min_confidence:
        return UNCERTAIN
    return "female" if p_female >= 0.5 else "male"
