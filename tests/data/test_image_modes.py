"""Pictures with colour profiles, in inks, in deep and in paged formats: decoded as the eye sees them."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from profiles import SPACES, make_profile

from agegen.data.images import convert_to_srgb, count_pages, decode_image, decode_photo

SKIN = (200, 150, 120)


def save(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def express(picture, profile):
    """Return an sRGB picture in another space, with that space's profile."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(picture, ImageCms.createProfile("sRGB"), target, outputMode="RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("space", ["Display P3", "Adobe RGB"])
def test_a_wide_gamut_is_brought_to_srgb(space, kind):
    plain = Image.new("RGB", (48, 48), SKIN)
    profile = make_profile(space)
    wide = express(plain, profile)
    # The numbers in the file are others: without the profile, the skin would be paler.
    assert np.abs(np.asarray(wide)[0, 0].astype(int) - SKIN).max() > 5
    lossy = {"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {}
    decoded = decode_image(save(wide, kind, icc_profile=profile, **lossy))
    assert np.abs(decoded[24, 24].astype(int) - SKIN).max() <= 4


def test_srgb_and_damaged_profiles_change_nothing():
    plain = Image.effect_noise((32, 32), 60).convert("RGB")
    for profile in (make_profile("sRGB"), b"no profile", make_profile("Display P3")[:100]):
        decoded = decode_image(save(plain, "PNG", icc_profile=profile))
        assert np.array_equal(decoded, np.asarray(plain))
    assert set(SPACES) == {"Display P3", "Adobe RGB", "sRGB"}


def test_threads_share_a_transform():
    from concurrent.futures import ThreadPoolExecutor

    profile = make_profile("Adobe RGB")
    pictures = [Image.effect_noise((64, 64), 10 + number).convert("RGB") for number in range(16)]
    for picture in pictures:
        picture.info["icc_profile"] = profile
    alone = [np.asarray(convert_to_srgb(picture)) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: np.asarray(convert_to_srgb(picture)), pictures * 8))
    assert all(np.array_equal(found, alone[index % 16]) for index, found in enumerate(together))


@pytest.mark.parametrize("inverted", [True, False])
def test_inks_with_and_without_adobes_inversion(inverted):
    """Adobe writes 255 for no ink, and says so in a marker; without it, 255 is all of it."""
    picture = Image.new("RGB", (32, 32), SKIN).convert("CMYK")
    content = save(picture, "JPEG", quality=95)
    marker = content.find(b"Adobe")
    assert marker > 0, "Pillow writes Adobe's marker, and inverts"
    if not inverted:
        start = marker - 4
        length = struct.unpack(">H", content[start + 2 : start + 4])[0]
        whole = Image.eval(picture, lambda value: 255 - value)
        content = save(whole, "JPEG", quality=95)
        content = content[:start] + content[start + 2 + length :]
    assert np.abs(decode_image(content)[16, 16].astype(int) - SKIN).max() <= 6


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_a_colour(suffix):
    rgb = np.full((20, 30, 3), SKIN, np.uint16) * 257
    rgb[:10] //= 2
    _, encoded = cv2.imencode(suffix, np.ascontiguousarray(rgb[:, :, ::-1]))
    decoded = decode_image(encoded.tobytes())
    assert decoded[15, 5].tolist() == pytest.approx(SKIN, abs=1)
    assert decoded[5, 5].tolist() == pytest.approx([value / 2 for value in SKIN], abs=1)


def test_jpeg_xl():
    import pillow_jxl  # noqa: F401 - writes them too

    content = save(Image.new("RGB", (40, 30), SKIN), "JXL", quality=95)
    assert decode_image(content)[15, 20].tolist() == pytest.approx(SKIN, abs=4)


def test_pages_are_those_of_scanners():
    pages = [Image.new("RGB", (40, 30 + number), (50 * number, 0, 0)) for number in range(3)]
    content = save(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert count_pages(content) == 3
    for number in range(3):
        image = decode_photo(content, None, page=number).image
        assert image.shape == (30 + number, 40, 3)
        assert image[0, 0, 0] == 50 * number
    for kind in ("GIF", "WEBP", "PNG", "MPO"):
        assert count_pages(save(pages[0], kind, save_all=True, append_images=[pages[0].rotate(180)])) == 1
    assert count_pages(b"II*\0 no TIFF") == 1
