"""Colours as the eye sees them: pictures in a wide gamut, and in inks, brought to sRGB by their own profiles."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

from PIL import Image, ImageChops

# A camera, a phone and a scanner or two: folders have few profiles.
_KEPT = 16


def bring_to_srgb(picture: Image.Image) -> Image.Image:
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
