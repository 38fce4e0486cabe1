import io
import sys

import numpy as np
import pytest
from PIL import Image

from agegen.data.images import decode_image, list_images, read_image_file, resize_image
from agegen.errors import DataError


def encode(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def corner():
    """Black, with a red block in the upper left corner."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:6, :9] = (255, 0, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(corner, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that a camera's rotation amounts to
    stored = corner if orientation == 1 else corner.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(stored, "JPEG", exif=exif, quality=95))
    assert image.shape == (20, 30, 3)
    assert image[2, 3, 0] > 200
    assert image[-3:, -3:].max() < 60


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr"])
def test_modes_become_rgb(corner, mode):
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    image = decode_image(encode(corner.convert(mode), kind))
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.uint8


def test_sixteen_bit_grey_is_scaled():
    grey = Image.fromarray(np.full((4, 4), 0x8080, np.uint16))
    assert (decode_image(encode(grey)) == 0x80).all()


def test_alpha_lies_over_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (decode_image(encode(clear)) == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_formats(corner, kind):
    image = decode_image(encode(corner, kind))
    assert image.shape == (20, 30, 3)
    assert image[1, 1, 0] > 200


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut short"])
def test_what_is_no_picture_is_a_data_error(content):
    with pytest.raises(DataError, match="not a readable picture"):
        decode_image(content)


def test_a_truncated_picture_is_a_data_error(corner):
    content = encode(corner.resize((300, 200)))
    with pytest.raises(DataError):
        decode_image(content[: len(content) // 2])


def test_a_bomb_is_refused_before_it_is_decoded():
    content = encode(Image.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match="too many"):
        decode_image(content)


def test_missing_files_and_folders_say_so(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_image_file(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="not a regular file"):
        read_image_file(tmp_path)


def test_resize_gives_a_square():
    assert resize_image(np.zeros((30, 50, 3), np.uint8), 16).shape == (16, 16, 3)
    assert resize_image(np.zeros((8, 8, 3), np.uint8), 16).shape == (16, 16, 3)


@pytest.mark.parametrize("suffix", [".avif", ".jfif", ".mpo", ".jp2", ".apng", ".heic"])
def test_formats_that_phones_and_archives_have(corner, suffix, tmp_path):
    """Each is found in a folder and decoded; `corner` is a picture whose corner is of another colour."""
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / f"picture{suffix}"
    kind = {".avif": "AVIF", ".jfif": "JPEG", ".mpo": "MPO", ".jp2": "JPEG2000", ".apng": "PNG", ".heic": "HEIF"}[
        suffix
    ]
    corner.convert("RGB").save(path, kind)
    assert list_images(tmp_path) == [path]
    image = decode_image(path.read_bytes())
    expected = np.asarray(corner.convert("RGB"))
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 12


def test_a_heic_picture_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r'pip install "agegen\[heic\]"'):
        decode_image(b"\x00\x00\x00\x18ftypheic" + bytes(100))
