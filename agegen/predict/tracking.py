"""Predictions for videos: faces are tracked from frame to frame, and estimates are averaged per person."""

from __future__ import annotations

from array import array
from collections.abc import Generator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB, resize_image
from agegen.errors import DataError
from agegen.model.calibration import Z_90
from agegen.predict.estimator import Estimator
from agegen.predict.results import (
    NO_FACE,
    OK,
    UNREADABLE,
    FaceEstimate,
    FacePrediction,
    KeepOptions,
    PhotoPrediction,
    RowBuilder,
    choose_gender,
)
from agegen.predict.video import Video, VideoOptions, is_image, read_animation

# Seconds after which a lost track ends; a person who comes back later gets a new number.
MAX_GAP = 2.0
# How far a face may move between two sampled frames, in widths of its bounding box: so much, and so much more per
# second between them.
_REACH, _SPEED = 0.75, 3.0
# A face becomes at most this many times as large in half a second.
_MAX_GROWTH = 2.0
# The cost of assigning a face to a track: the distance it moved as a share of its reach, plus these weights times its
# growth and its difference in appearance (1 − correlation). Appearance separates persons who cross, whose positions
# say nothing.
_GROWTH_COST, _APPEARANCE_COST = 0.5, 1.5
# Above this cost the face more probably belongs to another person: it is near but different (0.2 + 1.5 × 0.8), or
# similar but far away (1 + 1.5 × 0.25).
_MAX_COST = 1.4
# The appearance of a face: its aligned crop without the outer tenth, which is hair and background, at this side.
_APPEARANCE_SIDE, _EDGE = 24, 0.1
# Weight of the newest frame in a track's appearance, which changes as the head turns.
_UPDATE_RATE = 0.3
# Minimum score of a person seen in only one of several frames; below it, the detection is probably false.
_SINGLE_FRAME_SCORE = 0.9

Box = tuple[float, float, float, float]
Appearance = NDArray[np.float32]


@dataclass
class Track:
    """One person in a video. Memory use does not grow with the number of frames, except for the boxes, if kept.

    Attributes:
        number: from 1, in order of appearance.
        first: time of the first frame in seconds, ``last`` of the last one.
        best: the row of the frame with the largest weight: the largest face with the best score.
        appearance: a moving average; see :func:`compute_appearance`.
        box: bounding box in the last frame.
        velocity: of the box's centre, in pixels per second.
        frames: number of frames.
        weight: sum of the frames' weights.
        sums: weighted sums of the age, the interval's lower and upper half, and P(female).
        crop: the aligned crop of the best frame.
        boxes: time, left, top, right, bottom of each frame, one after the other, if kept.
    """

    number: int
    first: float
    best: FacePrediction
    appearance: Appearance
    last: float = 0.0
    box: Box = (0.0, 0.0, 0.0, 0.0)
    velocity: tuple[float, float] = (0.0, 0.0)
    frames: int = 0
    weight: float = 0.0
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    crop: RGB | None = None
    boxes: array[float] = field(default_factory=lambda: array("d"))

    def add(self, face: FacePrediction, time: float, crop: RGB, appearance: Appearance, keep_box: bool) -> None:
        """Add a frame: its row, its time in seconds, its crop and its appearance."""
        assert face.box is not None
        left, top, right, bottom = (float(value) for value in face.box)
        box = left, top, right, bottom
        if self.frames and time > self.last:
            self._update_motion(box, time, appearance)
        self.box, self.last, self.frames = box, time, self.frames + 1
        weight = compute_weight(face)
        self.weight += weight
        # A model that was trained without ages gives none.
        age, low, high = face.age or 0.0, face.age_low or 0.0, face.age_high or 0.0
        self.sums += weight * np.array([age, age - low, high - age, face.p_female])
        if weight >= compute_weight(self.best):
            self.best, self.crop = face, crop
        if keep_box:
            self.boxes.extend((time, *box))

    def _update_motion(self, box: Box, time: float, appearance: Appearance) -> None:
        step = time - self.last
        x, y = (new - old for new, old in zip(compute_centre(box), compute_centre(self.box), strict=True))
        self.velocity = (x / step, y / step)
        mixed = (1 - _UPDATE_RATE) * self.appearance + _UPDATE_RATE * appearance
        self.appearance = (mixed / max(float(np.linalg.norm(mixed)), 1e-6)).astype(np.float32)


@dataclass(frozen=True)
class VideoResult:
    """The result for a video or animation.

    Attributes:
        persons: the rows of the persons, with their tracks.
        frames: number of sampled frames.
        final: what remains to be reported: all persons, or, if each frame was a result, why frames are missing.
        is_animation: it is an animated image.
    """

    persons: list[tuple[FacePrediction, Track]]
    frames: int
    final: PhotoPrediction | None
    is_animation: bool = False


def predict_video(
    estimator: Estimator, name: str, options: VideoOptions, keep: KeepOptions
) -> Generator[PhotoPrediction, None, VideoResult]:
    """Process a video or animation; yields a result per frame if ``options`` request them, and returns the rest."""
    tracker = Tracker(keep.tracks)
    reason, count = None, 0
    is_animation = is_image(name)
    try:
        video = None if is_animation else Video(name)
        frames = read_animation(name) if video is None else video.read(options.sampling)
        # The tracker requires crops.
        for frame in estimator.predict_frames(name, frames, KeepOptions(keep.images, crops=True)):
            assert frame.time is not None
            count += 1
            numbers = tracker.update(frame.time, list(frame.faces), list(frame.crops))
            if options.frames:
                faces = tuple(replace(face, person=person) for face, person in zip(frame.faces, numbers, strict=True))
                yield replace(frame, faces=faces, crops=frame.crops if keep.any_crops else ())
        reason = video.reason if video is not None else None
    except DataError as error:
        reason = str(error)
    persons = [
        (make_person_row(track, estimator.row_builder), track)
        for track in tracker.finish()
        if track.frames > 1 or count == 1 or (track.best.score or 0) >= _SINGLE_FRAME_SCORE
    ]
    if options.frames:
        final = None if reason is None else PhotoPrediction(name, UNREADABLE, reason=reason, is_video=True)
    else:
        final = _make_video_prediction(name, persons, reason, estimator.row_builder, keep)
    return VideoResult(persons, count, final, is_animation)


def make_person_row(track: Track, row_builder: RowBuilder) -> FacePrediction:
    """Return the row of a person: estimates averaged over the frames by score and size, the rest of the best frame.

    The interval is as wide as that of a single frame on average: errors of the model repeat in each frame of a person,
    so more frames do not make it more precise.
    """
    age, below, above, p_female = (float(value) for value in track.sums / track.weight)
    sigma = max((below + above) / 2 / Z_90, 1e-3)
    estimate = FaceEstimate(age, age - below, age + above, p_female, sigma)
    threshold = row_builder.choose_threshold(age)
    return replace(
        track.best,
        person=track.number,
        gender=choose_gender(p_female, threshold),
        p_female=round(p_female, 4),
        gender_threshold=threshold,
        first=round(track.first, 3),
        last=round(track.last, 3),
        frames=track.frames,
        **row_builder.make_ages(estimate),
    )


def interpolate_box(track: Track, time: float, gap: float) -> tuple[int, int, int, int] | None:
    """Return a person's bounding box at a time, interpolated between the frames around it; None if there is none.

    ``gap``: maximum number of seconds between these frames.
    """
    boxes = np.frombuffer(track.boxes, dtype=np.float64).reshape(-1, 5)
    after = int(np.searchsorted(boxes[:, 0], time - 1e-6))
    if after == len(boxes) or (after == 0 and boxes[0, 0] > time + 1e-6):
        return None
    late = boxes[after]
    early = boxes[max(after - 1, 0)] if late[0] > time + 1e-6 else late
    if late[0] - early[0] > gap:
        return None
    share = 0.0 if late[0] == early[0] else (time - early[0]) / (late[0] - early[0])
    left, top, right, bottom = (round(float(value)) for value in (1 - share) * early[1:] + share * late[1:])
    return left, top, right, bottom


class Tracker:
    """Assigns the faces of consecutive frames to persons."""

    def __init__(self, keep_boxes: bool = False) -> None:
        self._keep_boxes = keep_boxes
        self._active: list[Track] = []
        self._ended: list[Track] = []
        self._count = 0

    def update(self, time: float, faces: list[FacePrediction], crops: list[RGB]) -> list[int]:
        """Return the person's number for each face of the frame at ``time`` seconds, and update the tracks."""
        self._end_lost_tracks(time)
        appearances = [compute_appearance(crop) for crop in crops]
        assigned = self._assign(time, faces, appearances)
        numbers = []
        for index, face in enumerate(faces):
            track = assigned.get(index)
            if track is None:
                self._count += 1
                track = Track(self._count, time, face, appearances[index])
                self._active.append(track)
            track.add(face, time, crops[index], appearances[index], self._keep_boxes)
            numbers.append(track.number)
        return numbers

    def finish(self) -> list[Track]:
        """Return all tracks, in order of appearance."""
        return sorted([*self._ended, *self._active], key=lambda track: track.number)

    def _end_lost_tracks(self, time: float) -> None:
        self._ended += [track for track in self._active if time - track.last > MAX_GAP]
        self._active = [track for track in self._active if time - track.last <= MAX_GAP]

    def _assign(self, time: float, faces: list[FacePrediction], appearances: list[Appearance]) -> dict[int, Track]:
        """Return the track of each face that continues one, such that the total cost is minimal."""
        from scipy.optimize import linear_sum_assignment

        if not faces or not self._active:
            return {}
        pairs = list(zip(faces, appearances, strict=True))
        costs = np.array([[_compute_cost(track, time, *pair) for pair in pairs] for track in self._active])
        rows, columns = linear_sum_assignment(np.minimum(costs, 10 * _MAX_COST))
        return {
            int(column): self._active[row]
            for row, column in zip(rows, columns, strict=True)
            if costs[row, column] <= _MAX_COST
        }


def compute_weight(face: FacePrediction) -> float:
    """Return the weight of a frame in a person's average: the detection score times the size of the face."""
    return max(face.score or 0.0, 1e-3) * max(face.size or 0.0, 1.0)


def compute_appearance(crop: RGB) -> Appearance:
    """Return a small greyscale version (576,) of an aligned crop, with zero mean and unit norm."""
    edge = round(_EDGE * crop.shape[0])
    inner = np.ascontiguousarray(crop[edge:-edge, edge:-edge])
    grey = resize_image(inner, _APPEARANCE_SIDE).mean(axis=2).ravel()
    centred = grey - grey.mean()
    scaled: Appearance = (centred / max(float(np.linalg.norm(centred)), 1e-6)).astype(np.float32)
    return scaled


def compute_centre(box: tuple[float, ...]) -> tuple[float, float]:
    """Return x and y of the centre of a bounding box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _compute_cost(track: Track, time: float, face: FacePrediction, appearance: Appearance) -> float:
    """Return the cost of assigning a face to a track; infinity if it is out of reach."""
    assert face.box is not None
    elapsed = time - track.last
    width = max(track.box[2] - track.box[0], 1.0)
    growth = abs(float(np.log(max(face.box[2] - face.box[0], 1.0) / width)))
    x, y = compute_centre(face.box)
    last_x, last_y = compute_centre(track.box)
    # From the last position, or from where it would be by now at constant velocity.
    distances = [
        np.hypot(x - last_x - seconds * track.velocity[0], y - last_y - seconds * track.velocity[1])
        for seconds in (0, elapsed)
    ]
    distance = float(min(distances)) / width / (_REACH + _SPEED * elapsed)
    if distance > 1 or growth > np.log(_MAX_GROWTH) * max(1.0, 2 * elapsed):
        return float("inf")
    return distance + _GROWTH_COST * growth + _APPEARANCE_COST * (1 - float(appearance @ track.appearance))


def _make_video_prediction(
    name: str,
    persons: list[tuple[FacePrediction, Track]],
    reason: str | None,
    row_builder: RowBuilder,
    keep: KeepOptions,
) -> PhotoPrediction:
    """Return the result with one row per person, and the reason why the rest of the video is missing, if any."""
    status = UNREADABLE if reason is not None else OK if persons else NO_FACE
    rows = tuple(replace(person, face=number) for number, (person, _) in enumerate(persons, start=1))
    crops = tuple(track.crop for _, track in persons if track.crop is not None) if keep.any_crops else ()
    return PhotoPrediction(
        name,
        status,
        rows,
        reason,
        crops=crops,
        is_video=True,
        detector=row_builder.detector,
        model=row_builder.model,
    )
