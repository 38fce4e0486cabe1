"""Decoding of images in all formats, modes and color profiles, and errors for files that cannot be decoded."""

import io
import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from profiles import SPACES, make_profile

from agegen.data.images import (
    WorkerPool,
    _read_simple_header,
    convert_to_srgb,
    count_pages,
    decode_image,
    decode_photo,
    list_images,
    read_image_file,
    resize_image,
)
from agegen.errors import DataError

SKIN = (200, 150, 120)


def encode(pil_image, kind="PNG", **options):
    stream = io.BytesIO()
    pil_image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def corner():
    """A black image with a red block in the upper left corner."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:6, :9] = (255, 0, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(corner, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Image.Transpose that corresponds to an orientation
    stored = corner if orientation == 1 else corner.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(stored, "JPEG", exif=exif, quality=95))
    assert image.shape == (20, 30, 3)
    assert image[2, 3, 0] > 200
    assert image[-3:, -3:].max() < 60


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr"])
def test_modes_are_converted_to_rgb(corner, mode):
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    image = decode_image(encode(corner.convert(mode), kind))
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.uint8


def test_16_bit_grayscale_is_scaled():
    gray = Image.fromarray(np.full((4, 4), 0x8080, np.uint16))
    assert (decode_image(encode(gray)) == 0x80).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_color_is_scaled(suffix):
    rgb = np.full((20, 30, 3), SKIN, np.uint16) * 257
    rgb[:10] //= 2
    _, encoded = cv2.imencode(suffix, np.ascontiguousarray(rgb[:, :, ::-1]))
    decoded = decode_image(encoded.tobytes())
    assert decoded[15, 5].tolist() == pytest.approx(SKIN, abs=1)
    assert decoded[5, 5].tolist() == pytest.approx([value / 2 for value in SKIN], abs=1)


def test_transparency_is_composited_over_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (decode_image(encode(clear)) == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_common_formats(corner, kind):
    image = decode_image(encode(corner, kind))
    assert image.shape == (20, 30, 3)
    assert image[1, 1, 0] > 200


@pytest.mark.parametrize("suffix", [".avif", ".jfif", ".mpo", ".jp2", ".apng", ".heic"])
def test_formats_of_phones_and_archives(corner, suffix, tmp_path):
    """Each is found in a folder and decoded."""
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / f"image{suffix}"
    kind = {".avif": "AVIF", ".jfif": "JPEG", ".mpo": "MPO", ".jp2": "JPEG2000", ".apng": "PNG", ".heic": "HEIF"}[
        suffix
    ]
    corner.convert("RGB").save(path, kind)
    assert list_images(tmp_path) == [path]
    image = decode_image(path.read_bytes())
    expected = np.asarray(corner.convert("RGB"))
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 12


def test_jpeg_xl():
    import pillow_jxl  # noqa: F401 - also registers the encoder

    content = encode(Image.new("RGB", (40, 30), SKIN), "JXL", quality=95)
    assert decode_image(content)[15, 20].tolist() == pytest.approx(SKIN, abs=4)


def test_the_error_for_heic_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r'pip install "agegen\[heic\]"'):
        decode_image(b"\x00\x00\x00\x18ftypheic" + bytes(100))


def convert_to_profile(pil_image, profile):
    """Return an sRGB image converted to another color space."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(pil_image, ImageCms.createProfile("sRGB"), target, outputMode="RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("space", ["Display P3", "Adobe RGB"])
def test_wide_gamut_images_are_converted_to_srgb(space, kind):
    plain = Image.new("RGB", (48, 48), SKIN)
    profile = make_profile(space)
    wide = convert_to_profile(plain, profile)
    # The stored values differ: without the profile the skin would be paler.
    assert np.abs(np.asarray(wide)[0, 0].astype(int) - SKIN).max() > 5
    lossy = {"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {}
    decoded = decode_image(encode(wide, kind, icc_profile=profile, **lossy))
    assert np.abs(decoded[24, 24].astype(int) - SKIN).max() <= 4


def test_srgb_and_damaged_profiles_change_nothing():
    plain = Image.effect_noise((32, 32), 60).convert("RGB")
    for profile in (make_profile("sRGB"), b"not a profile", make_profile("Display P3")[:100]):
        decoded = decode_image(encode(plain, "PNG", icc_profile=profile))
        assert np.array_equal(decoded, np.asarray(plain))
    assert set(SPACES) == {"Display P3", "Adobe RGB", "sRGB"}


def test_threads_can_share_a_color_transform():
    profile = make_profile("Adobe RGB")
    pil_images = [Image.effect_noise((64, 64), 10 + number).convert("RGB") for number in range(16)]
    for pil_image in pil_images:
        pil_image.info["icc_profile"] = profile
    alone = [np.asarray(convert_to_srgb(pil_image)) for pil_image in pil_images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pil_image: np.asarray(convert_to_srgb(pil_image)), pil_images * 8))
    assert all(np.array_equal(found, alone[index % 16]) for index, found in enumerate(together))


@pytest.mark.parametrize("inverted", [True, False])
def test_cmyk_with_and_without_adobes_inversion(inverted):
    """Adobe stores no ink as 255 and marks that in the file; without the marker, 255 is full ink."""
    pil_image = Image.new("RGB", (32, 32), SKIN).convert("CMYK")
    content = encode(pil_image, "JPEG", quality=95)
    marker = content.find(b"Adobe")
    assert marker > 0, "Pillow writes Adobe's marker, and inverts"
    if not inverted:
        start = marker - 4
        length = struct.unpack(">H", content[start + 2 : start + 4])[0]
        whole = Image.eval(pil_image, lambda value: 255 - value)
        content = encode(whole, "JPEG", quality=95)
        content = content[:start] + content[start + 2 + length :]
    assert np.abs(decode_image(content)[16, 16].astype(int) - SKIN).max() <= 6


def test_only_tiffs_have_pages():
    pages = [Image.new("RGB", (40, 30 + number), (50 * number, 0, 0)) for number in range(3)]
    content = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert count_pages(content, 10) == 3
    assert count_pages(content, 2) == 2
    for number in range(3):
        image = decode_photo(content, None, page=number).image
        assert image.shape == (30 + number, 40, 3)
        assert image[0, 0, 0] == 50 * number
    for kind in ("GIF", "WEBP", "PNG", "MPO"):
        assert count_pages(encode(pages[0], kind, save_all=True, append_images=[pages[0].rotate(180)]), 10) == 1
    assert count_pages(b"II*\0 no TIFF", 10) == 1


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 cut short"])
def test_content_that_is_not_an_image_is_a_data_error(content):
    with pytest.raises(DataError, match="not a readable image"):
        decode_image(content)


def test_a_truncated_image_is_a_data_error(corner):
    content = encode(corner.resize((300, 200)))
    with pytest.raises(DataError):
        decode_image(content[: len(content) // 2])


def test_a_decompression_bomb_is_rejected_before_decoding():
    content = encode(Image.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match="too many"):
        decode_image(content)


def test_missing_files_and_folders_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_image_file(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="not a regular file"):
        read_image_file(tmp_path)


def test_resizing_gives_a_square():
    assert resize_image(np.zeros((30, 50, 3), np.uint8), 16).shape == (16, 16, 3)
    assert resize_image(np.zeros((8, 8, 3), np.uint8), 16).shape == (16, 16, 3)


def test_a_worker_process_is_killed_after_a_time_and_replaced():
    pool = WorkerPool("agegen.data.images:run_decoder")
    with pool.borrow() as first:
        assert first.is_alive
    with pytest.raises(TimeoutError), pool.borrow() as worker, worker.limit_time(0.2):
        assert worker is first
        # It waits for a task.
        worker.receive()
    assert not first.is_alive
    with pytest.raises(EOFError), pool.borrow() as second, second.limit_time(60):
        second.send({"task": "unknown"})
        second.receive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="requires fork")
def test_the_child_of_a_fork_has_worker_processes_of_its_own(tmp_path):
    code = """
import io, os, sys
from PIL import Image
from agegen.data.images import _WORKERS, decode_image
stream = io.BytesIO()
Image.new("RGB", (20, 10), "red").save(stream, "TIFF")
decode_image(stream.getvalue())
_WORKERS.exclusive.acquire()
if (child := os.fork()) == 0:
    assert _WORKERS.exclusive.acquire(blocking=False)
    os._exit(0 if decode_image(stream.getvalue()).shape == (10, 20, 3) else 2)
assert os.waitpid(child, 0)[1] == 0
assert decode_image(stream.getvalue()).shape == (10, 20, 3)
"""
    # A script without `if __name__ == "__main__"`: a worker process does not run it again.
    (tmp_path / "script.py").write_text(code)
    subprocess.run([sys.executable, tmp_path / "script.py"], check=True, timeout=60)


def test_plain_jpegs_have_the_pixels_that_pillow_decodes(utkface):
    """In full size and reduced, in color and gray; whatever is not plain or not complete is left to Pillow."""
    path = next(utkface.iterdir())
    original = Image.open(path).convert("RGB")
    stored = {"color": path.read_bytes()}
    for name, image, options in (
        ("gray", original.convert("L"), {}),
        ("progressive", original, {"progressive": True}),
        ("oriented", original, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
        ("inks", original.convert("CMYK"), {}),
    ):
        stored[name] = encode(image, "JPEG", **options)
    plain = {name: _read_simple_header(content, "JPEG").plain for name, content in stored.items()}
    assert plain == {"color": True, "gray": True, "progressive": False, "oriented": False, "inks": False}
    for name in ("color", "gray"):
        assert not _read_simple_header(stored[name][:-20], "JPEG").plain
        with pytest.raises(DataError):
            decode_image(stored[name][:-20])
        for side, divisor in ((200, 1), (100, 2), (50, 4), (25, 8)):
            expected = Image.open(io.BytesIO(stored[name]))
            expected.draft(None, (side, side))
            found = decode_photo(stored[name], None, lambda *_, side=side: side)
            assert found.image.shape == (200 // divisor, 200 // divisor, 3)
            assert np.array_equal(found.image, np.asarray(expected.convert("RGB")))
