"""Pictures that Python programs have in memory: arrays, Pillow images, encoded bytes, open files."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from agegen.data.images import RGB, Photo, decode_photo, stretch_grey, turn_to_rgb
from agegen.errors import DataError
from agegen.predict.cutting import Decode


def open_picture(picture: Any, limit: int | None) -> Decode:
    """Return what gives a picture as RGB (height, width, 3), uint8, encoded ones of at most ``limit`` pixels on a side.

    Args:
        picture: encoded bytes, a binary file open for reading, a Pillow image (turned as its EXIF orientation says), or
            an array: RGB or RGBA (height, width, 3 or 4), or grey (height, width), of uint8, or deeper: then its
            values are brought to 0–255.
        limit: concerns encoded pictures alone.

    Raises:
        DataError: it is something else; the error names its type.
    """
    if hasattr(picture, "read"):
        picture = picture.read()
    if isinstance(picture, bytes | bytearray | memoryview):
        content = bytes(picture)
        return lambda enough: decode_photo(content, limit, enough)
    if isinstance(picture, Image.Image):
        photo = Photo(np.asarray(turn_to_rgb(picture)), 1.0)
        return lambda _: photo
    if isinstance(picture, np.ndarray):
        whole = Photo(_read_array(picture), 1.0)
        return lambda _: whole
    raise DataError(
        "a picture must be a path, bytes, an open file, a Pillow image or a NumPy array, not "
        f"{type(picture).__module__}.{type(picture).__qualname__}"
    )


def _read_array(array: np.ndarray) -> RGB:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    coloured = array.ndim == 3 and array.shape[2] in (3, 4)
    numbers = np.issubdtype(array.dtype, np.number) and not np.issubdtype(array.dtype, np.complexfloating)
    if not (grey or coloured) or 0 in array.shape or not numbers:
        raise DataError(
            "an array must be RGB (height, width, 3), RGBA (height, width, 4) or grey (height, width), of numbers, not "
            f"{array.dtype} {array.shape}"
        )
    values = array if array.dtype == np.uint8 else stretch_grey(array)
    flat = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
    return np.ascontiguousarray(turn_to_rgb(Image.fromarray(np.ascontiguousarray(flat))))
