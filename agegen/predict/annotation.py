"""Annotated copies of photos and videos, and aligned crops, written as image files."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agegen.data.images import RGB, decode_photo, read_image_file
from agegen.errors import AgegenError, DataError, shorten
from agegen.files import replace_atomically, write_bytes
from agegen.predict.config import STDIN
from agegen.predict.extraction import LARGEST_SIDE
from agegen.predict.inputs import find_folder
from agegen.predict.results import KEEP_NOTHING, FacePrediction, KeepOptions, PhotoPrediction, add_reason
from agegen.predict.tracking import MAX_GAP, VideoResult, interpolate_box
from agegen.predict.video import Sampling, Video

_JPEG_SUFFIXES = (".jpg", ".jpeg")
_JPEG_QUALITY = 92
# Faster than the default, 6.
_PNG_COMPRESSION = 3
# Codecs that every player supports, best first; PyAV's wheels include both.
_CODECS = ("libx264", "mpeg4")
# The time base of copies: all usual frame rates have whole steps in it, and MPEG-4 allows no finer one.
_TIME_BASE = Fraction(1, 60_000)
# H.264's constant rate factor: its default is 23, and 18 is visually lossless.
_CRF = "20"
# Smaller letters are illegible.
_MIN_FONT_SIZE = 10

_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageWriter:
    """Writes annotated copies and crops of photos.

    Attributes:
        annotated: the folder for annotated copies, None for none.
        crops: the folder for crops, None for none.
        base: the folder that contains all inputs; copies have the same paths relative to it.
        keep: what results must keep to be written.
    """

    annotated: Path | None = None
    crops: Path | None = None
    base: Path = Path()
    keep: KeepOptions = KEEP_NOTHING

    @classmethod
    def create(cls, annotated: Path | None, crops: Path | None, inputs: Sequence[str]) -> ImageWriter:
        """Return a writer for the photos and videos among ``inputs``: files, folders, globs or ``-``."""
        if annotated is None and crops is None:
            return cls()
        # An image on stdin cannot be decoded again for its annotated copy.
        keep = KeepOptions(STDIN in inputs and annotated is not None, crops is not None, annotated is not None)
        return cls(annotated, crops, find_common_folder(name for name in inputs if name != STDIN), keep)

    @property
    def writes(self) -> bool:
        """Whether there is anything to write."""
        return self.annotated is not None or self.crops is not None

    def save(self, photo: PhotoPrediction) -> PhotoPrediction:
        """Write the copies of a photo, and return it, with the reason if it has no copy; thread-safe.

        Raises:
            AgegenError: a folder cannot be written to, so no other copy can be written either.
        """
        try:
            self._write_copies(photo)
        except DataError as error:
            return add_reason(photo, str(error))
        return photo

    def _write_copies(self, photo: PhotoPrediction) -> None:
        if self.crops is not None:
            time = "" if photo.time is None else f"-{photo.time:.3f}"
            for face, crop in zip(photo.faces, photo.crops, strict=True):
                _save(make_copy_path(photo.file, self.crops, self.base, f"{time}-{face.face}.png"), crop, photo.file)
        if self.annotated is not None and photo.reason is None and photo.time is None and not photo.is_video:
            _save(self._make_annotated_path(photo, self.annotated), draw_annotation(_load_image(photo)), photo.file)

    def find_video_path(self, file: str) -> Path | None:
        """Return the path of a video's annotated copy, None if there is to be none."""
        if self.annotated is None:
            return None
        ending = "" if file.endswith(".mp4") else ".mp4"
        return _refuse_input(make_copy_path(file, self.annotated, self.base, ending), file)

    def _make_annotated_path(self, photo: PhotoPrediction, folder: Path) -> Path:
        """Return the path of a photo's annotated copy: PNG unless the photo is a JPEG."""
        page = "" if photo.page is None else f"-{photo.page}"
        same_format = not page and Path(photo.file).suffix.lower() in (*_JPEG_SUFFIXES, ".png")
        return make_copy_path(photo.file, folder, self.base, "" if same_format else f"{page}.png")


def find_common_folder(inputs: Iterable[str]) -> Path:
    """Return the folder that contains all inputs: folders, and the folders of files and globs."""
    folders = [find_folder(name) for name in inputs] or [Path()]
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def make_copy_path(file: str, folder: Path, base: Path, ending: str) -> Path:
    """Return the path of a copy: the file's path relative to ``base``, in ``folder``, never outside it."""
    path = Path(os.path.normpath(Path(file).absolute()))
    relative = path.relative_to(base) if path.is_relative_to(base) else path.relative_to(path.anchor)
    return folder / relative.with_name(relative.name + ending)


def annotate_video(name: str, result: VideoResult, sampling: Sampling, target: Path) -> None:
    """Write an MP4 with all frames of a video, without sound; bounding boxes are interpolated between sampled frames.

    Does nothing for animated images, and for unreadable videos, whose row gives the reason.

    Raises:
        DataError: this video cannot be encoded.
        AgegenError: the folder cannot be written to, so no other copy can be written either.
    """
    if result.is_animation:
        return
    try:
        video = Video(name)
    except DataError:
        return
    import av

    # Tracks may miss a sampled frame or two.
    gap = max(MAX_GAP, 2 * sampling.step)
    images = ((time, draw_persons(video.convert(frame), result, time, gap)) for time, frame in video.decode())
    with _refuse_long_name(target), replace_atomically(target) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4") as container:
                _encode(container, video, images)
        except OSError as error:
            raise AgegenError(f"cannot write {target}: {error.strerror or error}") from error
        except (av.error.FFmpegError, ValueError) as error:
            raise DataError(f"its annotated copy cannot be encoded: {error}") from error


def _encode(container: Any, video: Video, images: Iterable[tuple[float, RGB]]) -> None:
    """Write images with their times in seconds to an open container."""
    import av

    stream: Any = None
    last = -1
    for time, image in images:
        if stream is None:
            stream = _add_stream(container, video, image)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        # Damaged videos repeat times, which MP4 does not allow.
        last = max(round(time / _TIME_BASE), last + 1)
        frame.pts, frame.time_base = last, _TIME_BASE
        container.mux(stream.encode(frame))
    if stream is not None:
        container.mux(stream.encode())


def draw_persons(image: RGB, result: VideoResult, time: float, gap: float) -> RGB:
    """Return a frame with the persons visible at its time, with even sides, as codecs require."""
    faces = [
        replace(person, box=box)
        for person, track in result.persons
        if (box := interpolate_box(track, time, gap)) is not None
    ]
    annotated = draw_annotation(PhotoPrediction("", "ok", tuple(faces), image=image)) if faces else image
    height, width = annotated.shape[:2]
    return np.pad(annotated, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def draw_annotation(photo: PhotoPrediction) -> RGB:
    """Return a copy of a photo (which must have its image) with a bounding box and a label for each face.

    White between black lines, legible on any background; sizes depend on those of the image and the face.
    """
    assert photo.image is not None
    image = Image.fromarray(photo.image)
    canvas = ImageDraw.Draw(image)
    occupied: list[_Box] = []
    for face in photo.faces:
        whole = (0, 0, image.width / photo.scale, image.height / photo.scale)
        box = tuple(value * photo.scale for value in (face.box or whole))
        _draw_box(canvas, box, image.size)
        occupied.append(_draw_label(canvas, format_label(face), box, image.size, occupied))
    return np.asarray(image)


def format_label(face: FacePrediction) -> str:
    """Return the label of a face: age and interval, if known, then gender and the probability of the likelier one."""
    assert face.p_female is not None
    probability = max(face.p_female, 1 - face.p_female)
    person = f"#{face.person} " if face.person is not None else ""
    age = "" if face.age is None else f"{face.age:.0f} ({face.age_low:.0f}-{face.age_high:.0f})"
    return "\n".join(part for part in (f"{person}{age}".strip(), f"{face.gender} {probability:.2f}") if part)


def _load_image(photo: PhotoPrediction) -> PhotoPrediction:
    """Return a photo with its image, decoded again: keeping images while they wait would fill the memory."""
    if photo.image is not None:
        return photo
    try:
        decoded = decode_photo(read_image_file(photo.file), LARGEST_SIDE, page=(photo.page or 1) - 1)
    except DataError as error:
        raise DataError(f"the photo could no longer be read for its annotated copy: {error}") from error
    return replace(photo, image=decoded.image, scale=decoded.scale)


def _save(path: Path, image: RGB, source: str) -> None:
    stream = io.BytesIO()
    if _refuse_input(path, source).suffix.lower() in _JPEG_SUFFIXES:
        Image.fromarray(image).save(stream, "JPEG", quality=_JPEG_QUALITY)
    else:
        Image.fromarray(image).save(stream, "PNG", compress_level=_PNG_COMPRESSION)
    with _refuse_long_name(path):
        write_bytes(path, stream.getvalue())


@contextmanager
def _refuse_long_name(path: Path) -> Iterator[None]:
    """Make it a problem of this input only if the name of its copy, which is longer than its own, is too long.

    Raises:
        DataError: it is.
    """
    try:
        yield
    except AgegenError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENAMETOOLONG:
            raise DataError(f"the name of its copy would be too long: {shorten(path.name)}") from error
        raise


def _refuse_input(path: Path, source: str) -> Path:
    """Return the path of a copy.

    Raises:
        AgegenError: it is the path of the input.
    """
    if path.resolve() == Path(source).resolve():
        raise AgegenError(f"the copy would overwrite the input {path}. Choose another folder.")
    return path


def _add_stream(container: Any, video: Video, image: RGB) -> Any:
    import av

    codec = next(name for name in _CODECS if name in av.codecs_available)
    stream = container.add_stream(codec, rate=video.rate)
    stream.width, stream.height, stream.pix_fmt = image.shape[1], image.shape[0], "yuv420p"
    # Encoders' own is one step per frame, in which frames of a variable rate would share a time.
    stream.codec_context.time_base = _TIME_BASE
    stream.options = {"crf": _CRF, "preset": "veryfast"} if codec == "libx264" else {"qscale": "4"}
    return stream


def _draw_box(canvas: ImageDraw.ImageDraw, box: Sequence[float], size: tuple[int, int]) -> None:
    width = max(1, round(max(size) / 500))
    left, top, right, bottom = _clip(box, size)
    for inset, color in ((0, "black"), (width, "white"), (2 * width, "black")):
        corners = (left + inset, top + inset, right - inset, bottom - inset)
        if corners[2] > corners[0] and corners[3] > corners[1]:
            canvas.rectangle(corners, outline=color, width=width)


def _draw_label(
    canvas: ImageDraw.ImageDraw, text: str, box: Sequence[float], size: tuple[int, int], occupied: list[_Box]
) -> _Box:
    """Draw a label where it covers no other one, if possible; return the area that it covers."""
    font, width, height, padding = _fit_text(canvas, text, box, size)
    place = _choose_place(box, width, height, size, occupied)
    canvas.rectangle(place, fill="black", outline="white", width=max(1, padding // 3))
    canvas.multiline_text((place[0] + padding, place[1] + padding), text, fill="white", font=font, spacing=padding)
    return place


def _fit_text(
    canvas: ImageDraw.ImageDraw, text: str, box: Sequence[float], size: tuple[int, int]
) -> tuple[Any, float, float, int]:
    """Return (font, width, height, padding) of a label that fits into the image."""
    font_size = max(_MIN_FONT_SIZE, max(size) / 60, (box[3] - box[1]) * 0.1)
    while True:
        font = ImageFont.load_default(font_size)
        padding = max(2, round(font_size / 4))
        _, _, right, bottom = canvas.multiline_textbbox((0, 0), text, font=font, spacing=padding)
        width, height = right + 2 * padding, bottom + 2 * padding
        if font_size <= _MIN_FONT_SIZE or (width <= size[0] and height <= size[1] / 2):
            return font, width, height, padding
        font_size = max(_MIN_FONT_SIZE, font_size * 0.8)


def _choose_place(
    box: Sequence[float], width: float, height: float, size: tuple[int, int], occupied: list[_Box]
) -> _Box:
    """Return where to draw a label: above the box, below, right, left, or inside, if it is free."""
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
    free = [place for place in shifted if not any(_overlap(place, other) for other in occupied)]
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
