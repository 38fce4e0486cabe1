"""Annotated copies of photos and videos, and aligned crops, written as files."""

from __future__ import annotations

import glob
import io
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agegen.data.images import RGB, decode_photo, read_image_file
from agegen.errors import AgegenError, DataError
from agegen.files import replace_atomically, write_bytes
from agegen.predict.extraction import LARGEST_SIDE
from agegen.predict.results import FacePrediction, PhotoPrediction
from agegen.predict.tracking import FORGET, VideoResult, interpolate_box
from agegen.predict.video import Sampling, Video, is_video_name, turn_frame

# Smaller letters can't be read.
_LEAST_FONT = 10

_Box = tuple[float, float, float, float]


def draw_annotation(photo: PhotoPrediction) -> RGB:
    """Return a copy of a photograph (it must hold its image) with a box and a label for each face.

    White on black within black within white, in sizes that follow the picture's and the face's.
    """
    assert photo.image is not None
    picture = Image.fromarray(photo.image)
    canvas = ImageDraw.Draw(picture)
    taken: list[_Box] = []
    for face in photo.faces:
        whole = (0, 0, picture.width / photo.scale, picture.height / photo.scale)
        box = tuple(value * photo.scale for value in (face.box or whole))
        _draw_box(canvas, box, picture.size)
        taken.append(_draw_label(canvas, format_label(face), box, picture.size, taken))
    return np.asarray(picture)


def format_label(face: FacePrediction) -> str:
    """Return a face's label: age and interval, then gender and the probability of what is said of it."""
    assert face.age is not None and face.p_female is not None
    probability = max(face.p_female, 1 - face.p_female)
    person = f"#{face.person} " if face.person is not None else ""
    return f"{person}{face.age:.0f} ({face.age_low:.0f}-{face.age_high:.0f})\n{face.gender} {probability:.2f}"


def _draw_box(canvas: ImageDraw.ImageDraw, box: Sequence[float], size: tuple[int, int]) -> None:
    width = max(1, round(max(size) / 500))
    left, top, right, bottom = _clip(box, size)
    for inset, color in ((0, "black"), (width, "white"), (2 * width, "black")):
        corners = (left + inset, top + inset, right - inset, bottom - inset)
        if corners[2] > corners[0] and corners[3] > corners[1]:
            canvas.rectangle(corners, outline=color, width=width)


def _draw_label(
    canvas: ImageDraw.ImageDraw, text: str, box: Sequence[float], size: tuple[int, int], taken: list[_Box]
) -> _Box:
    """Draw a label where it covers no earlier one, if there is such a place; return what it covers."""
    font, width, height, pad = _fit_text(canvas, text, box, size)
    place = _choose_place(box, width, height, size, taken)
    canvas.rectangle(place, fill="black", outline="white", width=max(1, pad // 3))
    canvas.multiline_text((place[0] + pad, place[1] + pad), text, fill="white", font=font, spacing=pad)
    return place


def _fit_text(
    canvas: ImageDraw.ImageDraw, text: str, box: Sequence[float], size: tuple[int, int]
) -> tuple[Any, float, float, int]:
    """Return (font, width, height, padding) of a label that is no wider than the picture."""
    wanted = max(_LEAST_FONT, max(size) / 60, (box[3] - box[1]) * 0.1)
    while True:
        font = ImageFont.load_default(wanted)
        pad = max(2, round(wanted / 4))
        _, _, right, bottom = canvas.multiline_textbbox((0, 0), text, font=font, spacing=pad)
        width, height = right + 2 * pad, bottom + 2 * pad
        if wanted <= _LEAST_FONT or (width <= size[0] and height <= size[1] / 2):
            return font, width, height, pad
        wanted = max(_LEAST_FONT, wanted * 0.8)


def _choose_place(box: Sequence[float], width: float, height: float, size: tuple[int, int], taken: list[_Box]) -> _Box:
    left, top, right, bottom = box
    inside = (left, bottom - height)
    candidates = [(left, top - height), (left, bottom), (right, top), (left - width, top), inside]
    fitting = [
        (x, y, x + width, y + height)
        for x, y in candidates
        if y >= 0 and y + height <= size[1] and x + width <= size[0] + width / 2 and x >= -width / 2
    ]
    shifted = [_shift_inside(place, size) for place in fitting] or [
        _shift_inside((left, bottom - height, left + width, bottom), size)
    ]
    free = [place for place in shifted if not any(_overlap(place, other) for other in taken)]
    return (free or shifted)[0]


def _shift_inside(place: _Box, size: tuple[int, int]) -> _Box:
    x = max(0.0, min(place[0], size[0] - 1 - (place[2] - place[0])))
    y = max(0.0, min(place[1], size[1] - 1 - (place[3] - place[1])))
    return (x, y, x + place[2] - place[0], y + place[3] - place[1])


def _overlap(first: _Box, second: _Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _clip(box: Sequence[float], size: tuple[int, int]) -> _Box:
    left, top, right, bottom = box
    return max(0.0, left), max(0.0, top), min(size[0] - 1.0, right), min(size[1] - 1.0, bottom)


_JPEG_SUFFIXES = (".jpg", ".jpeg")


@dataclass(frozen=True)
class ImageWriter:
    """Where copies go: annotated photographs, crops, either or none; ``base`` is the folder that all inputs lie in."""

    annotated: Path | None
    crops: Path | None
    base: Path

    def save(self, photo: PhotoPrediction) -> PhotoPrediction:
        """Write a photograph's copies, and return it; may be called from several threads."""
        if self.crops is not None:
            for face, crop in zip(photo.faces, photo.crops, strict=True):
                part = "" if photo.time is None else f"-{photo.time:.3f}"
                _save(place_copy(photo.file, self.crops, self.base, f"{part}-{face.face}.png"), crop, photo.file)
        still = photo.time is None and not is_video_name(photo.file)
        if self.annotated is not None and photo.reason is None and still:
            self._annotate(photo)
        return photo

    def place_video(self, file: str) -> Path | None:
        """Return the place of a video's annotated copy, None where none is wanted."""
        if self.annotated is None:
            return None
        return _refuse_itself(
            place_copy(file, self.annotated, self.base, "" if file.endswith(".mp4") else ".mp4"), file
        )

    def _annotate(self, photo: PhotoPrediction) -> None:
        assert self.annotated is not None
        part = "" if photo.page is None else f"-{photo.page}"
        plain = not part and Path(photo.file).suffix.lower() in (*_JPEG_SUFFIXES, ".png")
        target = place_copy(photo.file, self.annotated, self.base, "" if plain else f"{part}.png")
        if photo.image is None:
            # Decoded anew: photographs that wait for their estimates would fill the memory.
            try:
                again = decode_photo(read_image_file(photo.file), LARGEST_SIDE, page=(photo.page or 1) - 1)
            except DataError as error:
                raise AgegenError(f"{photo.file} was readable, and is no more: {error}") from error
            photo = replace(photo, image=again.image, scale=again.scale)
        _save(target, draw_annotation(photo), photo.file)


def find_base(inputs: Iterable[str]) -> Path:
    """Return the folder that all inputs lie in: the folders given, and those of the files given."""
    folders = [_find_folder(name) for name in inputs] or [Path()]
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def _find_folder(name: str) -> Path:
    """Return the folder that an input lies in; of a glob, the part before its first sign."""
    path = Path(name)
    if path.is_dir():
        return path
    if os.path.lexists(path) or not glob.has_magic(name):
        return path.parent
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    return Path(*plain)


def place_copy(file: str, folder: Path, base: Path, ending: str) -> Path:
    """Return the place of a copy: the file's path from ``base`` on, under ``folder``, never outside it."""
    path = Path(os.path.normpath(Path(file).absolute()))
    inside = path.relative_to(base) if path.is_relative_to(base) else path.relative_to(path.anchor)
    return folder / inside.with_name(inside.name + ending)


def _refuse_itself(path: Path, source: str) -> Path:
    if path.resolve() == Path(source).resolve():
        raise AgegenError(f"{path} is the photograph itself; choose another folder for the copies")
    return path


def _save(path: Path, image: RGB, source: str) -> None:
    stream = io.BytesIO()
    if _refuse_itself(path, source).suffix.lower() in _JPEG_SUFFIXES:
        Image.fromarray(image).save(stream, "JPEG", quality=92)
    else:
        Image.fromarray(image).save(stream, "PNG", compress_level=3)
    write_bytes(path, stream.getvalue())


# What every player shows, best first; PyAV's own packages have both.
_CODECS = ("libx264", "mpeg4")
# Of H.264: 23 is its own default, 18 is all but lossless.
_QUALITY = "20"


def annotate_video(name: str, watched: VideoResult, sampling: Sampling, target: Path) -> None:
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


def draw_persons(image: RGB, watched: VideoResult, time: float, gap: float) -> RGB:
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
