"""Annotated copies of videos: a box and a label for each person, in every frame in which the face is known to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agegen.data.images import RGB
from agegen.errors import AgegenError, DataError
from agegen.files import replace_atomically
from agegen.predict.annotation import draw_annotation
from agegen.predict.persons import Watched, interpolate_box
from agegen.predict.results import PhotoPrediction
from agegen.predict.tracking import FORGET
from agegen.predict.video import Sampling, Video, is_video_name, turn_frame

# What every player shows, best first; PyAV's own packages have both.
_CODECS = ("libx264", "mpeg4")
# Of H.264: 23 is its own default, 18 is all but lossless.
_QUALITY = "20"


def annotate_video(name: str, watched: Watched, sampling: Sampling, target: Path) -> None:
    """Write an MP4 of all frames of a video, without its sound; between two looks boxes go straight on.

    Nothing is written of what can't be read at all: its row says so.

    Raises:
        AgegenError: the copy can't be written.
    """
    if not is_video_name(name):
        return
    try:
        video = Video(name)
    except DataError:
        return
    import av

    # Persons are followed over gaps of a look or two.
    gap = max(FORGET, 2 * sampling.step)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replace_atomically(target) as temporary, av.open(str(temporary), "w", format="mp4") as container:
            stream: Any = None
            for time, frame in video.decode():
                image = draw_persons(turn_frame(frame), watched, time, gap)
                if stream is None:
                    stream = _add_stream(container, video, image)
                drawn = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                drawn.pts, drawn.time_base = round(time / video.time_base), video.time_base
                container.mux(stream.encode(drawn))
            if stream is not None:
                container.mux(stream.encode())
    except (av.error.FFmpegError, OSError) as error:
        raise AgegenError(f"can't write {target}: {error}") from error


def draw_persons(image: RGB, watched: Watched, time: float, gap: float) -> RGB:
    """Return a frame with the persons that are seen at its time, cut to even sides, as codecs want them."""
    faces = [
        replace(person, box=box)
        for person, track in watched.persons
        if (box := interpolate_box(track, time, gap)) is not None
    ]
    drawn = draw_annotation(PhotoPrediction("", "ok", tuple(faces), image=image)) if faces else image
    return drawn[: drawn.shape[0] // 2 * 2, : drawn.shape[1] // 2 * 2]


def _add_stream(container: Any, video: Video, image: RGB) -> Any:
    import av

    codec = next(name for name in _CODECS if name in av.codecs_available)
    stream = container.add_stream(codec, rate=video.rate)
    stream.width, stream.height, stream.pix_fmt = image.shape[1], image.shape[0], "yuv420p"
    stream.time_base = video.time_base
    stream.options = {"crf": _QUALITY, "preset": "veryfast"} if codec == "libx264" else {"qscale": "4"}
    return stream
