"""Following faces from frame to frame of a video: which of them are one person's."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from agegen.data.images import RGB, resize_image
from agegen.data.labels import MAX_AGE
from agegen.errors import DataError
from agegen.model.calibration import Z_90
from agegen.predict.estimator import Estimator, describe_shares
from agegen.predict.extraction import Keep
from agegen.predict.results import (
    NO_FACE,
    OK,
    UNREADABLE,
    FaceEstimate,
    FacePrediction,
    PhotoPrediction,
    choose_gender,
)
from agegen.predict.video import ANIMATION_SUFFIXES, Sampling, Video, count_frames, is_video_name, read_animation

# A face moves by so many of its own widths between two looks, and by so many more in each second between them.
_REACH, _SPEED = 0.75, 3.0
# Seconds after which a face that isn't seen is gone; who comes back later is another person to us.
FORGET = 2.0
# Between two looks half a second apart a face becomes no more than so many times as large.
_MOST_GROWTH = 2.0
# What it costs to take a face for a known one: its way, in shares of its reach, its growth, and its unlikeness: looks
# (1 − correlation) tell people apart who cross, for whom places say nothing.
_GROWTH_COST, _LOOKS_COST = 0.5, 1.5
# A face as likely another one costs so much: near but unlike (0.2 + 1.5 × 0.8), or alike but far (1 + 1.5 × 0.25).
_MOST_COST = 1.4
# Of an aligned crop so many pixels a side are enough to know a face again, and the outer tenth is hair and background.
_THUMB, _EDGE = 24, 0.1
# How much of a person's looks the newest sighting is: faces turn.
_RENEWAL = 0.3

Box = tuple[float, float, float, float]


@dataclass
class Track:
    """One person's way through a video, in sums: memory doesn't grow with the frames, but for the boxes where kept.

    Attributes:
        number: from 1, in the order in which persons appear.
        best: the frame's row in which the face is largest and surest.
        crop: the aligned crop of that frame.
        path: time, left, top, right, bottom of each sighting, one after the other, where it is kept.
    """

    number: int
    first: float
    best: FacePrediction
    looks: NDArray[np.float32]
    last: float = 0.0
    box: Box = (0.0, 0.0, 0.0, 0.0)
    pace: tuple[float, float] = (0.0, 0.0)
    frames: int = 0
    weight: float = 0.0
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    crop: RGB | None = None
    path: array[float] = field(default_factory=lambda: array("d"))

    def add(self, face: FacePrediction, time: float, crop: RGB, looks: NDArray[np.float32], keep_path: bool) -> None:
        """Take one more sighting in: a frame's row, its time in seconds, its crop and its looks."""
        assert face.box is not None
        left, top, right, bottom = (float(value) for value in face.box)
        box = left, top, right, bottom
        if self.frames and time > self.last:
            step = time - self.last
            x, y = (now - then for now, then in zip(find_middle(box), find_middle(self.box), strict=True))
            self.pace = (x / step, y / step)
            mixed = (1 - _RENEWAL) * self.looks + _RENEWAL * looks
            self.looks = (mixed / max(float(np.linalg.norm(mixed)), 1e-6)).astype(np.float32)
        self.box, self.last, self.frames = box, time, self.frames + 1
        weight = weigh(face)
        self.weight += weight
        assert face.age is not None and face.age_low is not None and face.age_high is not None
        self.sums += weight * np.array([face.age, face.age - face.age_low, face.age_high - face.age, face.p_female])
        if weight >= weigh(self.best):
            self.best, self.crop = face, crop
        if keep_path:
            self.path.extend((time, *box))


def weigh(face: FacePrediction) -> float:
    """Return how much a sighting says: by how sure the detector is, and how large the face is."""
    return max(face.score or 0.0, 1e-3) * max(face.size or 0.0, 1.0)


class Tracker:
    """Gives each face of each frame, in their order, the number of a person."""

    def __init__(self, keep_paths: bool = False) -> None:
        self._keep_paths = keep_paths
        self._open: list[Track] = []
        self.closed: list[Track] = []
        self._count = 0

    def follow(self, time: float, faces: list[FacePrediction], crops: list[RGB]) -> list[int]:
        """Return the person's number for each face of a frame at ``time`` seconds, and remember them."""
        self._forget(time)
        looks = [describe_looks(crop) for crop in crops]
        known = self._match(time, faces, looks)
        numbers = []
        for index, face in enumerate(faces):
            track = known.get(index)
            if track is None:
                self._count += 1
                track = Track(self._count, time, face, looks[index])
                self._open.append(track)
            track.add(face, time, crops[index], looks[index], self._keep_paths)
            numbers.append(track.number)
        return numbers

    def finish(self) -> list[Track]:
        """Return all persons, in the order in which they appeared."""
        return sorted([*self.closed, *self._open], key=lambda track: track.number)

    def _forget(self, time: float) -> None:
        self.closed += [track for track in self._open if time - track.last > FORGET]
        self._open = [track for track in self._open if time - track.last <= FORGET]

    def _match(self, time: float, faces: list[FacePrediction], looks: list[NDArray[np.float32]]) -> dict[int, Track]:
        """Return the known person of each face that has one, all together at the least cost."""
        from scipy.optimize import linear_sum_assignment

        if not faces or not self._open:
            return {}
        costs = np.array(
            [[_measure_cost(track, time, *pair) for pair in zip(faces, looks, strict=True)] for track in self._open]
        )
        rows, columns = linear_sum_assignment(np.minimum(costs, 10 * _MOST_COST))
        return {
            int(column): self._open[row]
            for row, column in zip(rows, columns, strict=True)
            if costs[row, column] <= _MOST_COST
        }


def _measure_cost(track: Track, time: float, face: FacePrediction, looks: NDArray[np.float32]) -> float:
    """Return what it costs to take a face for a known person's; infinity where it can't be."""
    assert face.box is not None
    passed = time - track.last
    width = max(track.box[2] - track.box[0], 1.0)
    growth = abs(float(np.log(max(face.box[2] - face.box[0], 1.0) / width)))
    x, y = find_middle(face.box)
    here = find_middle(track.box)
    # Where it was, or where it would be by now.
    ways = [np.hypot(x - here[0] - share * track.pace[0], y - here[1] - share * track.pace[1]) for share in (0, passed)]
    way = float(min(ways)) / width / (_REACH + _SPEED * passed)
    if way > 1 or growth > np.log(_MOST_GROWTH) * max(1.0, 2 * passed):
        return float("inf")
    return way + _GROWTH_COST * growth + _LOOKS_COST * (1 - float(looks @ track.looks))


def describe_looks(crop: RGB) -> NDArray[np.float32]:
    """Return an aligned crop's looks (576,): its greys, small, without their mean, of length 1."""
    edge = round(_EDGE * crop.shape[0])
    grey = resize_image(np.ascontiguousarray(crop[edge:-edge, edge:-edge]), _THUMB).mean(axis=2).ravel()
    centred = grey - grey.mean()
    scaled: NDArray[np.float32] = (centred / max(float(np.linalg.norm(centred)), 1e-6)).astype(np.float32)
    return scaled


def find_middle(box: tuple[float, ...]) -> tuple[float, float]:
    """Return x and y of a box's middle."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


# Who is seen in one frame alone, of several, is a person only if the detector is so sure: else it is a pattern.
_SURE_AT_ONCE = 0.9


@dataclass(frozen=True)
class VideoOptions:
    """How videos are looked at: which frames, and whether each is a row (``frames``) or each person."""

    sampling: Sampling = field(default_factory=Sampling)
    frames: bool = False
    keep_paths: bool = False


def is_watched(name: str, watching: VideoOptions) -> bool:
    """Return whether a file is taken as a video: by its name, or as an animation where rows of frames are asked for."""
    if is_video_name(name):
        return True
    animated = watching.frames and name.lower().endswith(tuple(ANIMATION_SUFFIXES))
    return animated and count_frames(name) > 1


@dataclass
class VideoResult:
    """What came of a video: its persons, with their ways where they are kept, and how many frames were looked at."""

    persons: list[tuple[FacePrediction, Track]]
    frames: int


def watch_video(
    estimator: Estimator, name: str, watching: VideoOptions, keep: Keep, watched: list[VideoResult]
) -> Iterator[PhotoPrediction]:
    """Yield a video's frames as they come, or one result with its persons; what came of it is put into ``watched``."""
    tracker = Tracker(watching.keep_paths)
    reason, count = None, 0
    try:
        video = Video(name) if is_video_name(name) else None
        pictures = read_animation(name) if video is None else video.read(watching.sampling)
        for frame in estimator.predict_frames(name, pictures, Keep(keep.images, crops=True)):
            assert frame.time is not None
            count += 1
            numbers = tracker.follow(frame.time, list(frame.faces), list(frame.crops))
            if watching.frames:
                rows = zip(frame.faces, numbers, strict=True)
                kept = frame if keep.any else replace(frame, crops=())
                yield replace(kept, faces=tuple(replace(face, person=number) for face, number in rows))
        reason = video.reason if video is not None else None
    except DataError as error:
        reason = str(error)
    persons = [
        (describe_person(track, estimator), track)
        for track in tracker.finish()
        if track.frames > 1 or count == 1 or (track.best.score or 0) >= _SURE_AT_ONCE
    ]
    watched.append(VideoResult(persons, count))
    if watching.frames:
        if reason is not None:
            yield PhotoPrediction(name, UNREADABLE, reason=reason)
        return
    status = UNREADABLE if reason is not None else OK if persons else NO_FACE
    origin = estimator.describer
    rows_of = tuple(replace(person, face=number) for number, (person, _) in enumerate(persons, start=1))
    crops = tuple(track.crop for _, track in persons if track.crop is not None) if keep.any else ()
    yield PhotoPrediction(name, status, rows_of, reason, crops=crops, detector=origin.detector, model=origin.model)


def describe_person(track: Track, estimator: Estimator) -> FacePrediction:
    """Return the row of a person: estimates averaged over the frames by score and size, the rest of the best frame.

    The interval is as wide as that of a single frame on average: what a model gets wrong in one frame of a person, it
    gets wrong in the next.
    """
    age, below, above, p_female = (float(value) for value in track.sums / track.weight)
    describer = estimator.describer
    sigma = max((below + above) / 2 / Z_90, 1e-3)
    estimate = FaceEstimate(age, age - below, age + above, p_female, sigma)
    return replace(
        track.best,
        person=track.number,
        age=round(age, 1),
        age_low=round(max(estimate.age_low, 0.0), 1),
        age_high=round(min(estimate.age_high, float(MAX_AGE)), 1),
        gender=choose_gender(p_female, describer.choose_threshold(age)),
        p_female=round(p_female, 4),
        first=round(track.first, 3),
        last=round(track.last, 3),
        frames=track.frames,
        under=describe_shares(estimate, describer.under),
    )


def interpolate_box(track: Track, time: float, gap: float) -> tuple[int, int, int, int] | None:
    """Return where a person's face is at a time, between the sightings around it; None where there is none near.

    ``gap``: seconds between two sightings, beyond which the face was away.
    """
    path = np.frombuffer(track.path, dtype=np.float64).reshape(-1, 5)
    after = int(np.searchsorted(path[:, 0], time - 1e-6))
    if after == len(path) or (after == 0 and path[0, 0] > time + 1e-6):
        return None
    late = path[after]
    early = path[max(after - 1, 0)] if late[0] > time + 1e-6 else late
    if late[0] - early[0] > gap:
        return None
    share = 0.0 if late[0] == early[0] else (time - early[0]) / (late[0] - early[0])
    left, top, right, bottom = (round(float(value)) for value in (1 - share) * early[1:] + share * late[1:])
    return left, top, right, bottom
