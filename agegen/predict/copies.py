"""Annotated copies of photographs and crops of faces, in the places that their photographs have."""

from __future__ import annotations

import glob
import io
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from agegen.data.images import RGB, decode_photo, read_image_file
from agegen.errors import AgegenError, DataError
from agegen.files import write_bytes
from agegen.predict.annotation import draw_annotation
from agegen.predict.cutting import LARGEST_SIDE
from agegen.predict.results import PhotoPrediction
from agegen.predict.video import is_video_name

_JPEG_SUFFIXES = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Copies:
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
