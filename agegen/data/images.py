"""Images: find, read and decode them to RGB arrays, whatever their format, mode, color profile and orientation."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from agegen.errors import DataError

RGB = NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
        *(".avif", ".jp2", ".j2k", ".heic", ".heif", ".jxl"),
    }
)
# Bytes 5 to 12 of HEIC files, as iPhones write them; Pillow reads them with pillow-heif.
_HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")
_ISO_BRANDS = (*_HEIF_BRANDS, b"ftypavif", b"ftypavis")
# JPEG XL, bare and in a container; Pillow reads it with pillow-jxl-plugin.
_JXL_SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
# TIFF in little and big endian, and BigTIFF.
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    *_TIFF_SIGNATURES,
    *_JXL_SIGNATURES,
)
# The white of floats by their largest value, which exceeds it after resampling: by a quarter at most beside hard edges.
# In 0–1 sharpened images may exceed it by more, since no image of 0–255 is as dark as 2.
_FLOAT_WHITES = ((2.0, 1.0), (1.25 * 255, 255.0))
_INTEGER_WHITES = tuple((white, white) for white in (255.0, 1023.0, 4095.0, 16383.0, 65535.0))
# Folders of thumbnails on a Synology NAS, and of metadata in archives from a Mac.
_SYSTEM_FOLDERS = frozenset({"@eaDir", "__MACOSX"})
# Cameras reach about a hundred megapixels; larger images are treated as decompression bombs.
MAX_PIXELS = 110_000_000
# The size of an uncompressed image with that many pixels and 16 bits per channel. Larger files would only fill memory.
MAX_BYTES = 6 * MAX_PIXELS + (1 << 20)
# Color transforms to keep: the images in a folder usually come from a few devices, each with one profile.
_CACHED_TRANSFORMS = 16

# Pillow warns about large images and unusual metadata. The filter is set once rather than around each call: filters
# belong to the process, so threads that change them at the same time would overwrite each other's.
warnings.filterwarnings("ignore", module=r"PIL\.")


def list_images(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted; hidden files and system folders are skipped."""
    found = (path for path in folder.rglob("*") if is_image_name(path))
    return sorted(path for path in found if not is_hidden(path.relative_to(folder)))


def is_image_name(path: Path) -> bool:
    """Return whether a file name has the suffix of an image format."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_hidden(path: Path) -> bool:
    """Return whether a part of a path is hidden, or a system folder of a Mac or a NAS."""
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in path.parts if part not in (".", ".."))


def looks_like_image(start: bytes) -> bool:
    """Return whether the first bytes of a file (at least 12) are the signature of a supported image format."""
    is_webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return start.startswith(_SIGNATURES) or is_webp or start[4:12] in _ISO_BRANDS


def read_image_file(name: str | Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        DataError: the file cannot be read, is not a regular file, or is too large.
    """
    path = Path(name)
    try:
        if not path.is_file():
            if "://" in str(name):
                raise DataError("a URL. agegen reads only local files: download it first.")
            raise DataError("no such file" if not path.exists() else "not a regular file")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path.stat().st_size / 1e9:.1f} GB are too large for an image")
        return path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error


@dataclass(frozen=True)
class Photo:
    """A decoded photo (height, width, 3), upright; ``scale`` is its size relative to the file."""

    image: RGB
    scale: float


def decode_image(content: bytes) -> RGB:
    """Decode an image to RGB (height, width, 3), uint8, upright according to its EXIF orientation.

    Transparency is composited over white, more than 8 bits per channel are scaled to 8, and only the first frame of an
    animation is decoded.

    Raises:
        DataError: the content is not an image, is damaged, or has more than 110 megapixels.
    """
    return decode_photo(content, None).image


def decode_photo(
    content: bytes, limit: int | None, enough: Callable[[int, int], int] | None = None, page: int = 0
) -> Photo:
    """Decode like :func:`decode_image`, to at most ``limit`` pixels on the longer side.

    A large JPEG is decoded directly at 1/2, 1/4 or 1/8 of its size, which saves time and memory: at the smallest of
    these sizes whose longer side has at least ``limit`` pixels, or ``enough(width, height)`` pixels if that is less.

    Raises:
        DataError: as for :func:`decode_image`.
    """
    _load_format_plugin(content)
    try:
        with Image.open(io.BytesIO(content)) as pil_image:
            if page:
                pil_image.seek(page)
            longest = max(pil_image.size)
            if pil_image.width * pil_image.height > MAX_PIXELS:
                raise DataError(f"{pil_image.width}×{pil_image.height} pixels are too many to decode")
            needed = min(limit or longest, longest, enough(*pil_image.size) if enough else longest)
            if needed < longest:
                pil_image.draft(
                    "RGB", (int(pil_image.width * needed / longest), int(pil_image.height * needed / longest))
                )
            image = np.asarray(convert_to_rgb(pil_image))
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError("too many pixels to decode") from error
    except UnidentifiedImageError as error:
        raise DataError("not a readable image (unknown format)") from error
    except Exception as error:  # Pillow's plugins raise nearly any type on damaged files
        raise DataError(f"not a readable image ({str(error) or type(error).__name__})") from error
    if limit is not None and max(image.shape[:2]) > limit:
        image = _shrink(image, limit)
    return Photo(image, max(image.shape[:2]) / longest)


def _load_format_plugin(content: bytes) -> None:
    """Register the Pillow plugin for HEIC or JPEG XL if the content has that format.

    Raises:
        DataError: the plugin is not installed.
    """
    try:
        if content[4:12] in _HEIF_BRANDS:
            from pillow_heif import register_heif_opener

            register_heif_opener()
        elif content.startswith(_JXL_SIGNATURES):
            import pillow_jxl  # noqa: F401 - the import registers it
    except ImportError as error:
        kind, extra = ("JPEG XL", "jxl") if content.startswith(_JXL_SIGNATURES) else ("HEIC", "heic")
        raise DataError(f'{kind} images require another package: pip install "agegen[{extra}]"') from error


def _shrink(image: RGB, limit: int) -> RGB:
    import cv2

    scale = limit / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    shrunk: RGB = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return shrunk


def resize_image(image: RGB, size: int) -> RGB:
    """Resize to a (size, size, 3) square; by area averaging when shrinking, bicubic when enlarging."""
    import cv2

    if image.shape[:2] == (size, size):
        return image
    shrinking = min(image.shape[:2]) >= size
    resized: RGB = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
    return resized


def count_pixels(content: bytes) -> int:
    """Return the number of pixels of an image according to its header; 0 if the header cannot be read."""
    try:
        with Image.open(io.BytesIO(content)) as pil_image:
            return pil_image.width * pil_image.height
    except Exception:  # decoding it raises the explanation
        return 0


def count_pages(content: bytes) -> int:
    """Return the number of pages of an image; only TIFFs, as scanners write them, can have more than one.

    The previews and depth maps that cameras add to a photo are not pages, nor are the frames of animations.
    """
    if content[:4] not in _TIFF_SIGNATURES:
        return 1
    try:
        with Image.open(io.BytesIO(content)) as pil_image:
            return int(getattr(pil_image, "n_frames", 1))
    except Exception:  # decoding it raises the explanation
        return 1


def convert_to_rgb(pil_image: Image.Image) -> Image.Image:
    """Return an image as RGB in sRGB, upright according to its EXIF orientation, with transparency over white."""
    inverted = _has_non_adobe_inks(pil_image)
    upright = _apply_orientation(pil_image)
    return _convert_mode(convert_to_srgb(_invert_inks(upright) if inverted else upright))


def _apply_orientation(pil_image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(pil_image)
    except Exception:  # damaged metadata is not a reason to reject the image
        return pil_image


def _has_non_adobe_inks(pil_image: Image.Image) -> bool:
    """Return whether 255 means full ink in a CMYK JPEG. In Adobe's it means none, which Pillow assumes for all."""
    return pil_image.format == "JPEG" and pil_image.mode == "CMYK" and "adobe" not in pil_image.info


def _invert_inks(pil_image: Image.Image) -> Image.Image:
    inverted = ImageChops.invert(pil_image)
    inverted.info = dict(pil_image.info)
    return inverted


def convert_to_srgb(pil_image: Image.Image) -> Image.Image:
    """Return an image with a color profile (Display P3, Adobe RGB, a CMYK press) as RGB in sRGB.

    Images without a profile, or with a damaged one, are returned unchanged.
    """
    profile = pil_image.info.get("icc_profile")
    if not profile or pil_image.mode not in ("RGB", "CMYK"):
        return pil_image
    transform = _build_transform(profile, pil_image.mode)
    if transform is None:
        return pil_image
    converted: Image.Image = transform.apply(pil_image)
    # Without its profile, the image is not converted again.
    converted.info = {name: value for name, value in pil_image.info.items() if name != "icc_profile"}
    return converted


@lru_cache(_CACHED_TRANSFORMS)
def _build_transform(profile: bytes, mode: str) -> Any:
    """Return the transform from a profile to sRGB; None if the profile is sRGB or invalid."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source)
        if mode == "RGB" and "srgb" in name.lower():
            return None
        # NOCACHE makes a transform safe to share between threads: otherwise it remembers the last pixel.
        return ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=ImageCms.Flags.NOCACHE
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _convert_mode(pil_image: Image.Image) -> Image.Image:
    if pil_image.mode.startswith(("I", "F")):
        # Pillow clips grayscale with more than 8 bits at 255 instead of scaling it.
        return Image.fromarray(scale_to_8_bits(np.asarray(pil_image))).convert("RGB")
    if pil_image.has_transparency_data:
        rgba = pil_image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(background, rgba).convert("RGB")
    return pil_image.convert("RGB")


def scale_to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale values of more than 8 bits to 0–255: floats from 0–1 or 0–255, integers by the bits that they use.

    Cameras store 10, 12 or 14 bits in 16, and scientific images 0–1 in floats; scaled by their type, all of these would
    be black. Non-finite values become 0.
    """
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    largest = float(numbers.max()) if numbers.size else 0.0
    is_float = np.issubdtype(values.dtype, np.floating)
    # For larger floats, and integers of 32 bits, white is the largest value.
    white = next(
        (white for limit, white in (_FLOAT_WHITES if is_float else _INTEGER_WHITES) if largest <= limit), largest
    )
    return np.asarray((numbers * (255.0 / white)).round().clip(0, 255), dtype=np.uint8)
