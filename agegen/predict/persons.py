"""Videos, whole: frames sampled, faces followed, one row for each person seen or for each face of each frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from agegen.data.labels import MAX_AGE
from agegen.errors import DataError
from agegen.model.calibration import NORMAL
from agegen.predict.cutting import Keep
from agegen.predict.describing import describe_shares
from agegen.predict.estimator import Estimator
from agegen.predict.results import NO_FACE, OK, UNREADABLE, FaceEstimate, FacePrediction, PhotoPrediction, choose_gender
from agegen.predict.tracking import Track, Tracker
from agegen.predict.video import ANIMATION_SUFFIXES, Sampling, Video, count_frames, is_video_name, read_animation

# Who is seen in one frame alone, of several, is a person only if the detector is so sure: else it is a pattern.
_SURE_AT_ONCE = 0.9


@dataclass(frozen=True)
class Watching:
    """How videos are looked at: which frames, and whether each is a row (``frames``) or each person."""

    sampling: Sampling = field(default_factory=Sampling)
    frames: bool = False
    keep_paths: bool = False


def is_watched(name: str, watching: Watching) -> bool:
    """Return whether a file is taken as a video: by its name, or as an animation where rows of frames are asked for."""
    if is_video_name(name):
        return True
    animated = watching.frames and name.lower().endswith(tuple(ANIMATION_SUFFIXES))
    return animated and count_frames(name) > 1


@dataclass
class Watched:
    """What came of a video: its persons, with their ways where they are kept, and how many frames were looked at."""

    persons: list[tuple[FacePrediction, Track]]
    frames: int


def watch_video(
    estimator: Estimator, name: str, watching: Watching, keep: Keep, watched: list[Watched]
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
    watched.append(Watched(persons, count))
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
    sigma = max((below + above) / 2 / NORMAL, 1e-3)
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
