"""Decoding pictures to RGB arrays, whatever their format, mode and orientation."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from agegen.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
# A hundred megapixels is the largest photograph that people have; more is taken for a bomb.
MAX_PIXELS = 110_000_000

RGB = NDArray[np.uint8]


def is_image_name(path: Path) -> bool:
    """Return whether the name ends as a picture's does."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def read_image_file(path: Path) -> bytes:
    """Return a picture file's bytes; raises DataError where it can't be read or is no regular file."""
    try:
        if not path.is_file():
            raise DataError("no such file" if not path.exists() else "not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error


def decode_image(content: bytes) -> RGB:
    """Decode a picture to RGB (height, width, 3), uint8, upright as its EXIF orientation says.

    Alpha is laid over white, 16-bit grey is scaled to 8 bits, of an animation the first frame counts.

    Raises:
        DataError: no picture, a damaged one, or one of more than 110 megapixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DataError(f"{picture.width}×{picture.height} pixels are too many to decode")
                return np.asarray(_convert_to_rgb(ImageOps.exif_transpose(picture)))
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError("too many pixels to decode") from error
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        raise DataError(f"not a readable picture ({str(error) or type(error).__name__})") from error


def resize_image(image: RGB, size: int) -> RGB:
    """Resize to a (size, size, 3) square; area averaging when shrinking, bicubic when enlarging."""
    import cv2

    if image.shape[:2] == (size, size):
        return image
    shrinking = min(image.shape[:2]) >= size
    resized: RGB = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
    return resized


def _convert_to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 instead of scaling it.
        grey = np.asarray(picture).astype(np.float64)
        return Image.fromarray((grey / 257.0).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return picture.convert("RGB")
