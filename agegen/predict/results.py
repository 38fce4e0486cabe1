"""Predictions: what is said of a face and of a photo, from raw estimates to rounded rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB
from agegen.model.calibration import compute_probability_under

OK, NO_FACE, UNREADABLE = "ok", "no_face", "unreadable"
UNCERTAIN = "uncertain"
# Found by somebody else's detector, and given with --boxes.
GIVEN = "given"
# In JSON these stand only where they are known.
RARE = ("page", "person", "time", "first", "last", "frames", "options", "distribution", "reason")


@dataclass(frozen=True)
class FaceEstimate:
    """What a model says of one aligned crop: years and P(female), 0–1, before rounding.

    ``sigma`` is the calibrated standard deviation in years, ``distribution`` (117,) P(age) where it was asked for.
    """

    age: float
    age_low: float
    age_high: float
    p_female: float
    sigma: float = 0.0
    distribution: NDArray[np.float64] | None = None

    def share_under(self, limit: float) -> float:
        """Return P(age < limit), 0–1, by the calibrated intervals."""
        return compute_probability_under(limit, self.age, self.sigma)


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
        page: of a file with several, from 1.
        person: the number of the person in a video, from 1.
        time: of a video's frame, in seconds: the one that ``box`` and ``landmarks`` are of.
        first: when the person is first seen, and ``last`` when last, in seconds; ``frames`` in how many frames.
        options: what else decided on the rows (``min_score=0.5`` …); None where all is as it is by itself.
        under: (age, P(age < that)) for each age that was asked for.
        distribution: P(age) over 0–116, where it was asked for.
        reason: why a file, or the rest of a video, is unreadable.
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
    page: int | None = None
    person: int | None = None
    time: float | None = None
    first: float | None = None
    last: float | None = None
    frames: int | None = None
    options: str | None = None
    under: tuple[tuple[int, float], ...] = ()
    distribution: tuple[float, ...] | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form; what concerns few files stands only where it is known (:data:`RARE`)."""
        content = asdict(self)
        shares = {f"under_{age}": share for age, share in content.pop("under")}
        return {name: value for name, value in content.items() if value is not None or name not in RARE} | shares


@dataclass(frozen=True)
class PhotoPrediction:
    """All that was found in one photograph.

    Attributes:
        file: as it was given or found.
        status: ``ok``, ``no_face`` or ``unreadable``.
        faces: one prediction per face, from left to right.
        reason: why the file is unreadable; of a video that breaks off, why the rest is.
        image: the decoded photograph, where it was asked for; ``scale`` is its size over the file's.
        crops: the aligned crops (200, 200, 3) of the faces, where they were asked for.
        page: of a file with several, from 1; ``time`` of a video's frame, in seconds.
        detector: that searched, and the ``model`` that estimated; None where nothing could be read.
        options: what else decided on the rows; see :class:`FacePrediction`.
    """

    file: str
    status: str
    faces: tuple[FacePrediction, ...] = ()
    reason: str | None = None
    image: RGB | None = None
    scale: float = 1.0
    crops: tuple[RGB, ...] = ()
    page: int | None = None
    time: float | None = None
    detector: str | None = None
    model: str | None = None
    options: str | None = None

    def list_rows(self) -> list[FacePrediction]:
        """Return the rows of the output: one per face, or one that says why there is none, or no more."""
        rows = list(self.faces)
        if not rows or self.reason is not None:
            about = {"detector": self.detector, "model": self.model, "page": self.page, "time": self.time}
            rows.append(FacePrediction(self.file, self.status, reason=self.reason, **about))  # type: ignore[arg-type]
        return [replace(row, options=self.options) for row in rows] if self.options else rows


def choose_gender(p_female: float, min_confidence: float) -> str:
    """Return ``female``, ``male``, or ``uncertain`` where neither reaches the threshold, 0.5–1."""
    if max(p_female, 1 - p_female) < min_confidence:
        return UNCERTAIN
    return "female" if p_female >= 0.5 else "male"
