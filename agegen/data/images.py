"""Decoding pictures to RGB arrays, whatever their format, mode and orientation."""

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

# A camera, a phone and a scanner or two: folders have few profiles.
_KEPT = 16


def convert_to_srgb(picture: Image.Image) -> Image.Image:
    """Return a picture with a profile (Display P3, Adobe RGB, a press's inks) as RGB in sRGB, others as they are.

    A damaged profile is none.
    """
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "CMYK"):
        return picture
    transform = _build_transform(profile, picture.mode)
    if transform is None:
        return picture
    converted: Image.Image = transform.apply(picture)
    # What follows must not convert it once more.
    converted.info = {name: value for name, value in picture.info.items() if name != "icc_profile"}
    return converted


def has_plain_inks(picture: Image.Image) -> bool:
    """Return whether a JPEG in inks counts ink as ink: Adobe's count white, and Pillow takes all for Adobe's."""
    return picture.format == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info


def invert_inks(picture: Image.Image) -> Image.Image:
    """Return a picture with the opposite of each value."""
    inverted = ImageChops.invert(picture)
    inverted.info = dict(picture.info)
    return inverted


@lru_cache(_KEPT)
def _build_transform(profile: bytes, mode: str) -> Any:
    """Return what brings a picture to sRGB, None where it is there already, or nothing can be known."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source)
        if mode == "RGB" and "srgb" in name.lower():
            return None
        # Without its memory of the last pixel a transform serves several threads.
        return ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=ImageCms.Flags.NOCACHE
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
        *(".avif", ".jp2", ".j2k", ".heic", ".heif", ".jxl"),
    }
)
# How files of iPhones begin, from the fifth byte on; Pillow reads them where pillow-heif is installed.
_HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")
_BOXED = (*_HEIF_BRANDS, b"ftypavif", b"ftypavis")
# JPEG XL, bare and in a container; Pillow reads it where pillow-jxl-plugin is installed.
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
# TIFF, little and big end first, and BigTIFF.
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_STARTS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    *_TIFF_STARTS,
    *_JXL_STARTS,
)
# Thumbnails of a NAS (Synology), and a Mac's copies of metadata in archives.
_SYSTEM_FOLDERS = frozenset({"@eaDir", "__MACOSX"})
# A hundred megapixels is the largest photograph that people have; more is taken for a bomb.
MAX_PIXELS = 110_000_000
# An uncompressed photograph of that size with 16 bits a channel; larger files would only fill the memory.
MAX_BYTES = 6 * MAX_PIXELS + (1 << 20)

# Pillow warns of large pictures and odd metadata. Its messages alone are kept still, once and not around each decoding:
# filters are the process's, and threads that change them leave each other's behind.
warnings.filterwarnings("ignore", module=r"PIL\.")

RGB = NDArray[np.uint8]


def is_image_name(path: Path) -> bool:
    """Return whether the name ends as a picture's does."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def looks_like_image(start: bytes) -> bool:
    """Return whether a file that begins so (16 bytes are enough) is a picture of a known format."""
    return start.startswith(_STARTS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP") or start[4:12] in _BOXED


def list_images(folder: Path) -> list[Path]:
    """Return the pictures in a folder and all folders in it, sorted; what systems put there besides is passed over."""
    found = (path for path in folder.rglob("*") if is_image_name(path))
    return sorted(path for path in found if not is_hidden(path.relative_to(folder)))


def is_hidden(path: Path) -> bool:
    """Return whether a path leads through a hidden name, or to what a Mac or a NAS leaves beside pictures."""
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in path.parts if part not in (".", ".."))


def read_image_file(name: str | Path) -> bytes:
    """Return a picture file's bytes; raises DataError where it can't be read or is no regular file."""
    path = Path(name)
    try:
        if not path.is_file():
            if "://" in str(name):
                raise DataError("a URL; agegen reads local files only: download it first")
            raise DataError("no such file" if not path.exists() else "not a regular file")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path.stat().st_size / 1e9:.1f} GB are too much for a picture")
        return path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error


def decode_image(content: bytes) -> RGB:
    """Decode a picture to RGB (height, width, 3), uint8, upright as its EXIF orientation says.

    Alpha is laid over white, deeper greys are brought to 8 bits, of an animation the first frame counts.

    Raises:
        DataError: no picture, a damaged one, or one of more than 110 megapixels.
    """
    return decode_photo(content, None).image


@dataclass(frozen=True)
class Photo:
    """A decoded photograph (height, width, 3), upright; ``scale`` is its size over that of the file."""

    image: RGB
    scale: float


def count_pixels(content: bytes) -> int:
    """Return how many pixels a picture has by its head; 0 where it can't be read."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.width * picture.height
    except Exception:  # whoever decodes it says what is wrong
        return 0


def count_pages(content: bytes) -> int:
    """Return how many pages a picture has: more than one in TIFFs alone, as scanners make them.

    What cameras put beside a photograph (previews, depth maps) and the frames of animations are no pages.
    """
    if content[:4] not in _TIFF_STARTS:
        return 1
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return int(getattr(picture, "n_frames", 1))
    except Exception:  # whoever decodes it says what is wrong
        return 1


def decode_photo(
    content: bytes, limit: int | None, enough: Callable[[int, int], int] | None = None, page: int = 0
) -> Photo:
    """Decode as :func:`decode_image` does, to a longer side of at most ``limit`` pixels.

    A large JPEG is decoded at a half, a quarter or an eighth of its size at once, which saves time and memory: at the
    smallest that has ``limit`` pixels still, or what ``enough`` says of its width and height, where that is less.
    """
    _prepare_plugin(content)
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if page:
                picture.seek(page)
            longest = max(picture.size)
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{picture.width}×{picture.height} pixels are too many to decode")
            wanted = min(limit or longest, longest, enough(*picture.size) if enough else longest)
            if wanted < longest:
                picture.draft("RGB", (int(picture.width * wanted / longest), int(picture.height * wanted / longest)))
            image = np.asarray(convert_to_rgb(picture))
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError("too many pixels to decode") from error
    except UnidentifiedImageError as error:
        raise DataError("not a readable picture (of no format that is known)") from error
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        raise DataError(f"not a readable picture ({str(error) or type(error).__name__})") from error
    if limit is not None and max(image.shape[:2]) > limit:
        image = _shrink(image, limit)
    return Photo(image, max(image.shape[:2]) / longest)


def _prepare_plugin(content: bytes) -> None:
    """Let Pillow read HEIC, as iPhones write it, and JPEG XL, with the packages that do.

    Raises:
        DataError: the picture is of such a format, and the package isn't installed.
    """
    try:
        if content[4:12] in _HEIF_BRANDS:
            from pillow_heif import register_heif_opener

            register_heif_opener()
        elif content.startswith(_JXL_STARTS):
            import pillow_jxl  # noqa: F401 - it registers itself
    except ImportError as error:
        kind, extra = ("JPEG XL", "jxl") if content.startswith(_JXL_STARTS) else ("HEIC", "heic")
        raise DataError(f'a {kind} picture needs another package: pip install "agegen[{extra}]"') from error


def resize_image(image: RGB, size: int) -> RGB:
    """Resize to a (size, size, 3) square; area averaging when shrinking, bicubic when enlarging."""
    import cv2

    if image.shape[:2] == (size, size):
        return image
    shrinking = min(image.shape[:2]) >= size
    resized: RGB = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
    return resized


def convert_to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture as RGB in sRGB, upright as its EXIF orientation says, alpha laid over white."""
    plain_inks = has_plain_inks(picture)
    upright = _turn_upright(picture)
    return _convert_to_rgb(convert_to_srgb(invert_inks(upright) if plain_inks else upright))


def scale_to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return values of more than 8 bits as 0–255: floats by 1 or 255, integers by the bits that they use.

    Cameras write 10, 12 or 14 bits into 16, and science 0–1 into floats: taken by their type, all of them are black.
    What isn't finite counts as 0.
    """
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    most = float(numbers.max()) if numbers.size else 0.0
    # Of larger floats and integers of 32 bits the greatest value is white.
    whites = (1.0, 255.0) if np.issubdtype(values.dtype, np.floating) else (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
    white = next((white for white in whites if most <= white), most)
    return np.asarray((numbers * (255.0 / white)).round().clip(0, 255), dtype=np.uint8)


def _turn_upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged metadata is no reason to refuse a good picture
        return picture


def _shrink(image: RGB, limit: int) -> RGB:
    import cv2

    scale = limit / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    shrunk: RGB = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return shrunk


def _convert_to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        # Pillow clips deeper greys at 255 instead of scaling them.
        return Image.fromarray(scale_to_8_bits(np.asarray(picture))).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return picture.convert("RGB")
