"""The results of each step: the faces extracted from a photo, the model's estimates, and the rows of the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB, Photo
from agegen.data.labels import MAX_AGE
from agegen.faces.geometry import DetectedFace
from agegen.faces.refinement import scale_points
from agegen.model.calibration import Calibration, choose_threshold, choose_thresholds, compute_probability_under

OK, NO_FACE, UNREADABLE = "ok", "no_face", "unreadable"
UNCERTAIN = "uncertain"
# The detector of faces whose bounding boxes were given, with --boxes.
GIVEN = "given"
# JSON contains these only if they are known.
RARE = ("page", "person", "time", "first", "last", "frames", "options", "distribution", "reason")


@dataclass(frozen=True)
class KeepOptions:
    """What to keep beyond the estimates: decoded photos, full-size crops, the bounding boxes of a video's tracks.

    ``thumbnails``: keep crops of any size, which cost nothing, because the model takes them.
    """

    images: bool = False
    crops: bool = False
    tracks: bool = False
    thumbnails: bool = False

    @property
    def full_crops(self) -> bool:
        """Whether crops are kept in full size: results with the photo always include them."""
        return self.images or self.crops

    @property
    def any_crops(self) -> bool:
        """Whether results have crops, of the size of the model's input unless it is the full one."""
        return self.full_crops or self.thumbnails


KEEP_NOTHING = KeepOptions()


@dataclass(frozen=True)
class ExtractedFaces:
    """The faces extracted from a photo, page or frame, or the reason why it cannot be read.

    Attributes:
        file: as it was given or found.
        faces: in pixels of the decoded photo; None where the image is itself an aligned crop.
        crops: aligned crops, one per face, with the side of the model's input, or 200 pixels where they are kept.
        photo: the decoded photo, where images are kept.
        reason: why the file cannot be read.
        scale: size of the decoded photo divided by that of the file.
        size: (width, height) of the decoded photo.
        turn: by how many degrees clockwise the photo must be rotated to be upright; None if no face was searched for.
        page: of a file with several pages, from 1.
        time: of a video frame, in seconds.
        keep: what the result keeps.
    """

    file: str
    faces: tuple[DetectedFace | None, ...] = ()
    crops: tuple[RGB, ...] = ()
    photo: Photo | None = None
    reason: str | None = None
    scale: float = 1.0
    size: tuple[int, int] = (0, 0)
    turn: int | None = None
    page: int | None = None
    time: float | None = None
    keep: KeepOptions = KEEP_NOTHING


@dataclass(frozen=True)
class FaceEstimate:
    """A model's estimates for one aligned crop, before rounding: age in years and P(female), 0–1.

    ``sigma`` is the calibrated standard deviation in years, ``distribution`` (117,) is P(age), if requested.
    """

    age: float
    age_low: float
    age_high: float
    p_female: float
    sigma: float = 0.0
    distribution: NDArray[np.float64] | None = None

    def compute_shares(self, ages: Sequence[int]) -> tuple[tuple[int, float], ...]:
        """Return (limit, P(age < limit)), 0–1, for each of some ages, consistent with the calibrated intervals."""
        return tuple((limit, round(compute_probability_under(limit, self.age, self.sigma), 4)) for limit in ages)


@dataclass(frozen=True)
class FacePrediction:
    """One row of the output: the estimates for one face, or the reason why there are none.

    Attributes:
        file: as it was given or found.
        status: ``ok``, ``no_face`` or ``unreadable``.
        face: number of the face in the photo, from 1: by rows from top to bottom, each from left to right.
        box: bounding box (left, top, right, bottom) of the face in pixels; None where the image is an aligned crop.
        age: in years; None from a model that was trained without ages. The interval from ``age_low`` to ``age_high``
            contains 90 % of the true ages, on average over faces like those of the model's validation split with the
            same crop; not in every group or collection.
        gender: ``female``, ``male``, or ``uncertain`` if the model is not confident enough.
        p_female: P(female), 0–1.
        detector: that found the face; ``none`` if the image was processed as an aligned crop, ``given`` for --boxes.
        score: detection score, 0–1.
        size: distance between the eyes, in pixels of the file.
        landmarks: x and y of the eye on the left side of the image, the eye on the right side, the tip of the nose,
            the left and the right corner of the mouth, in pixels of the file; only in JSON.
        turn: by how many degrees clockwise the photo must be rotated to be upright: 0, 90, 180 or 270; None if no
            face was searched for.
        model: name of the model, version of its plugin, and the first 12 digits of its weights' SHA-256.
        page: of a file with several pages, from 1.
        person: number of the person in a video, from 1.
        time: of a video frame, in seconds: the frame to which ``box`` and ``landmarks`` belong.
        first: when the person is first seen, and ``last`` when last, in seconds; ``frames``: in how many frames.
        options: non-default options that affect the rows (``min_score=0.5`` …); None if there are none.
        under: (limit, P(age < limit)) for each requested limit.
        distribution: P(age) over 0–116, if requested.
        reason: why a file, or the rest of a video, is unreadable.
        gender_threshold: the threshold that was used, 0.5–1: it depends on the estimated age; only in JSON.
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
    gender_threshold: float | None = None

    def list_values(self) -> dict[str, Any]:
        """Return the values by name; unlike ``asdict`` without copies, which would take longer than the estimate."""
        return dict(vars(self))

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON form; see :data:`RARE` for the keys that it contains only if they are known."""
        content = self.list_values()
        shares = {f"under_{age}": share for age, share in content.pop("under")}
        return {name: value for name, value in content.items() if value is not None or name not in RARE} | shares


@dataclass(frozen=True)
class PhotoPrediction:
    """The result for one photo, page, frame or video.

    Attributes:
        file: as it was given or found.
        status: ``ok``, ``no_face`` or ``unreadable``.
        faces: one prediction per face, in the order of their numbers.
        reason: why the file, or the rest of a video, is unreadable.
        image: the decoded photo, if requested; ``scale`` is its size divided by that of the file.
        crops: the aligned crops (side, side, 3) of the faces, if requested: of 200 pixels, or the model's input size.
        photo_size: width and height of the upright photo, in pixels of the file, if they are known.
        page: of a file with several pages, from 1; ``time`` of a video frame, in seconds.
        detector: that searched for faces, and the ``model`` that estimated; None if nothing could be read.
        options: non-default options that affect the rows; see :class:`FacePrediction`.
        is_video: the result is that of a whole video.
    """

    file: str
    status: str
    faces: tuple[FacePrediction, ...] = ()
    reason: str | None = None
    image: RGB | None = None
    scale: float = 1.0
    crops: tuple[RGB, ...] = ()
    photo_size: tuple[int, int] | None = None
    page: int | None = None
    time: float | None = None
    detector: str | None = None
    model: str | None = None
    options: str | None = None
    is_video: bool = False

    def list_rows(self) -> list[FacePrediction]:
        """Return the rows of the output: one per face, and one that gives the reason if there are none or not all."""
        rows = list(self.faces)
        if not rows or self.reason is not None:
            about = {"detector": self.detector, "model": self.model, "page": self.page, "time": self.time}
            # On one line: libraries' messages may have several.
            reason = None if self.reason is None else " ".join(self.reason.split())
            rows.append(FacePrediction(self.file, self.status, reason=reason, **about))  # type: ignore[arg-type]
        return [replace(row, options=self.options) for row in rows] if self.options else rows


def add_reason(photo: PhotoPrediction, reason: str) -> PhotoPrediction:
    """Return a result with a further reason why something of the file is missing; its rows stay."""
    reasons = reason if photo.reason is None else f"{photo.reason}; {reason}"
    return replace(photo, status=UNREADABLE, reason=reasons)


@dataclass(frozen=True)
class RowBuilder:
    """Makes the results of one model and detector from extracted faces and estimates.

    Attributes:
        model: the text for the column ``model``.
        detector: the name for the column ``detector``.
        calibration: the model's.
        min_confidence: gender is ``uncertain`` below this probability, 0.5–1; None means the model's own thresholds.
        under: the limits for which P(age < limit) is requested.
    """

    model: str
    detector: str
    calibration: Calibration
    min_confidence: float | None = None
    under: tuple[int, ...] = ()

    def build(self, extracted: ExtractedFaces, estimates: Sequence[FaceEstimate]) -> PhotoPrediction:
        """Return the result for a photo, given one estimate for each of its crops."""
        status = UNREADABLE if extracted.reason is not None else OK if estimates else NO_FACE
        faces = tuple(
            self._build_row(extracted, number, face, estimate)
            for number, (face, estimate) in enumerate(zip(extracted.faces, estimates, strict=True), start=1)
        )
        return PhotoPrediction(
            file=extracted.file,
            status=status,
            faces=faces,
            reason=extracted.reason,
            image=None if extracted.photo is None else extracted.photo.image,
            scale=extracted.scale,
            crops=extracted.crops if extracted.keep.any_crops else (),
            photo_size=None if extracted.reason is not None else _measure_file(extracted),
            page=extracted.page,
            time=extracted.time,
            detector=None if extracted.reason is not None else self.detector,
            model=None if extracted.reason is not None else self.model,
        )

    @property
    def threshold_range(self) -> tuple[float, float]:
        """The lowest and the highest gender threshold at any age."""
        if self.min_confidence is not None:
            return self.min_confidence, self.min_confidence
        thresholds = choose_thresholds(np.arange(MAX_AGE + 1.0), self.calibration)
        return float(thresholds.min()), float(thresholds.max())

    def choose_threshold(self, age: float) -> float:
        """Return the gender threshold for an estimated age in years: the requested one or the model's."""
        if self.min_confidence is not None:
            return self.min_confidence
        return choose_threshold(age, self.calibration)

    def _build_row(
        self, extracted: ExtractedFaces, number: int, face: DetectedFace | None, estimate: FaceEstimate
    ) -> FacePrediction:
        landmarks = None if face is None else scale_points(face.landmarks, 1 / extracted.scale)
        given = face is not None and np.isnan(face.score)
        distribution = estimate.distribution if self.calibration.knows_age else None
        threshold = self.choose_threshold(estimate.age)
        return FacePrediction(
            file=extracted.file,
            status=OK,
            face=number,
            box=None if face is None else _round_box(face, extracted),
            gender=choose_gender(estimate.p_female, threshold),
            p_female=round(estimate.p_female, 4),
            gender_threshold=threshold,
            detector=GIVEN if given else self.detector,
            score=None if face is None or given else round(float(face.score), 4),
            size=None if landmarks is None else round(float(np.linalg.norm(landmarks[0] - landmarks[1])), 1),
            landmarks=None
            if landmarks is None
            else tuple((round(float(x), 1), round(float(y), 1)) for x, y in landmarks),
            turn=extracted.turn,
            model=self.model,
            page=extracted.page,
            time=None if extracted.time is None else round(extracted.time, 3),
            distribution=None if distribution is None else tuple(round(float(share), 5) for share in distribution),
            **self.make_ages(estimate),
        )

    def make_ages(self, estimate: FaceEstimate) -> dict[str, Any]:
        """Return the columns with ages, rounded; none if the model was trained without ages."""
        if not self.calibration.knows_age:
            return {}
        return {
            "age": round(estimate.age, 1),
            "age_low": round(max(estimate.age_low, 0.0), 1),
            "age_high": round(min(estimate.age_high, float(MAX_AGE)), 1),
            "under": estimate.compute_shares(self.under),
        }


def choose_gender(p_female: float, min_confidence: float) -> str:
    """Return ``female``, ``male``, or ``uncertain`` if neither probability reaches the threshold, 0.5–1.

    At 1 it is always ``uncertain``: a probability that rounding made 1 does not count as certain.
    """
    if min_confidence >= 1 or max(p_female, 1 - p_female) < min_confidence:
        return UNCERTAIN
    return "female" if p_female >= 0.5 else "male"


def _measure_file(extracted: ExtractedFaces) -> tuple[int, int]:
    width, height = extracted.size
    return round(width / extracted.scale), round(height / extracted.scale)


def _round_box(face: DetectedFace, extracted: ExtractedFaces) -> tuple[int, int, int, int]:
    """Return the bounding box of a face in pixels of the file, clipped to the image."""
    width, height = extracted.size
    limits = (width, height, width, height)
    inside = (min(max(value, 0.0), float(limit)) for value, limit in zip(face.box, limits, strict=True))
    left, top, right, bottom = (round(value / extracted.scale) for value in inside)
    return left, top, right, bottom
