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
# Smaller letters are illegible, in pixels and in an image that is shown 1,100 pixels wide.
_MIN_FONT_SIZE, _FONTS_PER_SIDE = 10, 110
# Larger letters only cover more; of a face's height, two lines of this size fill a third.
_LARGE_FONTS_PER_SIDE, _FONT_SHARE = 30, 0.13
# A label inside its box covers no more than the chin.
_INSIDE_SHARE = 0.3
# Places farther away are tried on a grid, and lines to that many of the nearest ones.
_GRID, _LINES_TRIED = 48, 100

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
    whole = (0, 0, image.width / photo.scale, image.height / photo.scale)
    boxes = [_scale_box(face.box or whole, photo.scale) for face in photo.faces]
    several = len(photo.faces) > 1
    labels = arrange_labels([format_label(face, several) for face in photo.faces], boxes, image.size)
    for box in boxes:
        _draw_box(canvas, box, image.size)
    # Labels come last, so that no line runs through one.
    for label, box in zip(labels, boxes, strict=True):
        if label.moved:
            _draw_leader(canvas, label, box)
    for label in labels:
        _draw_label(canvas, label)
    return np.asarray(image)


def _scale_box(box: Sequence[float], scale: float) -> _Box:
    left, top, right, bottom = (float(value) * scale for value in box)
    return left, top, right, bottom


def format_label(face: FacePrediction, several: bool = False) -> str:
    """Return the label of a face: age and interval, if known, then gender and the probability of the likelier one.

    It starts with the person of a video or, if a photo has ``several`` faces, the number of the face in its row.
    """
    assert face.p_female is not None
    probability = max(face.p_female, 1 - face.p_female)
    person = f"{face.face}: " if several else ""
    if face.person is not None:
        person = f"#{face.person} "
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


def _draw_leader(canvas: ImageDraw.ImageDraw, label: Label, box: _Box) -> None:
    """Draw the line from a label to its box, between the points of both that are closest to each other."""
    width = max(1, label.padding // 3)
    line = _connect(label.place, box)
    canvas.line(line, fill="black", width=3 * width)
    canvas.line(line, fill="white", width=width)
    # A dot says which of the boxes along the line is meant.
    x, y, radius = *line[2:], 3 * width
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill="white", outline="black", width=width)


def _connect(place: _Box, box: _Box) -> _Box:
    """Return the line (x, y, x, y) between the closest points of two rectangles."""
    ends = []
    for low, high in ((0, 2), (1, 3)):
        inner = max(place[low], box[low]), min(place[high], box[high])
        # Where the sides overlap, the line is straight; otherwise it joins the sides that face each other.
        middle = sum(inner) / 2
        ends.append(
            (middle, middle) if inner[0] <= inner[1] else (inner[1], inner[0]) if place[high] < box[low] else inner
        )
    (x, box_x), (y, box_y) = ends
    return x, y, box_x, box_y


def _draw_label(canvas: ImageDraw.ImageDraw, label: Label) -> None:
    left, top, _, _ = label.place
    padding = label.padding
    canvas.rectangle(label.place, fill="black", outline="white", width=max(1, padding // 3))
    font = ImageFont.load_default(label.font_size)
    canvas.multiline_text((left + padding, top + padding), label.text, fill="white", font=font, spacing=padding)


@dataclass(frozen=True)
class Label:
    """A label in an image.

    Attributes:
        text: in one or two lines.
        place: the rectangle that it covers (left, top, right, bottom), in pixels of the image.
        font_size: in pixels, and ``padding`` around the text.
        padding: see ``font_size``.
        moved: whether it is so far from its box that a line must connect them.
    """

    text: str
    place: _Box
    font_size: float
    padding: int
    moved: bool = False


def arrange_labels(texts: Sequence[str], boxes: Sequence[_Box], size: tuple[int, int]) -> list[Label]:
    """Return a label for each face, placed so that it covers no other label and no face, if there is room.

    Args:
        texts: of the labels.
        boxes: of the faces, in pixels of the image.
        size: width and height of the image.
    """
    labels: list[Label] = []
    for index, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        others = [_clip(other, size) for place, other in enumerate(boxes) if place != index]
        labels.append(_place_label(text, _clip(box, size), size, others, [label.place for label in labels]))
    return labels


def _place_label(
    text: str, box: _Box, size: tuple[int, int], others: Sequence[_Box], occupied: Sequence[_Box]
) -> Label:
    """Return the label of a box: next to it, in smaller letters if need be, or else inside or farther away."""
    sizes = _choose_font_sizes(box, size)
    obstacles = [*others, *occupied]
    for font_size in sizes:
        label = _fit_text(text, font_size)
        for place in _list_near_places(box, label.place[2], label.place[3], size):
            if not any(_overlap(place, other) for other in obstacles):
                return replace(label, place=place)
    width, height = label.place[2:]
    inside = _shift_inside((box[0], box[3] - height, box[0] + width, box[3]), size)
    # It covers a chin at most, and only its own.
    roomy = height <= _INSIDE_SHARE * (box[3] - box[1]) and width <= box[2] - box[0]
    if roomy and not any(_overlap(inside, other) for other in obstacles):
        return replace(label, place=inside)
    distant = _find_distant_place(box, width, height, size, obstacles)
    if distant is not None:
        return replace(label, place=distant, moved=True)
    places = [*_list_near_places(box, width, height, size), inside]
    return replace(
        label, place=min(places, key=lambda place: sum(_measure_overlap(place, other) for other in obstacles))
    )


def _choose_font_sizes(box: _Box, size: tuple[int, int]) -> list[float]:
    """Return font sizes in pixels, the preferred one first: it grows with the face, within readable bounds."""
    smallest = max(_MIN_FONT_SIZE, max(size) / _FONTS_PER_SIDE)
    largest = max(smallest, max(size) / _LARGE_FONTS_PER_SIDE)
    preferred = min(max(smallest, _FONT_SHARE * (box[3] - box[1])), largest)
    return [preferred, *(share * preferred for share in (0.8, 0.65) if share * preferred > smallest), smallest]


def _fit_text(text: str, font_size: float) -> Label:
    """Return a label at the origin, as large as its text."""
    font = ImageFont.load_default(font_size)
    padding = max(2, round(font_size / 4))
    canvas = ImageDraw.Draw(Image.new("L", (1, 1)))
    _, _, right, bottom = canvas.multiline_textbbox((0, 0), text, font=font, spacing=padding)
    return Label(text, (0.0, 0.0, right + 2 * padding, bottom + 2 * padding), font_size, padding)


def _list_near_places(box: _Box, width: float, height: float, size: tuple[int, int]) -> list[_Box]:
    """Return where a label touches its box: below, above, right and left, as far as that is inside the image."""
    left, top, right, bottom = box
    middle, center = (left + right - width) / 2, (top + bottom - height) / 2
    across, down = (left, middle, right - width), (top, center, bottom - height)
    corners = [(x, y) for y in (bottom, top - height) for x in across]
    corners += [(x, y) for x in (right, left - width) for y in down]
    # Along its side, a label may be shifted into the image.
    places = [_shift_inside((x, y, x + width, y + height), size) for x, y in corners]
    return [place for place in places if not _overlap(place, box) and _is_inside(place, size)]


def _find_distant_place(
    box: _Box, width: float, height: float, size: tuple[int, int], obstacles: Sequence[_Box]
) -> _Box | None:
    """Return the free place nearest to a box, preferably one whose line to the box crosses nothing; None if full."""
    if width > size[0] or height > size[1]:
        return None
    xs, ys = (np.linspace(0, side - 1 - length, _GRID) for side, length in ((size[0], width), (size[1], height)))
    x, y = (values.ravel() for values in np.meshgrid(xs, ys))
    free = np.ones(len(x), dtype=bool)
    for left, top, right, bottom in [box, *obstacles]:
        free &= ~((x < right) & (x + width > left) & (y < bottom) & (y + height > top))
    distance = np.hypot(
        np.maximum(0, np.maximum(x - box[2], box[0] - x - width)),
        np.maximum(0, np.maximum(y - box[3], box[1] - y - height)),
    )
    nearest = [index for index in np.argsort(distance, kind="stable") if free[index]]
    places = [(float(x[i]), float(y[i]), float(x[i]) + width, float(y[i]) + height) for i in nearest[:_LINES_TRIED]]
    clear = (place for place in places if not any(_crosses(_connect(place, box), other) for other in obstacles))
    return next(clear, places[0] if places else None)


def _crosses(line: _Box, box: _Box) -> bool:
    """Return whether a line (x, y, x, y) passes through a box, by points along it."""
    along = np.linspace(0.02, 0.98, 25)
    x, y = (line[axis] + along * (line[axis + 2] - line[axis]) for axis in (0, 1))
    return bool(((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])).any())


def _shift_inside(place: _Box, size: tuple[int, int]) -> _Box:
    x = max(0.0, min(place[0], size[0] - 1 - (place[2] - place[0])))
    y = max(0.0, min(place[1], size[1] - 1 - (place[3] - place[1])))
    return (x, y, x + place[2] - place[0], y + place[3] - place[1])


def _is_inside(place: _Box, size: tuple[int, int]) -> bool:
    return place[0] >= 0 and place[1] >= 0 and place[2] <= size[0] and place[3] <= size[1]


def _overlap(first: _Box, second: _Box) -> bool:
    return _measure_overlap(first, second) > 0


def _measure_overlap(first: _Box, second: _Box) -> float:
    """Return the area that two rectangles share, in pixels."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


def _clip(box: Sequence[float], size: tuple[int, int]) -> _Box:
    left, top, right, bottom = box
    return max(0.0, left), max(0.0, top), min(size[0] - 1.0, right), min(size[1] - 1.0, bottom)
